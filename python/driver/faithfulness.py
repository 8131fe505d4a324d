"""Insertion and deletion (Petsiuk et al., RISE, BMVC 2018): does the class depend on the pixels a heatmap points at?

Pixels go in the order of the heatmap, the hottest first, as many at a step as eight rows have: 28 steps at 224.
Deletion sets them to 0 in the normalised image (the mean colour); insertion puts them into a blurred image. The score
is the softmax of the class predicted on the full image, and the area under it by trapezoids: low is good in deletion,
high in insertion. Everything runs in eval mode; the released code of CGC runs Grad-CAM in train mode here.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, softmax

KERNEL, SIGMA = 11, 5.0
ROWS_A_STEP = 8  # 1792 px at 224
FORWARD_BATCH = 128


def insertion_deletion(model: nn.Module, images: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Scores at every step.

    Args:
        model: in eval mode, images -> logits [B, K].
        images: normalised, [N, 3, S, S].
        heatmaps: fine, [N, S, S]. Of pixels equally hot the first in reading order goes first.

    Returns:
        Insertion and deletion scores, each [N, steps + 1]: before the first step, and after each.

    Raises:
        RuntimeError: the model is in train mode.

    Example:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
        >>> insertion_deletion(net, torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16))[0].shape
        torch.Size([2, 3])
    """
    if model.training:
        raise RuntimeError("model must be in eval mode, got one in train mode")
    with torch.no_grad():
        classes = model(images).argmax(1)
        order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
        ranks = order.argsort(dim=1).reshape(heatmaps.shape)
        gone = torch.zeros_like(images)
        insertion = _scores(model, blur(images), images, ranks, classes)
        deletion = _scores(model, images, gone, ranks, classes)
    return insertion, deletion


def area_under(scores: Tensor) -> Tensor:
    """Area under scores [N, steps + 1] by trapezoids, the whole path being 1 long: [N]."""
    return torch.trapezoid(scores, dim=1) / (scores.shape[1] - 1)


def blur(images: Tensor) -> Tensor:
    """RISE's blur of [N, 3, S, S]: a Gaussian of sigma 5 folded into 11 x 11, zero beyond the border."""
    from scipy.ndimage import gaussian_filter  # here, for the few trainings that ask for it

    impulse = np.zeros((KERNEL, KERNEL))
    impulse[KERNEL // 2, KERNEL // 2] = 1
    kernel = torch.from_numpy(gaussian_filter(impulse, SIGMA)).to(images).expand(images.shape[1], 1, -1, -1)
    return conv2d(images, kernel, padding=KERNEL // 2, groups=images.shape[1])


def _scores(model, start: Tensor, finish: Tensor, ranks: Tensor, classes: Tensor) -> Tensor:
    """Softmax of the classes [N] while pixels of ``start`` are replaced by those of ``finish`` in order of rank."""
    pixels = ranks[0].numel()
    step = ROWS_A_STEP * ranks.shape[-1]
    done = torch.arange(0, pixels + step, step, device=ranks.device).clamp(max=pixels)
    rows = []
    for image, other, rank, label in zip(start, finish, ranks, classes, strict=True):
        changed = (rank < done[:, None, None])[:, None]
        steps = torch.where(changed, other, image)
        logits = torch.cat([model(part) for part in steps.split(FORWARD_BATCH)])
        rows.append(softmax(logits.float(), 1)[:, label])
    return torch.stack(rows)
