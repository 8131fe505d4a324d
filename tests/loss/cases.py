"""What several files of this room use."""

import torch
import torch.nn.functional as F

from cgc_kernels import backends


def expected_aug(view, crop):
    """The augmented view from the record alone."""
    top, left, height, width, flip = (int(field) for field in crop)
    cut = view[..., top : top + height, left : left + width].double()
    aug = F.interpolate(cut[None], size=view.shape[-2:], mode="bilinear", align_corners=False)[0]
    return aug.flip(-1) if flip else aug


def stage(backend):
    return backends.choose(backend, torch.device("cpu")).resample


def random_maps(batch, side, seed=0, dtype=torch.float64):
    return torch.rand(2, batch, *side, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.05
