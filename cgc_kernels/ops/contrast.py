"""Stage contrast: rows, keys, positives -> loss; similarities live in tiles, [B, B] is never stored."""

import torch

from .library import Stage


def contrast(run, rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the logits <row_i, key_j> / temperature, j != i, against positives_i / temperature.

    rows, keys: [B, N]; positives: [B], float64. A batch of one has no negatives: loss 0.
    """
    return run(rows.contiguous(), keys.contiguous(), positives.double().contiguous(), temperature)


def _fake(rows, keys, positives, temperature):
    return rows.new_empty(()), rows.new_empty(rows.shape[0], dtype=torch.float64)


def _fake_backward(grad_loss, rows, keys, positives, row_losses, temperature):
    return torch.empty_like(rows), torch.empty_like(keys), torch.empty_like(positives)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(operator, ctx, saved, grad_loss):
    return operator(grad_loss, *saved, ctx.temperature)


STAGE = Stage(
    "contrast",
    "(Tensor rows, Tensor keys, Tensor positives, float temperature) -> (Tensor loss, Tensor row_losses)",
    _fake,
    "(Tensor grad_loss, Tensor rows, Tensor keys, Tensor positives, Tensor row_losses, float temperature) "
    "-> (Tensor grad_rows, Tensor grad_keys, Tensor grad_positives)",
    _fake_backward,
    _setup_context,
    _backward,
)
