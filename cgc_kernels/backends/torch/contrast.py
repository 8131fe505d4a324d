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
    return double_backward.apply_eagerly(_ContrastBothModes, rows, keys, positives, temperature)[0]


def row_losses(
    rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, first: int, count: int, temperature: float
) -> torch.Tensor:
    """Cross-entropy of `count` rows from `first` on, against all keys: [count]. Logits are taken relative to the
    positive, whose own is then 0."""

    def block(begin, end, out):
        scaled = {"beta": -1 / temperature, "alpha": 1 / temperature}
        logits = torch.addmm(positives[begin:end, None], rows[begin:end], keys.T, **scaled)
        logits.diagonal(begin).zero_()
        return (torch.logsumexp(logits, dim=1, out=out),)

    (losses,) = _by_blocks(block, _blocks(rows, first, first + count, rows.shape[0]), positives[first : first + count])
    return losses


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
    batch, share = rows.shape[0], slice(first, first + count)
    scale = 1 / (temperature * batch)
    offsets = torch.add(row_losses, positives, alpha=1 / temperature)

    def weights(begin, end, columns):
        logits = torch.addmm(offsets[begin:end, None], rows[begin:end], columns.T, beta=-1, alpha=1 / temperature)
        return logits.exp_().mul_(grad_loss)

    grad_keys = None

    def block(begin, end, out, out_positives):
        nonlocal grad_keys
        given = weights(begin, end, keys)
        given.diagonal(begin).zero_()
        grad_keys = _add_product(grad_keys, given[:, share].T, rows[begin:end], scale)
        grad_rows = torch.addmm(rows[begin:end], given, keys, beta=0, alpha=scale, out=out)
        return grad_rows, torch.sum(given, dim=1, out=out_positives).mul_(-scale)

    blocks = _blocks(rows, first, first + count, batch)
    grad_rows, grad_positives = _by_blocks(block, blocks, rows[share], positives[share])
    for others in ((0, first), (first + count, batch)):
        for begin, end in _blocks(rows, *others, count):
            grad_keys = _add_product(grad_keys, weights(begin, end, keys[share]).T, rows[begin:end], scale)
    return grad_rows, grad_keys, grad_positives


class _Contrast(torch.autograd.Function):
    """The loss, and the row losses, which the backward starts from."""

    @staticmethod
    def forward(rows, keys, positives, temperature):
        losses = row_losses(rows, keys, positives, 0, rows.shape[0], temperature)
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
            grads = gradients(grad_loss, *saved, 0, saved[0].shape[0], ctx.temperature)
        if torch.is_grad_enabled():
            grads = double_backward.refused(grads, (grad_loss, *saved))
        return *grads, None


class _ContrastBothModes(_Contrast):
    """In forward mode too, which Dynamo does not trace."""

    @staticmethod
    def jvp(ctx, *tangents):
        saved = ctx.saved_tensors
        grads = gradients(torch.ones_like(saved[2][0]), *saved, 0, saved[0].shape[0], ctx.temperature)
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


def _by_blocks(function, blocks, *like):
    """Results of function(begin, end, *out) for all blocks, each like one of `like`.

    Of several blocks they go to parts of one tensor: small ones, made between large temporaries, would keep the heap
    from using those again. The result of one block is its own.
    """
    if len(blocks) == 1:
        return function(*blocks[0], *[None] * len(like))
    results = [torch.empty_like(tensor) for tensor in like]
    sizes = [end - begin for begin, end in blocks]
    for (begin, end), *out in zip(blocks, *(result.split(sizes) for result in results), strict=True):
        function(begin, end, *out)
    return results


def _add_product(total, left, right, scale):
    """total + scale * left @ right; total: None for none."""
    if total is None:
        return torch.addmm(right[:1], left, right, beta=0, alpha=scale)
    return total.addmm_(left, right, alpha=scale)
