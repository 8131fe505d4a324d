"""Stage contrast: rows, keys, positives -> loss; similarities live in tiles, [B, B] is never stored.

The operators take `count` samples from `first` on, against all: each rank of a group has its own, and one process has
them all. The backward is that of the mean of all row losses, and gives the gradients of those samples.
"""

import torch

from .library import StageOperators


def contrast(run, rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the logits <row_i, key_j> / temperature, j != i, against positives_i / temperature.

    rows, keys: [B, N]; positives: [B], float64. A batch of one has no negatives: loss 0.
    """
    return run(*_prepared(rows, keys, positives), 0, len(rows), temperature)


def row_losses(operators, rows, keys, positives, first: int, count: int, temperature: float) -> torch.Tensor:
    """Losses of `count` rows from `first` on, [count], float64; not differentiable."""
    return operators.contrast.default(*_prepared(rows, keys, positives), first, count, temperature)[1]


def row_gradients(operators, grad_loss, rows, keys, positives, row_losses, *share) -> tuple[torch.Tensor, ...]:
    """Gradients of the mean of all row losses, [B], with respect to the rows, keys and positives of a share: those of
    `count` samples from `first` on; share: first, count, temperature."""
    return operators.contrast_backward.default(grad_loss, *_prepared(rows, keys, positives), row_losses, *share)


def _prepared(rows, keys, positives):
    return rows.contiguous(), keys.contiguous(), positives.double().contiguous()


def _fake(rows, keys, positives, first, count, temperature):
    return rows.new_empty(()), rows.new_empty(count, dtype=torch.float64)


def _fake_backward(grad_loss, rows, keys, positives, row_losses, first, count, temperature):
    return tuple(tensor.new_empty(count, *tensor.shape[1:]) for tensor in (rows, keys, positives))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.first, ctx.count, ctx.temperature = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(operator, ctx, saved, grad_loss):
    if ctx.count != len(saved[0]):
        raise RuntimeError(
            "the loss of some of the rows must be differentiated by contrast_backward, with the losses of all, "
            f"got a backward of {ctx.count} rows of {len(saved[0])}"
        )
    return operator(grad_loss, *saved, ctx.first, ctx.count, ctx.temperature)


OPERATORS = StageOperators(
    "contrast",
    "(Tensor rows, Tensor keys, Tensor positives, SymInt first, SymInt count, float temperature) "
    "-> (Tensor loss, Tensor row_losses)",
    _fake,
    "(Tensor grad_loss, Tensor rows, Tensor keys, Tensor positives, Tensor row_losses, SymInt first, SymInt count, "
    "float temperature) -> (Tensor grad_rows, Tensor grad_keys, Tensor grad_positives)",
    _fake_backward,
    _setup_context,
    _backward,
)
