"""Stage contrast: rows, keys, positives -> loss."""

import torch
import torch.nn.functional as F


def contrast(rows: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of the logits <row_i, key_j> / temperature, j != i, against positives_i / temperature.

    Equation 3 of CGC when the keys are the augmented maps and the rows the transformed originals; the released code
    when both are the augmented maps. rows, keys: [B, N]; positives: [B]. A batch of one has no negatives: loss 0.
    [B, B] is stored, and each of the W ranks of a group contrasts the samples of all: W times the work.
    """
    similarities = (rows.double() @ keys.double().T).to(rows.dtype)  # over S^2 terms float32 would lose two digits
    logits = similarities.diagonal_scatter(positives) / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
