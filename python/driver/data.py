"""Digits on photographs: a small classification task whose object boxes are known, and that needs no download.

A handwritten digit (scikit-learn ships 1797 of them) is trimmed to its ink and pasted with random size, place, colour
and opacity on a crop of a real photograph (those whose pixels ship inside the scikit-image wheel). The three splits
share no digit and no photograph region.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

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


def make_splits(sizes: dict[str, int], seed: int) -> dict[str, Split]:
    """Make the splits of one seed: the seed decides which digits and regions each split owns, and every image.

    Args:
        sizes: number of images per split, with keys among "train", "val", "test".
        seed: any integer >= 0. A split depends on the seed and its own size only.

    Example:
        >>> make_splits({"val": 20}, seed=0)["val"].images.shape
        torch.Size([20, 3, 64, 64])
    """
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
            splits[split] = _make_split(sizes[split], digits, own, photographs, bands, rng)
    return splits


def _read(name: str) -> Tensor:
    """A photograph as float32 [3, H, W] in [0, 1], from the installed wheel: skimage.data may ask the network."""
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


def _make_split(number, digits, own, photographs, bands, rng) -> Split:
    chosen = rng.choice(own, number)
    images, boxes, regions = [], [], []
    for digit in chosen:
        photo = int(rng.integers(len(photographs)))
        background, region = _background(photographs[photo], bands[photo], rng)
        image, box = _paste(background, torch.from_numpy(digits.images[digit]).float() / 16, rng)
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
    longer = int(rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
    height, width = (max(1, round(longer * side / max(ink.shape))) for side in ink.shape)
    left = int(rng.integers(0, IMAGE_SIZE - width + 1))
    top = int(rng.integers(0, IMAGE_SIZE - height + 1))
    mask = _resize(ink[None], height, width) * rng.uniform(*OPACITY)
    image = image.clone()
    patch = image[:, top : top + height, left : left + width]
    colour = _visible_colour(patch.mean((1, 2)), rng)
    patch += mask * (colour[:, None, None] - patch)
    return image.clamp_(0, 1), (left, top, left + width, top + height)


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
