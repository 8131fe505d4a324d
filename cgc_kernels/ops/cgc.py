"""The three stages fused."""

import functools

import torch

from ..options import OBJECTIVES, Options
from ..transforms import CropFlip
from .cam import fake_cam, pools, prepare, spread, wanted
from .library import Namespace
from .resample import fake_rows, pack


def define(namespace: Namespace):
    """Define the operators; returns the loss as a function."""
    backward = namespace.define("cgc_backward", _BACKWARD_SCHEMA, _fake_backward)
    return functools.partial(
        cgc, namespace.define("cgc", _SCHEMA, _fake, _setup_context, functools.partial(_backward, backward))
    )


def cgc(
    operator,
    features: torch.Tensor,
    gradients: torch.Tensor,
    aug_features: torch.Tensor,
    aug_gradients: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """The whole loss from features [B, C, H, W] and gradients of both views, in one operator each way."""
    weighting = options.weighting
    views = (*prepare(features, gradients, weighting), *prepare(aug_features, aug_gradients, weighting))
    settings = (
        *options.image_size,
        options.temperature,
        weighting == "elementwise",
        OBJECTIVES.index(options.objective),
        options.consistency,
        options.eps,
    )
    return operator(*views, pack(transform), *settings)[0]


def _fake(features, gradients, aug_features, aug_gradients, transform, *settings):
    elementwise, objective = settings[3], settings[4]
    heatmaps, weights = fake_cam(features, gradients, elementwise)
    rows, keys, positives, state = fake_rows(heatmaps, objective)
    loss = heatmaps.new_empty(())
    row_losses = torch.empty_like(positives)
    return loss, _both(heatmaps), _both(weights), rows, keys, positives, row_losses, state


def _both(view):
    return view.new_empty((2, *view.shape))


def _fake_backward(grad_loss, features, gradients, aug_features, aug_gradients, *rest):
    needs = rest[-1]
    tensors = (features, gradients, aug_features, aug_gradients)
    return tuple(wanted(t, bool(needs >> i & 1)) for i, t in enumerate(tensors))


def _setup_context(ctx, inputs, output):
    features, gradients, aug_features, aug_gradients, transform, *ctx.settings = inputs
    _, heatmaps, weights, *saved = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.spreads = pools(gradients, ctx.settings[3])
    ctx.like = (gradients.shape, gradients.dtype)
    if ctx.spreads:
        gradients, aug_gradients = weights.unbind(0)
    ctx.save_for_backward(features, gradients, aug_features, aug_gradients, transform, heatmaps, *saved)


def _backward(operator, ctx, grad_loss, *_):
    wanted = ctx.needs_input_grad[:4]
    needs = sum(1 << i for i, want in enumerate(wanted) if want)
    grads = list(operator(grad_loss, *ctx.saved_tensors, *ctx.settings, needs))
    for i, want in enumerate(wanted):
        if not want:
            grads[i] = None
        elif ctx.spreads and i % 2:
            grads[i] = spread(grads[i], *ctx.like)
    return *grads, None, *(None for _ in ctx.settings)


_SETTINGS = "int height, int width, float temperature, bool elementwise, int objective, float consistency, float eps"
_VIEWS = "Tensor features, Tensor gradients, Tensor aug_features, Tensor aug_gradients, Tensor transform"
_SAVED = "Tensor heatmaps, Tensor rows, Tensor keys, Tensor positives, Tensor row_losses, Tensor state"
_SCHEMA = (
    f"({_VIEWS}, {_SETTINGS}) -> (Tensor loss, Tensor heatmaps, Tensor weights, Tensor rows, Tensor keys, "
    "Tensor positives, Tensor row_losses, Tensor state)"
)
_BACKWARD_SCHEMA = (
    f"(Tensor grad_loss, {_VIEWS}, {_SAVED}, {_SETTINGS}, int needs) "
    "-> (Tensor grad_features, Tensor grad_gradients, Tensor grad_aug_features, Tensor grad_aug_gradients)"
)
