"""Grad-CAM by ``torch.autograd.grad`` of a logit, for any model; in eager mode, whatever is compiled around it.

Imported where it is first needed: ``torch.compiler.disable`` imports torch._dynamo, which takes a second.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tensors import full_precision
from ..tracing import skipped_frame
from . import compiled_parts, model_checks
from .layer_checks import check_map, is_map_read, name_working_layer
from .logits import choose_target
from .output import CAM, GradCAMOutput
from .views import image_size
from .wrapped_model import WrappedModel

_REASON = "autograd.grad of a part of the model needs eager mode; see GradCAM.gradient_path"


# This frame alone is skipped, so that it can ask what is compiled with; all that it calls is skipped whole.
@skipped_frame(_REASON)
def explain(
    cam: WrappedModel, view: Tensor, target: Tensor | None, batch: int | None = None, repeats: int = 1
) -> tuple[GradCAMOutput, Tensor]:
    """As on the path in closed form."""
    return _explain(cam, view, target, batch, repeats, compiled_parts.current_backend())


@skipped_frame(_REASON)
def run(cam: WrappedModel, view: Tensor) -> Any:
    """What the model makes of an extra view, or the logits in it. What is compiled of the others is compiled of it, and
    no more: a graph of the whole model would change statistics of BatchNorm that their second backward needs."""
    backend = compiled_parts.current_backend()
    return cam.model(view) if backend is None else _run_in_parts(cam, view, backend)


@torch.compiler.disable(reason=_REASON)
def _run_in_parts(cam: WrappedModel, view: Tensor, backend: str | Callable) -> Tensor:
    with compiled_parts.compiled(cam.model, cam.target_layer, cam._capture.kept, backend):
        return cam._run(view, differentiate=False)[0]


@torch.compiler.disable(reason=_REASON)
def _explain(
    cam: WrappedModel,
    view: Tensor,
    target: Tensor | None,
    batch: int | None,
    repeats: int,
    backend: str | Callable | None,
) -> tuple[GradCAMOutput, Tensor]:
    model_checks.check_not_sharded(cam.model)
    attach = torch.is_grad_enabled()
    # The capture switches grad mode on in the middle of the model, the context puts it back however that ends.
    with torch.inference_mode(False), torch.set_grad_enabled(attach):
        view, target = _no_inference_tensor(view), _no_inference_tensor(target)
        with compiled_parts.compiled(cam.model, cam.target_layer, cam._capture.kept, backend):
            logits, features = cam._run(view, differentiate=True)
        target = choose_target(target, logits[:batch], repeats)
        score, unsure = _score(logits, target), cam.reshape is not None and not cam._map_is_read
        gradients = _gradients(score, features, attach, cam.target_layer, retain=unsure)
        if unsure:
            _check_map_is_read(cam, gradients, score, features, view)
    # Such a leaf is the capture's own stand-in for an output that needed no gradient.
    if not attach or (features.is_leaf and not view.requires_grad):
        features = features.detach()
    if cam.reshape is not None:
        features, gradients = cam.reshape(features), cam.reshape(gradients)
    check_map(features, view, cam.target_layer, cam.reshape, proven=False)
    output = GradCAMOutput(logits if attach else logits.detach(), CAM(features, gradients, image_size(view)))
    return output, target


def _no_inference_tensor(tensor: Tensor | None) -> Tensor | None:
    """A copy of an inference tensor, which autograd could not save; others as they are."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _score(logits: Tensor, target: Tensor) -> Tensor:
    """sum_b logits[b, target[b]], or sum_bk target[b, k] logits[b, k]"""
    if target.is_floating_point():
        return (logits[: len(target)] * target).sum()
    return logits[: len(target)].gather(1, target[:, None]).sum()


def _gradients(score: Tensor, features: Tensor, attach: bool, name: str, retain: bool) -> Tensor:
    """d score / d features, with a graph of its own where ``attach``; the score's graph stays where ``retain``."""
    gradients = None
    if score.requires_grad:
        # Autocast is for forwards: a backward inside it would cast what it should not.
        with full_precision(score):
            (gradients,) = torch.autograd.grad(
                score, features, create_graph=attach, retain_graph=attach or retain, allow_unused=True
            )
    if gradients is None:
        raise RuntimeError(
            f"the logits must depend on the output of target layer {name!r}, got no gradient to it; choose a layer "
            "that the logits are made from, with no detach or no_grad of the model in between"
        )
    return gradients


def _check_map_is_read(cam: WrappedModel, gradients: Tensor, score: Tensor, features: Tensor, view: Tensor) -> None:
    """Refuse a map that no logit reads; looked at until a gradient is not zero, usually in the first step."""
    is_read = is_map_read(gradients, score, features, cam.reshape)
    if is_read is False:
        other = name_working_layer(cam.model, view, features, cam.reshape)
        remedy = f"{other!r} works" if other else "choose an earlier layer"
        raise RuntimeError(
            f"the logits must read the map of target layer {cam.target_layer!r}, got a gradient that is zero "
            f"everywhere (of its output only what reshape drops is read, as a class token's); {remedy}"
        )
    cam._map_is_read = is_read is True
