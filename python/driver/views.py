"""The views of an image: its crops at random, their exact application to images and heatmaps, and training batches.

Per image there are three views, as in the released code of CGC: the original (resized, central square), the augmented,
a random crop of the original whose place is recorded, and one more random crop of the whole image, for the
cross-entropy alone. Unlike there, a flip is recorded only where one was made.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset, Sampler

from cgc_kernels import CropFlip, RandomCropFlip

from . import workers
from .data import CorruptImage, DataError

SCALE = (0.4, 1.0)  # area of the crops that evaluation looks at, share of the image
STREAMS = ("train", "val", "test", "order", "unlabeled", "unlabeled order")


def generator(seed: int, stream: str, *more: int) -> Generator:
    """A CPU random state of its own for each seed, use (one of STREAMS), and whatever else is counted."""
    (mixed,) = np.random.SeedSequence([seed, STREAMS.index(stream), *more]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


def random_crops(batch: int, size: int, generator: Generator) -> CropFlip:
    """Draw the crops that evaluation looks at. Nothing is flipped: a mirrored digit is another sign.

    Args:
        batch: number of crops B.
        size: side of the square images in pixels.
        generator: CPU random state, advanced by the same amount whatever is drawn.

    Returns:
        CropFlip of int64 [B] tensors and bool flip [B], on the CPU.

    Example:
        >>> random_crops(8, 64, torch.Generator().manual_seed(0)).height.shape
        torch.Size([8])
    """
    rule = RandomCropFlip(size, scale=SCALE, p=0)
    numbers = torch.rand(4, batch, rule.tries, generator=generator, dtype=torch.float64)
    return drawn(rule, numbers, flip=torch.zeros(batch))


def drawn(rule: RandomCropFlip, numbers: Tensor, flip: Tensor, sizes: Sequence[Tensor] | None = None) -> CropFlip:
    """Crops by a rule, of square views or of images of these (heights, widths), int64 [B] each.

    numbers: float64 [4, B, T], uniform in [0, 1), for area, ratio, across and down; of the last two the first of T
    counts. flip: [B], likewise.
    """
    area, ratio, across, down = numbers
    return rule.from_uniform(area, ratio, down[:, 0], across[:, 0], flip, sizes)


def original_view(image: Image.Image | Tensor, size: int) -> Image.Image | Tensor:
    """The central `size` x `size` square of an image whose shorter side became size * 256 / 224; tensors stay."""
    if isinstance(image, Tensor):
        return image
    functional = _torchvision()
    return functional.center_crop(functional.resize(image, round(size * 256 / 224)), [size, size])


def _torchvision():
    """Its transforms of PIL images; imported where there are such images, since that takes seconds."""
    from torchvision.transforms import functional

    return functional


class Batch(NamedTuple):
    """Training images.

    Attributes:
        views: images [B, 3, S, S] by the names view, aug and extra. crops: aug's place in view.
        labels: int64 [B], -1 unlabeled. skipped: paths of unreadable images, each replaced by the next readable one.
        are_features: whether the views are features already, what a frozen part of the model makes of the images.
    """

    views: dict[str, Tensor]
    crops: CropFlip
    labels: Tensor
    skipped: list[str]
    are_features: bool = False

    def on(self, device: torch.device, data, channels_last: bool) -> "Batch":
        """The batch on a device, images normalised by the mean and std of `data`."""
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
        if device.type == "cuda":
            mean, std = (value.pin_memory().to(device, non_blocking=True) for value in (mean, std))

        def prepare(images: Tensor) -> Tensor:
            images = images.to(device, non_blocking=True)
            images = images.float().div(255) if images.dtype == torch.uint8 else images
            images = images if self.are_features else images.sub(mean).div(std)
            return (
                images.contiguous(memory_format=torch.channels_last) if channels_last and images.ndim == 4 else images
            )

        views = {name: prepare(images) for name, images in self.views.items()}
        labels = self.labels.to(device, non_blocking=True)
        return Batch(views, self.crops.to(device, non_blocking=True), labels, self.skipped, self.are_features)

    def parts(self, count: int) -> list["Batch"]:
        """The batch in `count` equal parts."""
        size = len(self.labels) // count

        def part(rows: slice) -> Batch:
            views = {name: images[rows] for name, images in self.views.items()}
            crops = CropFlip(*(field[rows] for field in self.crops))
            return Batch(views, crops, self.labels[rows], [], self.are_features)

        return [part(slice(i * size, (i + 1) * size)) for i in range(count)]


class TrainViews(Dataset):
    """The three views of training images. What is drawn depends on (seed, pass, index) alone: a training resumed in the
    middle of a pass, or with more workers or ranks, sees the same views. With --views N pass N sees those of pass 0.

    Args:
        images: items (image, label, ...), the image a PIL image or a float tensor [3, S, S].
        settings: has image_size, crop_scale, flip, views, strict and seed.
        stream: "train" or "unlabeled".
    """

    def __init__(self, images, settings, stream: str):
        self.images, self.stream = images, STREAMS.index(stream)
        self.size = settings.image_size
        self.rule = RandomCropFlip(self.size, scale=(settings.crop_scale, 1), p=settings.flip)
        self.seed, self.strict, self.views = settings.seed, settings.strict, settings.views

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """The batch of some (pass, index) pairs."""
        skipped: list[str] = []
        images, labels = zip(*(self._read(index, skipped) for _, index in keys), strict=True)
        numbers = torch.from_numpy(np.stack([self._numbers(*key) for key in keys]))
        flips = numbers[:, -2:].unbind(1)  # of aug, of extra
        boxes = numbers[:, :-2].view(-1, 2, 4, self.rule.tries).permute(1, 2, 0, 3)
        tensors = isinstance(images[0], Tensor)
        sizes = torch.tensor([image.shape[1:] if tensors else image.size[::-1] for image in images]).unbind(1)
        crops, more = drawn(self.rule, boxes[0], flips[0]), drawn(self.rule, boxes[1], flips[1], sizes)
        views = (self._from_tensors if tensors else self._from_photographs)(images, crops, more)
        return Batch(views, crops, torch.tensor(labels), skipped)

    def _numbers(self, done: int, index: int) -> np.ndarray:
        number = done % self.views if self.views else done
        return np.random.default_rng([self.seed, self.stream, number, index]).random(2 * 4 * self.rule.tries + 2)

    def _read(self, index: int, skipped: list[str]):
        """The image and its label, or those of the next that can be read."""
        for step in range(len(self.images)):
            try:
                image, label, *_ = self.images[(index + step) % len(self.images)]
                return image, int(label)
            except CorruptImage as error:
                if self.strict:
                    raise
                skipped.append(str(error))
        raise DataError("the data set must hold an image that can be read, got none")

    def _from_tensors(self, images: Sequence[Tensor], crops: CropFlip, more: CropFlip) -> dict[str, Tensor]:
        view = torch.stack(images)
        return {"view": view, "aug": crops.apply(view), "extra": more.apply(view)}

    def _from_photographs(self, images: Sequence[Image.Image], crops: CropFlip, more: CropFlip) -> dict[str, Tensor]:
        to_tensor = _torchvision().pil_to_tensor
        originals = [original_view(image, self.size) for image in images]
        views = {"view": originals, "aug": self._cut(originals, crops), "extra": self._cut(images, more)}
        return {name: torch.stack([to_tensor(image) for image in own]) for name, own in views.items()}

    def _cut(self, images: Sequence[Image.Image], crops: CropFlip) -> list[Image.Image]:
        functional, size = _torchvision(), [self.size, self.size]
        boxes = zip(*(field.tolist() for field in crops), strict=True)
        cut = []
        for image, (*box, flip) in zip(images, boxes, strict=True):
            view = functional.resized_crop(image, *box, size)
            cut.append(functional.hflip(view) if flip else view)
        return cut


class Steps(Sampler[list[tuple[int, int]]]):
    """This rank's share of the batches of steps first, first + 1, ..., last - 1: lists of (pass, index) pairs.

    Every pass has an order of its own and consists of full batches only: a small last one would have few negatives.

    Args:
        count: number of images, at least `batch`.
        batch: images per step over all ranks, a multiple of their number.
        seed, stream: what decides the order, "order" or "unlabeled order".
        first, last: steps since the start of the training.
        rank, world: this rank and their number.
    """

    def __init__(self, count: int, batch: int, seed: int, stream: str, first: int, last: int, rank=0, world=1):
        self.count, self.batch, self.seed, self.stream = count, batch, seed, stream
        self.first, self.last, self.rank, self.share = first, last, rank, batch // world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        known, order = -1, []
        for step in range(self.first, self.last):
            done, position = divmod(step, self.count // self.batch)
            if done != known:
                known = done
                order = torch.randperm(self.count, generator=generator(self.seed, self.stream, done)).tolist()
            start = position * self.batch + self.rank * self.share
            yield [(done, index) for index in order[start : start + self.share]]


def loader(views: Dataset, steps: Steps, processes: int, pin: bool) -> Iterator[Batch]:
    """Batches of the steps, in order, made ahead of time by other processes, through all passes without a break."""
    return workers.load(
        views,
        batch_sampler=steps,
        num_workers=processes,
        pin_memory=pin,
        prefetch_factor=4 if processes else None,
        generator=torch.Generator().manual_seed(views.seed),  # workers' seeds; the global state stays as it is
    )
