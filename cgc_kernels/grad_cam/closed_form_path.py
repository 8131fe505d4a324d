"""Grad-CAM in closed form: its gradients are rows of the weight of a pooled linear head."""

from typing import Any

from torch import Tensor

from ..tensors import full_precision
from .layer_checks import check_features, check_map
from .logits import choose_target
from .output import CAM, GradCAMOutput
from .reshape import Reshape
from .views import image_size
from .wrapped_model import WrappedModel


def explain(
    cam: WrappedModel, view: Tensor, target: Tensor | None, batch: int | None = None, repeats: int = 1
) -> tuple[GradCAMOutput, Tensor]:
    """Logits and CAM of one view, and the target used; of the first ``repeats * batch`` samples, where several views of
    ``batch`` samples come as one."""
    logits, features = cam._run(view, differentiate=False)
    target = choose_target(target, logits[:batch], repeats)
    head, reshape = cam._head, cam.reshape
    weight = cam.model.get_submodule(head.linear).weight
    if hasattr(weight, "full_tensor"):
        raise RuntimeError(
            f"the weight of {head.linear} must be whole after the model's forward, got a sharded one; leave "
            "that layer to the root's fully_shard, without reshard_after_forward=True"
        )
    if reshape is None:
        check_features(features, view, cam.target_layer)
    gradients = _row_gradients(_rows(weight, target), features, head.pooled, reshape)
    if reshape is not None:
        features = reshape(features)
        check_map(features, view, cam.target_layer, reshape, proven=True)
    return GradCAMOutput(logits, CAM(features, gradients, image_size(view))), target


def run(cam: WrappedModel, view: Tensor) -> Any:
    """What the model makes of an extra view."""
    return cam.model(view)


def _rows(weight: Tensor, target: Tensor) -> Tensor:
    """Of the classes [B], or sums of them by weights [B, K], as exact as the weight is: not in autocast's precision."""
    if not target.is_floating_point():
        return weight[target]
    with full_precision(weight):
        return target.to(weight.dtype) @ weight.flatten(1)


def _row_gradients(rows: Tensor, features: Tensor, pooled: tuple[int, ...], reshape: Reshape | None) -> Tensor:
    """The gradients of logits whose rows of the weight are ``rows`` [B, C], as ``reshape`` gives them: [B, C] or, where
    reshape copies, [B, C, H, W]. ``features``: the target's output, averaged over the dimensions ``pooled``.
    Raises ValueError where it has others than those, the batch and the channels.
    """
    if features.ndim != 2 + len(pooled):
        raise ValueError(
            f"the output of the target layer must have {2 + len(pooled)} dimensions, of which {pooled} are averaged, "
            f"got {list(features.shape)}; give closed_form=False"
        )
    size = 1
    for dim in pooled:
        size = size * features.shape[dim]
    rows = rows.flatten(1) / size
    if reshape is None:
        return rows
    for dim in pooled:
        rows = rows.unsqueeze(dim)
    gradients = reshape(rows.expand(len(rows), *features.shape[1:]))
    return gradients[:, :, 0, 0] if gradients.stride()[2:] == (0, 0) else gradients
