"""How many samples are worked on at a time: a temporary stays small beside the features."""

import torch

# A GPU is idle between launches: it takes larger chunks.
_LARGER = 4


def samples(elements: int, each: int, device: torch.device) -> int:
    """How many samples of `each` elements fit a chunk of `elements` on the CPU, of four times as many elsewhere."""
    return max(1, elements * (1 if device.type == "cpu" else _LARGER) // each)
