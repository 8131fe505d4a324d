"""What a model says about the images of a split: all that a report is made of, saved as it is."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgc_kernels import CropFlip

BATCH = 100  # images explained or measured at once; a multiple of metrics.TWIN_BATCH


class Explained(NamedTuple):
    """What a model says about N images, on the CPU. Heatmaps are coarse, float32 [N, H, W].

    Attributes:
        predicted: int64 [N], the class with the largest logit.
        ranks: int64 [N], how many classes come before the label.
        heatmaps: of the original views, for the labelled class.
        aug_heatmaps: of the augmented views, for the same class.
        runner_up_heatmaps: of the original views, for the class with the largest logit but the label.
        distractor_heatmaps: of the original views, for the distractor's class; zero where there is none.
        norms: of the original views, for no class: the channel norms of the features; zero where they are not known.
        centred_heatmaps: of the original views, for the labelled class's logit less the mean of all: as a classifier
            of the same predictions would have it; zero where they are not known.
        labels: int64 [N].
        crops: int64 [N, 5], the augmented views: top, left, height, width, flip.
        more_heatmaps: [N, V, H, W] of V further augmented views, for the labelled class.
        more_crops: int64 [N, V, 5], these views.
        boxes: float32 [T, 4] of all images, one after the other, in pixels of the view.
        box_counts: int64 [N], how many of them are each image's.
        masks: the labelled objects' pixels as :func:`packed` makes them, nowhere true where they are not known; of no
            image known, [N, 0, 0].
        distractors: int64 [N], another class that is in the image, -1 if none is known.
        distractor_masks: its object's pixels, likewise.
        groups: int64 [N], number of the object that is shown; images of one object are not independent.
        corrupt: bool [N], images that could not be read; nothing else of them counts.
        insertion, deletion: float64 [M, steps + 1], scores of the first M images; M = 0 if not asked for.
        image_size: side of the view in pixels.
    """

    predicted: Tensor
    ranks: Tensor
    heatmaps: Tensor
    aug_heatmaps: Tensor
    runner_up_heatmaps: Tensor
    distractor_heatmaps: Tensor
    norms: Tensor
    centred_heatmaps: Tensor
    labels: Tensor
    crops: Tensor
    more_heatmaps: Tensor
    more_crops: Tensor
    boxes: Tensor
    box_counts: Tensor
    masks: Tensor
    distractors: Tensor
    distractor_masks: Tensor
    groups: Tensor
    corrupt: Tensor
    insertion: Tensor
    deletion: Tensor
    image_size: int

    @property
    def crop_flip(self) -> CropFlip:
        """The augmented views as the loss takes them."""
        return CropFlip.from_rows(self.crops)

    @property
    def more_views(self) -> list[tuple[Tensor, CropFlip]]:
        """Heatmaps and crops of the further views."""
        crops = [CropFlip.from_rows(rows) for rows in self.more_crops.unbind(1)]
        return list(zip(self.more_heatmaps.unbind(1), crops, strict=True))

    def select(self, indices: Tensor) -> "Explained":
        """These images, in ascending order; insertion and deletion are left as they are."""
        chosen = torch.zeros(len(self.labels), dtype=torch.bool)
        chosen[indices] = True
        boxes = self.boxes[torch.repeat_interleave(chosen, self.box_counts)]
        whole = ("boxes", "insertion", "deletion", "image_size")
        columns = {name: value[chosen] for name, value in self._asdict().items() if name not in whole}
        return self._replace(boxes=boxes, **columns)

    def batches(self, size: int = BATCH) -> Iterator["Explained"]:
        """All images, so many at a time."""
        for start in range(0, len(self.labels), size):
            yield self.select(torch.arange(start, min(start + size, len(self.labels))))


def packed(masks: Tensor) -> Tensor:
    """Masks bool [N, S, S] as bits, uint8 [N, S, S / 8 rounded up], on the CPU."""
    return torch.from_numpy(np.packbits(masks.cpu().numpy(), axis=2))


def unpacked(bits: Tensor, size: int) -> Tensor | None:
    """The masks bool [N, size, size] that were packed; None where only their number was kept, [N, 0, 0]."""
    if not bits.numel():
        return None
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=2, count=size)).bool()
