"""Stage contrast: rows, keys, positives -> loss; similarities live in tiles, [B, B] is never stored."""

import functools

import torch

from .library import Namespace


def define(namespace: Namespace):
    """Define the stage's operators; returns the stage as a function."""
    backward = namespace.define("contrast_backward", _BACKWARD_SCHEMA, _fake_backward)
    return functools.partial(
        contrast, namespace.define("contrast", _SCHEMA, _fake, _setup_context, functools.partial(_backward, backward))
    )


def contrast(
    operator, rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean cross-entropy of the logits <row_i, key_j> / temperature, j != i, against positives_i / temperature.

    rows, keys: [B, N]; positives: [B], float64. A batch of one has no negatives: loss 0.
    """
    return operator(rows.contiguous(), keys.contiguous(), positives.double().contiguous(), temperature)[0]


def _fake(rows, keys, positives, temperature):
    return rows.new_empty(()), rows.new_empty(rows.shape[0], dtype=torch.float64)


def _fake_backward(grad_loss, rows, keys, positives, row_losses, temperature):
    return torch.empty_like(rows), torch.empty_like(keys), torch.empty_like(positives)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.temperature = inputs
    row_losses = output[1]
    ctx.mark_non_differentiable(row_losses)
    ctx.save_for_backward(*tensors, row_losses)


def _backward(operator, ctx, grad_loss, _):
    return *operator(grad_loss, *ctx.saved_tensors, ctx.temperature), None


_SCHEMA = "(Tensor rows, Tensor keys, Tensor positives, float temperature) -> (Tensor loss, Tensor row_losses)"
_BACKWARD_SCHEMA = (
    "(Tensor grad_loss, Tensor rows, Tensor keys, Tensor positives, Tensor row_losses, float temperature) "
    "-> (Tensor grad_rows, Tensor grad_keys, Tensor grad_positives)"
)
