"""Images as a model sees them in evaluation: resized, cut in the middle, normalised; boxes and masks follow.

The augmented views of an image are decided by the seed and the image's index alone, so that every method is measured on
the same views.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from cgc_kernels import CropFlip

from . import workers as loading
from .data import CorruptImage, Data, Images
from .explained import BATCH
from .views import generator, original_view, random_crops


class EvaluationBatch(NamedTuple):
    """Images of a split as a model sees them: normalised, [B, 3, S, S].

    masks: bool [B, S, S], the labelled objects' pixels; nowhere true where they are not known. distractors: int64 [B],
    another class that is in the image, -1 if none is known; distractor_masks: its object's pixels, likewise.
    more: [B, V, 3, S, S], further augmented views; more_crops: int64 [B, V, 5], how they were cut.
    """

    original: Tensor
    augmented: Tensor
    crops: CropFlip
    labels: Tensor
    boxes: Tensor
    box_counts: Tensor
    corrupt: Tensor
    masks: Tensor
    distractors: Tensor
    distractor_masks: Tensor
    more: Tensor
    more_crops: Tensor

    def to(self, device: torch.device) -> "EvaluationBatch":
        """The same on a device."""
        return EvaluationBatch(*(field.to(device) for field in self))


def batches(
    images: Images, indices: Sequence[int], data: Data, *, seed: int, stream: str, workers: int = 0, more: int = 0
) -> Iterator[EvaluationBatch]:
    """The images of these indices, normalised, with their augmented views and ``more`` further ones; on the CPU."""
    crops = evaluation_crops(len(images), data.image_size, seed, stream, 1 + more)
    prepared = _Prepared(images, list(indices), data.image_size, data.strict)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    for number, items in enumerate(loading.load(prepared, batch_size=BATCH, num_workers=workers)):
        own = torch.as_tensor(prepared.indices[number * BATCH : number * BATCH + len(items)])
        original = torch.stack([item.image for item in items])
        chosen = [CropFlip(*(field[own] for field in view)) for view in crops]
        augmented, *others = [(view.apply(original) - mean) / std for view in chosen]
        for item in items:
            _report(item.problem)
        yield EvaluationBatch(
            (original - mean) / std,
            augmented,
            chosen[0],
            torch.tensor([item.label for item in items]),
            torch.cat([item.boxes for item in items]),
            torch.tensor([len(item.boxes) for item in items]),
            torch.tensor([bool(item.problem) for item in items]),
            torch.stack([item.mask for item in items]),
            torch.tensor([item.distractor for item in items]),
            torch.stack([item.distractor_mask for item in items]),
            torch.stack(others, 1) if others else original[:, None][:, :0],
            torch.stack([view.rows() for view in chosen], 1)[:, 1:],
        )


def evaluation_crops(count: int, size: int, seed: int, stream: str, views: int = 1) -> list[CropFlip]:
    """The augmented views of a split, the same whenever and for whichever method it is evaluated."""
    source = generator(seed, stream)
    return [random_crops(count, size, source) for _ in range(views)]


def boxes_in_view(boxes: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Where boxes [n, 4] of an image of ``size`` (width, height) lie in its evaluation view of ``side`` pixels.

    Cut to the view; boxes that lie wholly outside are left out.
    """
    width, height = size
    resized = resized_size(width, height, side)
    scale = torch.tensor([resized[0] / width, resized[1] / height] * 2)
    offset = torch.tensor([round((length - side) / 2.0) for length in resized] * 2)
    moved = (boxes * scale - offset).clamp(0, side)
    return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


def mask_in_view(mask: Tensor, side: int) -> Tensor:
    """A mask [H, W] of an image's pixels in its evaluation view, moved as its boxes are: bool [side, side]."""
    width, height = resized_size(*mask.shape[::-1], side)
    top, left = (round((length - side) / 2.0) for length in (height, width))
    resized = interpolate(mask[None, None].float(), (height, width), mode="nearest-exact")[0, 0] > 0
    return resized[top : top + side, left : left + side]


def resized_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height after the shorter side became ``side`` * 256 / 224, as torchvision's Resize rounds them."""
    shorter = round(side * 256 / 224)
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


class _Item(NamedTuple):
    image: Tensor
    label: int
    boxes: Tensor
    problem: str
    mask: Tensor
    distractor_mask: Tensor
    distractor: int


class _Prepared(Dataset):
    """Evaluation views as tensors, each with its boxes; a grey image of label 0 stands for one that cannot be read."""

    def __init__(self, images: Images, indices: list[int], side: int, strict: bool):
        self.images, self.indices, self.side, self.strict = images, indices, side, strict

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, numbers: list[int]) -> list[_Item]:
        return [self._item(number) for number in numbers]

    def _item(self, number: int) -> _Item:
        try:
            image, label, boxes, _, mask, distractor, distractor_mask = self.images[self.indices[number]]
            problem = ""
        except CorruptImage as error:
            if self.strict:
                raise
            image, label, boxes = torch.full((3, self.side, self.side), 0.5), 0, torch.zeros(0, 4)
            mask, distractor, distractor_mask, problem = None, -1, None, str(error)
        masks = [mask, distractor_mask]
        if not isinstance(image, Tensor):
            boxes = boxes_in_view(boxes, image.size, self.side)
            masks = [None if own is None else mask_in_view(own, self.side) for own in masks]
        nowhere = torch.zeros(self.side, self.side, dtype=torch.bool)
        masks = [nowhere if own is None else own for own in masks]
        return _Item(as_tensor(original_view(image, self.side)), label, boxes, problem, *masks, distractor)


def as_tensor(image) -> Tensor:
    """A PIL RGB image as float32 [3, H, W] in [0, 1]; a tensor as it is."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


_reported: set[str] = set()


def _report(problem: str) -> None:
    """Name an unreadable image, once."""
    if problem and problem not in _reported:
        _reported.add(problem)
        print(f"{problem}; skipped", file=sys.stderr)
