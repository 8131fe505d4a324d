"""Views, and what the frozen stages make of them."""

import random
from types import SimpleNamespace
from typing import NamedTuple

import torch
from driver import models
from driver.data import cutouts
from torch import Tensor, nn

from cgc_kernels import RandomCropFlip

from . import sizes
from .networks import channels_last, network


class Views(NamedTuple):
    """Images of one split, of one seed.

    Attributes:
        frozen: [N, 1 + V, C, H, W], of the original and its V crops. crops: int64 [N, V, 5].
        labels, others: int64 [N], the object's class and the distractor's, -1 where there is none.
        masks, other_masks: bool [N, FINE, FINE]. boxes: float [N, 4], in pixels of the view. objects: N files.
    """

    frozen: Tensor
    crops: Tensor
    labels: Tensor
    others: Tensor
    masks: Tensor
    other_masks: Tensor
    boxes: Tensor
    objects: list[str]


def views(wanted: SimpleNamespace, seed: int, split: str, distractors: int = 0) -> Views:
    """From the file in --output, or made now; of the two-object images no crops."""
    path = wanted.output / f"{split}{'-two' * distractors}-{seed}.pt"
    if not path.exists():
        counts, how = {split: sizes.IMAGES[split]}, {"image_size": sizes.SIZE, "distractors": distractors}
        images = cutouts.make_splits(wanted.data_root, wanted.photographs, counts, seed, **how)[split]
        torch.save(tuple(_made(images, seed, 0 if distractors else sizes.CROPS if split == "train" else 1)), path)
    return Views(*torch.load(path, mmap=True))


def of_few_objects(images: Views, count: int, seed: int) -> Views:
    """The images of so many objects a class, drawn by the seed; of all objects where the count is 0."""
    if not count:
        return images
    draw, kept = random.Random(seed), set()
    for label in images.labels.unique().tolist():
        own = {name for name, its in zip(images.objects, images.labels.tolist(), strict=True) if its == label}
        kept |= set(draw.sample(sorted(own), min(count, len(own))))
    rows = torch.tensor([name in kept for name in images.objects])
    return Views(*(field[rows] for field in images[:-1]), [name for name in images.objects if name in kept])


@torch.no_grad()
def _made(images: cutouts.Cutouts, seed: int, crops: int) -> Views:
    torch.manual_seed(seed)
    trunk, rule = network(0)[0], RandomCropFlip(sizes.SIZE, scale=(0.4, 1))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in models.normalisation(models.LITE, True))
    empty, parts = torch.zeros(sizes.SIZE, sizes.SIZE, dtype=torch.bool), []
    for rows in torch.arange(len(images)).split(sizes.BATCH):
        samples = [images[row] for row in rows.tolist()]
        original = torch.stack([sample.image for sample in samples])
        cut = [rule(original) for _ in range(crops)]
        looked_at = [original, *(view for view, _ in cut)]
        places = [crop.rows() for _, crop in cut] or [torch.empty(len(rows), 0, 5, dtype=torch.int64)]
        beside = [empty if sample.distractor < 0 else sample.distractor_mask for sample in samples]
        fields = (
            torch.stack([_through(trunk, (view - mean) / std) for view in looked_at], 1),
            torch.stack(places, 1) if cut else places[0],
            torch.tensor([sample.label for sample in samples]),
            torch.tensor([sample.distractor for sample in samples]),
            _at_centres(torch.stack([sample.mask for sample in samples])),
            _at_centres(torch.stack(beside)),
            torch.cat([sample.boxes[:1] for sample in samples]),
        )
        parts.append(fields)
    return Views(*map(torch.cat, zip(*parts, strict=True)), [plan.object.path for plan in images.plans])


def _through(trunk: nn.Module, images: Tensor, at_once: int = 4) -> Tensor:
    """What the trunk makes of images, as few at once as a CPU's caches hold."""
    return torch.cat([trunk(channels_last(part)).contiguous() for part in images.split(at_once)])


def _at_centres(masks: Tensor) -> Tensor:
    step = sizes.SIZE // sizes.FINE
    return masks[:, step // 2 :: step, step // 2 :: step]
