"""Stage contrast: rows, keys, positives -> loss, a block of rows at a time; [B, B] is never kept."""

import torch

from ... import double_backward

# Elements of one block of similarities: few beside a feature tensor; on a GPU as many as hide the launches.
CHUNK_ELEMENTS = 1 << 20
GPU_CHUNK_ELEMENTS = 1 << 24


def contrast(rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the logits <row_i, key_j> / temperature, j != i, against positives_i / temperature.

    rows, keys: [B, N]; positives: [B]. A batch of one has no negatives: loss 0.
    """
    if torch.compiler.is_compiling():
        return _Contrast.apply(rows, keys, positives, temperature)[0]
    return double_backward.apply(_ContrastBothModes, rows, keys, positives, temperature)[0]


def row_losses(
    rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, first: int, count: int, temperature: float
) -> torch.Tensor:
    """Cross-entropy of `count` rows from `first` on, against all keys: [count]. Logits are taken relative to the
    positive, whose own is then 0."""
    losses = []
    for begin, end in _blocks(rows, first, first + count, len(rows)):
        scaled = {"beta": -1 / temperature, "alpha": 1 / temperature}
        logits = torch.addmm(positives[begin:end, None], rows[begin:end], keys.T, **scaled)
        logits.diagonal(begin).zero_()
        losses.append(logits.logsumexp(dim=1))
    return _joined(losses)


def gradients(
    grad_loss: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    positives: torch.Tensor,
    row_losses: torch.Tensor,
    first: int,
    count: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the mean of all row losses [B] with respect to `count` rows, keys and positives from `first` on.

    A similarity's weight is its probability among the logits of its row, times grad_loss / (temperature B).
    """
    batch, own = len(rows), slice(first, first + count)
    scale = 1 / (temperature * batch)
    offsets = torch.add(row_losses, positives, alpha=1 / temperature)

    def weights(begin, end, columns):
        logits = torch.addmm(offsets[begin:end, None], rows[begin:end], columns.T, beta=-1, alpha=1 / temperature)
        return logits.exp_().mul_(grad_loss)

    grad_rows, grad_positives, grad_keys = [], [], None
    for begin, end in _blocks(rows, first, first + count, batch):
        block = weights(begin, end, keys)
        block.diagonal(begin).zero_()
        grad_rows.append(torch.addmm(rows[begin:end], block, keys, beta=0, alpha=scale))
        grad_positives.append(block.sum(dim=1).mul_(-scale))
        grad_keys = _add_product(grad_keys, block[:, own].T, rows[begin:end], scale)
    for others in ((0, first), (first + count, batch)):
        for begin, end in _blocks(rows, *others, count):
            grad_keys = _add_product(grad_keys, weights(begin, end, keys[own]).T, rows[begin:end], scale)
    return _joined(grad_rows), grad_keys, _joined(grad_positives)


class _Contrast(torch.autograd.Function):
    """The loss, and the row losses, which the backward starts from."""

    @staticmethod
    def forward(rows, keys, positives, temperature):
        losses = row_losses(rows, keys, positives, 0, len(rows), temperature)
        return losses.mean(), losses

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.temperature = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])
        ctx.save_for_forward(*tensors, output[1])

    @staticmethod
    def backward(ctx, grad_loss, _):
        if grad_loss is None:
            return None, None, None, None
        saved = ctx.saved_tensors
        with torch.no_grad():  # lest create_graph=True keep every block
            grads = gradients(grad_loss, *saved, 0, len(saved[0]), ctx.temperature)
        if torch.is_grad_enabled():
            grads = double_backward.refused(grads, (grad_loss, *saved))
        return *grads, None


class _ContrastBothModes(_Contrast):
    """In forward mode too, which Dynamo does not trace."""

    @staticmethod
    def jvp(ctx, *tangents):
        saved = ctx.saved_tensors
        grads = gradients(torch.ones_like(saved[2][0]), *saved, 0, len(saved[0]), ctx.temperature)
        return sum((g * t).sum() for g, t in zip(grads, tangents, strict=False) if t is not None), None


def _blocks(rows, begin, end, width):
    """Ranges of the rows begin .. end - 1 whose blocks of `width` similarities a row are of bounded size."""
    elements = CHUNK_ELEMENTS if rows.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    if begin == end:
        return []
    if (end - begin) * width <= elements:
        return [(begin, end)]
    step = max(1, elements // width)
    return [(first, min(first + step, end)) for first in range(begin, end, step)]


def _add_product(total, left, right, scale):
    """total + scale * left @ right; total: None for none."""
    if total is None:
        return torch.addmm(right[:1], left, right, beta=0, alpha=scale)
    return total.addmm_(left, right, alpha=scale)


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)
