"""The one form of every data set: images with a label, the boxes of the labelled object, and a path.

Boxes are float32 [n, 4], (left, top, right, bottom) in pixels of the image, right and bottom excluded: the box
(0, 0, width, height) is the whole image. Files are opened when an image is asked for, never before.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .files import Box, BoxTable, CorruptImage

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS, for which Pillow runs Ghostscript
ORIENTATION = 0x0112  # the EXIF tag
# What brings an image of each orientation upright, in this order: axes swapped, then mirrored across, then down.
TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


class Sample(NamedTuple):
    """One image.

    Attributes:
        image: PIL RGB image, or float32 [3, S, S] in [0, 1] from the embedded demo.
        label: index of the class, -1 where there is no label.
        boxes: float32 [n, 4] of the labelled object; n = 0 where none is known.
        path: name of the image, its file where it has one.
        mask: bool [H, W], the visible pixels of the labelled object; None where they are not known.
        distractor: index of another class that is in the image as well, -1 where none is known.
        distractor_mask: bool [H, W], the visible pixels of its object; None where there is none.
    """

    image: Image.Image | Tensor
    label: int
    boxes: Tensor
    path: str
    mask: Tensor | None = None
    distractor: int = -1
    distractor_mask: Tensor | None = None


class Record(NamedTuple):
    """What is known of an image before it is opened."""

    path: str
    label: int
    boxes: tuple[Box, ...] = ()


class Images(Dataset):
    """A data set of image files. ``len(images)``, ``images[i] -> Sample``; raises :class:`CorruptImage` when reading.

    Attributes:
        records: one :class:`Record` per image.
        classes: the names of the classes.
        labels: int64 [N], -1 where there is none.
        has_boxes: whether boxes are known.
        table: the file that the boxes are from, where not every image need have one.
        upright: whether the orientation in the file is followed, boxes included, which are those of the stored pixels.

    Example:
        >>> images = Images([Record("cat.png", 0), Record("dog.png", 1)], ["cat", "dog"])
        >>> images.labels, len(images.subset([1]))
        (tensor([0, 1]), 1)
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: Sequence[str],
        has_boxes: bool = False,
        *,
        table: BoxTable | None = None,
        upright: bool = False,
    ):
        self.records = list(records)
        self.classes = tuple(classes)
        self.has_boxes, self.table, self.upright = has_boxes, table, upright

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        path, label, boxes = self.records[index]
        image, boxes = read_boxed(path, boxes, self.upright)
        return Sample(image, label, as_boxes(boxes), path)

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return torch.tensor([record.label for record in self.records], dtype=torch.int64)

    def files(self) -> list[str]:
        """The files that the images are made of, as far as they are there."""
        return [record.path for record in self.records if Path(record.path).is_file()]

    @property
    def groups(self) -> list[str]:
        """The name of the object that each image shows: each its own, unless a data set knows better."""
        return [record.path for record in self.records]

    def boxed(self) -> int:
        """How many images have a box."""
        return sum(bool(record.boxes) for record in self.records)

    def subset(self, indices: Sequence[int], labelled: bool = True) -> "Images":
        """The images of these indices, in that order, of the same kind; all labels -1 unless ``labelled``."""
        records = [self.records[index] for index in indices]
        if not labelled:
            records = [record._replace(label=-1) for record in records]
        return Images(records, self.classes, self.has_boxes, table=self.table, upright=self.upright)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """A picture of one of the :data:`FORMATS`, as stored; whatever is wrong with it in the block is CorruptImage."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise CorruptImage(path, str(error)) from error


def read_image(path: str) -> Image.Image:
    """The whole image as RGB, upright; raises :class:`CorruptImage`."""
    return read_boxed(path, (), upright=True)[0]


def read_boxed(path: str, boxes: Sequence[Box], upright: bool) -> tuple[Image.Image, list[Box]]:
    """The whole image as RGB, and boxes of its stored pixels, turned with it if it is to be ``upright``.

    Raises:
        CorruptImage: it cannot be read, or its pixels have a range that is not known.
    """
    with opened(path) as image:
        turn = TURNS.get(image.getexif().get(ORIENTATION)) if upright else None
        rgb = _eight_bits(image).convert("RGB")
    return _turned(rgb, boxes, *turn) if turn else (rgb, list(boxes))


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel, where Pillow would cut larger values off; raises ValueError for unknown ranges."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16
        return Image.fromarray((np.asarray(image) * (255.0 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whose range is unknown: convert it to 8 or 16 bits")
    return image


def _turned(image: Image.Image, boxes: Sequence[Box], swapped: bool, across: bool, down: bool):
    if swapped:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        boxes = [(top, left, bottom, right) for left, top, right, bottom in boxes]
    width, height = image.size
    if across:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = [(width - right, top, width - left, bottom) for left, top, right, bottom in boxes]
    if down:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        boxes = [(left, height - bottom, right, height - top) for left, top, right, bottom in boxes]
    return image, list(boxes)


def as_boxes(boxes: Sequence[Box]) -> Tensor:
    """float32 [n, 4], also for none."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def fraction(images: Images, share: float, seed: int) -> list[int]:
    """Indices of a seeded subset that holds ``share`` of every class, at least one image of each, sorted.

    Example:
        >>> images = Images([Record(str(i), i % 2) for i in range(20)], ["even", "odd"])
        >>> len(fraction(images, 0.2, seed=0))
        4
    """
    rng = np.random.default_rng(seed)
    labels = images.labels.numpy()
    chosen = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        chosen.extend(rng.permutation(own)[: max(1, round(share * len(own)))])
    return sorted(int(index) for index in chosen)
