"""Stage contrast: rows, keys, positives -> loss, a block of rows at a time; [B, B] is never kept."""

import torch
from torch.utils.checkpoint import checkpoint

# Elements of one block of similarities.
CHUNK_ELEMENTS = 1 << 20


def contrast(rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the logits <row_i, key_j> / temperature, j != i, against positives_i / temperature.

    rows, keys: [B, N]; positives: [B]. A batch of one has no negatives: loss 0.
    """
    batch = len(rows)
    step = max(1, CHUNK_ELEMENTS // batch)
    if step >= batch:
        return _block_sum(rows, keys, positives, 0, temperature) / batch
    total, first = 0, 0
    for block, block_positives in zip(rows.split(step), positives.split(step), strict=True):
        arguments = (block, keys, block_positives, first, temperature)
        total = total + checkpoint(_block_sum, *arguments, use_reentrant=False, preserve_rng_state=False)
        first += len(block)
    return total / batch


def _block_sum(rows, keys, positives, first, temperature):
    """Sum of the losses of rows first, first + 1, ...; logits are taken relative to the positive, which then is 0."""
    own = torch.arange(len(rows), device=rows.device)[:, None] + first
    similarities = (rows @ keys.T).scatter_(1, own, positives[:, None])
    return similarities.sub_(positives[:, None]).div_(temperature).logsumexp(dim=1).sum()
