"""An object's picture pasted on a square of a photograph, beside others or alone: the image, and the object's mask."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from .files import CorruptImage
from .images import opened, read_image

SQUARES = (0.4, 1.0)  # side of the square cut from a photograph, share of its shorter side
SIDES = (0.4, 0.75)  # longer side of an object, share of the image's
SIDES_BESIDE_OTHERS = (0.4, 0.55)
DISTRACTOR = 0.6  # longer side of a distractor, share of the object's
TURN = 15.0  # degrees, either way
BRIGHTNESS = (0.75, 1.2)
TRIES = 60  # places looked at for one where object and distractors do not meet


def compose(
    photograph: str, object_: str, distractors: list[str], size: int, rng: np.random.Generator
) -> tuple[Image.Image, Tensor, Tensor | None]:
    """The image, the mask of its object, and what is seen of its first distractor: bool [size, size]."""
    image = _background(photograph, size, rng)
    side = size * rng.uniform(*(SIDES_BESIDE_OTHERS if distractors else SIDES))
    drawn = _drawn(object_, side, size, rng)
    others = [_drawn(other, DISTRACTOR * side, size, rng) for other in distractors]
    place, *places = _places([drawn, *others], size, rng)
    seen: list[Tensor] = []
    for picture, where in reversed([(drawn, place), *zip(others, places, strict=True)]):
        image.paste(picture, where, picture)
        mask = _mask(picture, where, size)
        seen = [mask, *(other & ~mask for other in seen)]
    return image, seen[0], seen[1] if others else None


def _background(path: str, size: int, rng) -> Image.Image:
    """A random square of a photograph, resized, mirrored or not."""
    photograph = _photograph(path, 2 * size)
    side = max(1, round(min(photograph.size) * rng.uniform(*SQUARES)))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    cut = photograph.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def _drawn(path: str, side: float, size: int, rng) -> Image.Image:
    """An object, RGBA, turned, its longer side resized, mirrored or not, lighter or darker."""
    turned = _cut_out(path, size).rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    trimmed = turned.crop(turned.getchannel("A").getbbox())
    scale = side / max(trimmed.size)
    resized = trimmed.resize([max(1, round(scale * length)) for length in trimmed.size], Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    lit = ImageEnhance.Brightness(resized.convert("RGB")).enhance(rng.uniform(*BRIGHTNESS))
    lit.putalpha(resized.getchannel("A"))
    return lit


@lru_cache(maxsize=512)
def _cut_out(path: str, size: int) -> Image.Image:
    """An object's picture, RGBA, trimmed, at most ``size`` on its longer side; raises :class:`CorruptImage`."""
    with opened(path) as image:
        whole = image.convert("RGBA")
    alpha = whole.getchannel("A")
    least, most = alpha.getextrema()
    if least >= 128 or most < 128:
        raise CorruptImage(path, f"its alpha goes from {least} to {most}, so that nothing is cut out")
    trimmed = whole.crop(alpha.getbbox())
    trimmed.thumbnail((size, size), Image.Resampling.LANCZOS)
    return trimmed


@lru_cache(maxsize=128)
def _photograph(path: str, shorter: int) -> Image.Image:
    """A photograph, RGB, upright, made smaller where its shorter side is longer; raises :class:`CorruptImage`."""
    image = read_image(path)
    scale = shorter / min(image.size)
    if scale >= 1:
        return image
    return image.resize([max(shorter, round(scale * length)) for length in image.size], Image.Resampling.BICUBIC)


def _places(pictures: list[Image.Image], size: int, rng) -> list[tuple[int, int]]:
    """(left, top) of every picture, so that the others meet the first as little as is found."""
    best = None
    for _ in range(TRIES):
        found = [tuple(int(rng.integers(0, size - length + 1)) for length in one.size) for one in pictures]
        first, *others = (
            (*place, *map(sum, zip(place, one.size, strict=True))) for place, one in zip(found, pictures, strict=True)
        )
        met = sum(_overlap(first, other) for other in others)
        if best is None or met < best[0]:
            best = met, found
        if not met:
            break
    return best[1]


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many pixels two boxes have in common."""
    across, down = (max(0, min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])) for axis in (0, 1))
    return across * down


def _mask(picture: Image.Image, place: tuple[int, int], size: int) -> Tensor:
    """Where a pasted picture is more than half opaque: bool [size, size]."""
    left, top = place
    opaque = torch.from_numpy(np.array(picture.getchannel("A")) >= 128)
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + opaque.shape[0], left : left + opaque.shape[1]] = opaque
    return mask


def box(mask: Tensor) -> list[tuple[float, float, float, float]]:
    """The box of a mask; none where it is empty."""
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return [(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)] if rows else []
