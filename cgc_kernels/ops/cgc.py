"""The three stages fused."""

import torch

from ..options import MSE, OBJECTIVES, Options, accumulation_dtype, contrasts
from ..transforms import CropFlip
from .cam import pools, prepare, spread, wanted
from .library import StageOperators
from .resample import STATE_MAPS, transform_tensors


def cgc(
    run,
    features: torch.Tensor,
    gradients: torch.Tensor,
    aug_features: torch.Tensor,
    aug_gradients: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """The whole loss from features [B, C, H, W] and gradients of both views, in one operator each way."""
    (height, width), temperature, weighting, objective, consistency, eps = options
    elementwise = weighting == "elementwise"
    return run(
        *prepare(features, gradients, elementwise),
        *prepare(aug_features, aug_gradients, elementwise),
        transform_tensors(transform),
        *(height, width, temperature, elementwise, OBJECTIVES.index(objective), consistency, eps),
    )


def saved_bytes(features: torch.Tensor, pooled: bool, objective: int) -> tuple[int, ...]:
    """Bytes of the parts of `saved`, in their order: what the backward needs beside the inputs, without padding.

    positives [B] and row_losses [B], float64; weights [2, B, C], only where `pooled`; heatmaps [2, B, H * W]; rows and
    keys, [B, H * W], if the objective contrasts them; state [B, 3, H * W], float64 for mse. All others are of the
    accumulators' dtype. The same in csrc/common/operators/cgc.h.
    """
    batch, channels, height, width = features.shape
    item = accumulation_dtype(features).itemsize
    maps = batch * height * width * item
    weights = 2 * batch * channels * item if pooled else 0
    rows = maps if contrasts(objective) else 0
    state = maps * 8 // item if objective == MSE else maps
    return 8 * batch, 8 * batch, weights, 2 * maps, rows, rows, STATE_MAPS * state


def _fake(features, gradients, aug_features, aug_gradients, transform, *settings):
    elementwise, objective = settings[3], settings[4]
    size = sum(saved_bytes(features, pools(gradients, elementwise), objective))
    return features.new_empty((), dtype=accumulation_dtype(features)), features.new_empty(size, dtype=torch.uint8)


def _fake_backward(grad_loss, features, gradients, aug_features, aug_gradients, *rest):
    tensors = (features, gradients, aug_features, aug_gradients)
    return tuple(wanted(t, bool(rest[-1] >> i & 1)) for i, t in enumerate(tensors))


def _setup_context(ctx, inputs, output):
    features, gradients, aug_features, aug_gradients, transform = inputs[:5]
    ctx.settings = inputs[5:]
    if pools(gradients, ctx.settings[3]):
        ctx.pooled = gradients.shape, gradients.dtype
        ctx.save_for_backward(features, aug_features, output[1], *transform)
    else:
        ctx.pooled = None
        ctx.save_for_backward(features, gradients, aug_features, aug_gradients, output[1], *transform)


def _backward(operator, ctx, tensors, grad_loss):
    need, pooled = ctx.needs_input_grad, ctx.pooled
    needs = need[0] + 2 * need[1] + 4 * need[2] + 8 * need[3]
    if pooled:
        features, aug_features, saved = tensors[:3]
        gradients, aug_gradients = _weights(saved, features)
        views, transform = (features, gradients, aug_features, aug_gradients), tensors[3:]
    else:
        views, saved, transform = tensors[:4], tensors[4], tensors[5:]
    grads = operator(grad_loss, *views, list(transform), saved, *ctx.settings, needs)
    if needs == 15 and not pooled:
        return grads
    return tuple(
        None if not need[i] else spread(grad, *pooled) if pooled and i % 2 else grad for i, grad in enumerate(grads)
    )


def _weights(saved: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The weights of both views, [B, C] each, as they lie in `saved`."""
    batch, channels = features.shape[:2]
    dtype = accumulation_dtype(features)
    part = saved.narrow(0, 16 * batch, 2 * batch * channels * dtype.itemsize)
    return part.view(dtype).view(2, batch, channels).unbind(0)


_SETTINGS = "int height, int width, float temperature, bool elementwise, int objective, float consistency, float eps"
_VIEWS = "Tensor features, Tensor gradients, Tensor aug_features, Tensor aug_gradients, Tensor[] transform"
OPERATORS = StageOperators(
    "cgc",
    f"({_VIEWS}, {_SETTINGS}) -> (Tensor loss, Tensor saved)",
    _fake,
    f"(Tensor grad_loss, {_VIEWS}, Tensor saved, {_SETTINGS}, int needs) "
    "-> (Tensor grad_features, Tensor grad_gradients, Tensor grad_aug_features, Tensor grad_aug_gradients)",
    _fake_backward,
    _setup_context,
    _backward,
)
