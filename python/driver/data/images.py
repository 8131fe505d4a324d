"""The one form of every data set: images with a label, the boxes of the labelled object, and a path.

Boxes are float32 [n, 4], (left, top, right, bottom) in pixels of the original image, right and bottom excluded: the
box (0, 0, width, height) is the whole image. Files are opened when an image is asked for, never before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

Box = tuple[float, float, float, float]


class DataError(ValueError):
    """The data are not where or what they must be; the message names the flag, the place and what is expected there."""


class CorruptImage(OSError):
    """An image that cannot be read."""

    def __init__(self, path: str, reason: object):
        # Both as arguments, so that the error survives the way from a loader's worker.
        super().__init__(path, str(reason))
        self.path, self.reason = path, str(reason)

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


class Sample(NamedTuple):
    """One image.

    Attributes:
        image: PIL RGB image, or float32 [3, S, S] in [0, 1] from the embedded demo.
        label: index of the class, -1 where there is no label.
        boxes: float32 [n, 4] of the labelled object; n = 0 where none is known.
        path: name of the image, its file where it has one.
    """

    image: Image.Image | Tensor
    label: int
    boxes: Tensor
    path: str


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

    Example:
        >>> images = Images([Record("cat.png", 0), Record("dog.png", 1)], ["cat", "dog"])
        >>> images.labels, len(images.subset([1]))
        (tensor([0, 1]), 1)
    """

    def __init__(self, records: Sequence[Record], classes: Sequence[str], has_boxes: bool = False):
        self.records = list(records)
        self.classes = tuple(classes)
        self.has_boxes = has_boxes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        path, label, boxes = self.records[index]
        image = read_image(path)
        return Sample(image, label, as_boxes(boxes), path)

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return torch.tensor([record.label for record in self.records], dtype=torch.int64)

    def subset(self, indices: Sequence[int], labelled: bool = True) -> "Images":
        """The images of these indices, in that order, of the same kind; all labels -1 unless ``labelled``."""
        records = [self.records[index] for index in indices]
        if not labelled:
            records = [record._replace(label=-1) for record in records]
        return type(self)(records, self.classes, self.has_boxes)


def read_image(path: str) -> Image.Image:
    """The whole image as RGB; raises :class:`CorruptImage`."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise CorruptImage(path, error) from error


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


def folder_of(root: str, names: Sequence[str], marker: str, what: str) -> Path:
    """The folder that holds ``marker``: the root itself or one of ``names`` in it; raises :class:`DataError`."""
    for folder in (Path(root), *(Path(root, name) for name in names)):
        if Path(folder, marker).exists():
            return folder
    inside = " or ".join(dict.fromkeys([str(Path(root)), *(str(Path(root, name)) for name in names)]))
    raise DataError(f"--data-root must be the folder of {what}, got {root!r}: no {marker} in {inside}")


def need(path: Path, what: str) -> Path:
    """The path, if it is there; raises :class:`DataError` saying ``what`` is expected."""
    if not path.exists():
        raise DataError(f"--data-root lacks {path}: {what} is expected there")
    return path


def lines(path: Path, what: str) -> list[str]:
    """The non-empty lines of a text file; raises :class:`DataError` where it is missing."""
    return [line for line in need(path, what).read_text(encoding="utf-8").splitlines() if line.strip()]
