"""Digits on photographs: a small classification task whose object boxes are known, and that needs no download.

A handwritten digit (scikit-learn ships 1797 of them) is trimmed to its ink and pasted with random size, place, colour
and opacity on a crop of a real photograph (those whose pixels ship inside the scikit-image wheel). The three splits
share no digit and no photograph region.

Two ways to make it harder: distractors, fragments of other digits pasted outside the digit's box; and backgrounds that
betray the class in training only, each class having a photograph of its own there.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .images import Images, Record, Sample

CLASSES = tuple(str(digit) for digit in range(10))
IMAGE_SIZE = 64
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "rocket.jpg",
)

DIGIT_SIZES = (24, 40)  # longer side in pixels, both ends included
BACKGROUND_SIZES = (64, 96)  # side of the square cut from the photograph
BACKGROUND_CONTRAST = 0.6
OPACITY = (0.7, 1.0)
DIGIT_CONTRAST = (0.25, 0.6)  # least luminance difference to the background, drawn per image
FRAGMENT_SIZES = (12, 18)  # longer side of a distractor in pixels
FRAGMENT_SHARE = 0.6  # of a digit's ink, each way
FRAGMENT_TRIES = 50
BACKGROUNDS = ("any", "class")
CORRELATION = 0.9  # of the training images have their class's photograph, with backgrounds="class"
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of the digits and of every photograph
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


class Split(NamedTuple):
    """Images with their labels and boxes, in memory.

    Attributes:
        images: float32 [N, 3, 64, 64] in [0, 1].
        labels: int64 [N] in 0..9.
        boxes: int64 [N, 4], (left, top, right, bottom) in pixels, right and bottom excluded.
        digits: int64 [N], index of the digit in scikit-learn's set.
        regions: int64 [N, 5], (photograph, left, top, right, bottom) of the background in the photograph's pixels.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    digits: Tensor
    regions: Tensor


class DemoImages(Images):
    """A split of the demo in the form of :class:`Images`; the image is a tensor [3, 64, 64] in [0, 1].

    Attributes:
        split: the tensors of all images.
        images: float32 [N, 3, 64, 64], ``split.images``.

    Example:
        >>> DemoImages(make_splits({"val": 20}, seed=0)["val"], "val")[3].path
        'val/0003'
    """

    def __init__(self, split: Split, name: str, paths: list[str] | None = None):
        paths = paths or [f"{name}/{index:04d}" for index in range(len(split.images))]
        records = [Record(path, label) for path, label in zip(paths, split.labels.tolist(), strict=True)]
        super().__init__(records, CLASSES, has_boxes=True)
        self.split, self.name = split, name

    def __getitem__(self, index: int) -> Sample:
        image, label, box = (values[index] for values in self.split[:3])
        return Sample(image, int(label), box.float()[None], self.records[index].path)

    @property
    def images(self) -> Tensor:
        """float32 [N, 3, 64, 64]."""
        return self.split.images

    def subset(self, indices, labelled: bool = True) -> "DemoImages":
        """As :meth:`Images.subset`."""
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        split = Split(*(values[chosen] for values in self.split))
        if not labelled:
            split = split._replace(labels=torch.full_like(split.labels, -1))
        return DemoImages(split, self.name, [self.records[index].path for index in chosen.tolist()])


def make_splits(
    sizes: dict[str, int], seed: int, *, distractors: int = 0, backgrounds: str = "any"
) -> dict[str, Split]:
    """Make the splits of one seed: the seed decides which digits and regions each split owns, and every image.

    Args:
        sizes: number of images per split, with keys among "train", "val", "test".
        seed: any integer >= 0. A split depends on the seed, its own size and the options only.
        distractors: number of fragments of other digits pasted outside the digit's box, in every split.
        backgrounds: "any", any photograph for any class; "class", in the training split nine images in ten have the
            photograph of their class, which misleads elsewhere.

    Example:
        >>> make_splits({"val": 20}, seed=0)["val"].images.shape
        torch.Size([20, 3, 64, 64])
    """
    from sklearn.datasets import load_digits  # here, since it takes a second that other data sets need not wait

    digits = load_digits()
    photographs = [_read(name) for name in PHOTOGRAPHS]
    owner = np.random.default_rng(seed)
    order = owner.permutation(len(digits.target))
    mirrored = owner.random(len(photographs)) < 0.5
    splits = {}
    for number, (split, (first, last)) in enumerate(SHARES.items()):
        if split in sizes:
            own = order[round(first * len(order)) : round(last * len(order))]
            bands = [_band(photo, first, last, flip) for photo, flip in zip(photographs, mirrored, strict=True)]
            rng = np.random.default_rng([seed, number])
            photo_of = CORRELATION if split == "train" and backgrounds == "class" else 0.0
            splits[split] = _make_split(sizes[split], digits, own, photographs, bands, rng, distractors, photo_of)
    return splits


def _read(name: str) -> Tensor:
    """A photograph as float32 [3, H, W] in [0, 1], from the installed wheel: skimage.data may ask the network."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def _band(photo: Tensor, first: float, last: float, mirrored: bool) -> tuple[int, int, int, int]:
    """The part of a photograph one split owns: a slice along the longer side, from the other end if mirrored."""
    height, width = photo.shape[1:]
    if mirrored:
        first, last = 1 - last, 1 - first
    longer = max(height, width)
    start, stop = round(first * longer), round(last * longer)
    return (start, 0, stop, height) if width >= height else (0, start, width, stop)


def _make_split(number, digits, own, photographs, bands, rng, distractors: int, correlation: float) -> Split:
    chosen = rng.choice(own, number)
    inks = torch.from_numpy(digits.images).float() / 16
    images, boxes, regions = [], [], []
    for digit in chosen:
        photo = int(rng.integers(len(photographs)))
        if correlation and rng.random() < correlation:
            photo = int(digits.target[digit])
        background, region = _background(photographs[photo], bands[photo], rng)
        image, box = _paste(background, inks[digit], rng)
        for _ in range(distractors):
            image = _paste_fragment(image, inks[rng.choice(own)], box, rng)
        images.append(image)
        boxes.append(box)
        regions.append((photo, *region))
    return Split(
        torch.stack(images),
        torch.from_numpy(digits.target[chosen]).long(),
        torch.tensor(boxes),
        torch.from_numpy(chosen),
        torch.tensor(regions),
    )


def _background(photo: Tensor, band: tuple[int, int, int, int], rng) -> tuple[Tensor, tuple[int, int, int, int]]:
    """A random square of the band, resized to 64 x 64, mirrored or not, its contrast lowered about its mean."""
    left, top, right, bottom = band
    low, high = BACKGROUND_SIZES
    side = int(rng.integers(low, min(high, right - left, bottom - top) + 1))
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(top, bottom - side + 1))
    cut = _resize(photo[:, y : y + side, x : x + side], IMAGE_SIZE, IMAGE_SIZE)
    if rng.random() < 0.5:
        cut = cut.flip(-1)
    mean = cut.mean((1, 2), keepdim=True)
    return mean + BACKGROUND_CONTRAST * (cut - mean), (x, y, x + side, y + side)


def _paste(image: Tensor, digit: Tensor, rng) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Blend a digit [8, 8] in [0, 1] into image [3, 64, 64]; returns the image and the digit's box."""
    ink = _trim(digit)
    height, width = _size(ink, DIGIT_SIZES, rng)
    box = _place(height, width, rng)
    return _blend(image, ink, box, rng), box


def _paste_fragment(image: Tensor, digit: Tensor, box: tuple[int, int, int, int], rng) -> Tensor:
    """Blend a part of another digit into the image where it does not meet the box, if such a place is found."""
    ink = _trim(digit)
    height, width = (max(1, round(FRAGMENT_SHARE * side)) for side in ink.shape)
    top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip(ink.shape, (height, width), strict=True))
    part = ink[top : top + height, left : left + width]
    size = _size(part, FRAGMENT_SIZES, rng)
    for _ in range(FRAGMENT_TRIES):
        place = _place(*size, rng)
        if not _meet(place, box):
            break
    return _blend(image, part, place, rng)


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def _size(ink: Tensor, longer_sides: tuple[int, int], rng) -> tuple[int, int]:
    """Height and width of the pasted ink, its longer side drawn at random."""
    longer = int(rng.integers(longer_sides[0], longer_sides[1] + 1))
    height, width = (max(1, round(longer * side / max(ink.shape))) for side in ink.shape)
    return height, width


def _place(height: int, width: int, rng) -> tuple[int, int, int, int]:
    left = int(rng.integers(0, IMAGE_SIZE - width + 1))
    top = int(rng.integers(0, IMAGE_SIZE - height + 1))
    return left, top, left + width, top + height


def _blend(image: Tensor, ink: Tensor, box: tuple[int, int, int, int], rng) -> Tensor:
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    mask = _resize(ink[None], height, width) * rng.uniform(*OPACITY)
    image = image.clone()
    patch = image[:, top : top + height, left : left + width]
    colour = _visible_colour(patch.mean((1, 2)), rng)
    patch += mask * (colour[:, None, None] - patch)
    return image.clamp_(0, 1)


def _trim(digit: Tensor) -> Tensor:
    rows, columns = (digit > 0).any(1).nonzero(), (digit > 0).any(0).nonzero()
    return digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _visible_colour(behind: Tensor, rng) -> Tensor:
    """A random colour [3], moved along the grey axis until its luminance differs enough from what lies behind."""
    colour = torch.from_numpy(rng.random(3)).float()
    least, base = rng.uniform(*DIGIT_CONTRAST), float(LUMINANCE @ behind)
    difference = float(LUMINANCE @ colour) - base
    if abs(difference) < least:
        side = 1 if base < 0.5 else -1
        colour = colour + side * least - difference
    return colour.clamp(0, 1)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    return interpolate(image[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
