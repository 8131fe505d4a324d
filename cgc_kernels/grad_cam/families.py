"""The target layer of a classifier and the way from its output to a map, by family: torchvision's and timm's.

Read off the modules and attributes of the model, which is never run. The table in docs/families.md is made with it.
"""

import math
from typing import NamedTuple

from torch import nn

from .reshape import Reshape, ToMap


class Target(NamedTuple):
    """What Grad-CAM explains of a model: ``layer``, its dotted name, and ``reshape``, from its output to a map."""

    layer: str
    reshape: Reshape


# Where the head begins, by the names that torchvision and timm give its modules and by their types.
_HEADS = ("avgpool", "attn_pool", "pre_logits", "fc_norm", "head_drop", "head", "heads", "dropout", "classifier", "fc")
_HEAD_TYPES = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
# Auxiliary classifiers, which the logits do not read.
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


def find_target(model: nn.Module) -> Target:
    """The family's target: the last map before the pool, or what the last attention reads if a class token is read.

    Raises ValueError, naming what to give, for a model that is built like none of the families.
    """
    layer, prefix = _class_token_layer(model) or (_last_map(model), getattr(model, "num_prefix_tokens", 0))
    channels_last = getattr(model, "output_fmt", "") == "NHWC" or _is_channels_last(model, model.get_submodule(layer))
    return Target(layer, ToMap(prefix, *_grid(model), channels_last))


def _class_token_layer(model: nn.Module) -> tuple[str, int] | None:
    """The layer and its prefix tokens in a model whose logits read a class token; None for other models.

    Not the last block: of its output only the class token is read.
    """
    kind = type(model).__name__
    if kind == "VisionTransformer" and hasattr(model, "encoder"):  # torchvision's
        return f"{_last_child('encoder.layers', model)}.ln_1", 1
    if getattr(model, "global_pool", "") != "token":
        return None
    if kind == "CoaT":
        return f"{_last_child('serial_blocks4', model)}.norm1", 1
    if kind == "CrossVit":
        return f"{_last_child(_last_child('blocks', model) + '.fusion', model)}.norm1", 1
    if kind == "PoolingVisionTransformer":
        return f"{_last_child(_last_child('transformers', model) + '.blocks', model)}.norm1", 1
    if kind == "VOLO":
        return _last_child("network", model), 0
    if kind == "TNT":
        return f"{_last_child('blocks', model)}.norm_out", 1
    if hasattr(model, "blocks_token_only") or hasattr(model, "cls_attn_blocks"):  # attention to patches comes after
        return _last_child("blocks", model), 0
    if hasattr(model, "blocks"):
        return _before_last_attention(model), model.num_prefix_tokens
    return None


def _before_last_attention(model: nn.Module) -> str:
    """The norm that the last block begins with, or the block before it if it begins otherwise."""
    last = _last_child("blocks", model)
    first, _ = next(model.get_submodule(last).named_children())
    return f"{last}.{first}" if "norm" in first else f"blocks.{len(model.blocks) - 2}"


def _last_map(model: nn.Module) -> str:
    """The last module before the head that is more than Identity."""
    children = dict(model.named_children())
    names = list(children)
    if "denseblock4" in dict(children.get("features", model).named_children()) and "global_pool" not in names:
        return "features.denseblock4"  # torchvision's: the norm after it is followed by an in-place ReLU
    if type(model).__name__.endswith("VitClassifier"):
        return "encoder"  # the norm after it comes after the pool
    head = next((name for name in ("global_pool", *names) if name in names and _begins_head(name, children[name])), "")
    before = [name for name in names[: names.index(head)] if _makes_maps(name, children[name])] if head else []
    if not before or hasattr(model, "base_model_prefix"):  # Hugging Face's bases return no map
        raise ValueError(
            f"GradCAM.auto must know where a model's head begins, got {type(model).__name__} of "
            f"{', '.join(names) or 'no modules'}; "
            "give GradCAM(model, target_layer), the module that makes the last map [B, C, H, W]"
        )
    # A list is never called itself, and models of patches may go through their blocks one by one.
    patches = hasattr(model, "patch_embed") or hasattr(model, "num_prefix_tokens")
    steps = nn.ModuleList | nn.Sequential if patches else nn.ModuleList
    return _last_child(before[-1], model) if isinstance(children[before[-1]], steps) else before[-1]


def _begins_head(name: str, child: nn.Module) -> bool:
    return name == "global_pool" or name in _HEADS or isinstance(child, _HEAD_TYPES)


def _makes_maps(name: str, child: nn.Module) -> bool:
    return name not in _AUXILIARY and not isinstance(child, nn.Identity)


def _is_channels_last(model: nn.Module, layer: nn.Module) -> bool:
    """Whether the layer normalises the last dimension of a map."""
    if type(model).__name__ == "VOLO":
        return True
    return isinstance(layer, nn.LayerNorm) and not type(layer).__name__.endswith("2d")


def _grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches; equal where the model does not tell."""
    rows, columns = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (1, 1)
    shared = math.gcd(rows, columns)
    return rows // shared, columns // shared


def _last_child(name: str, model: nn.Module) -> str:
    """The dotted name of the last child of a module."""
    return f"{name}.{list(model.get_submodule(name)._modules)[-1]}"
