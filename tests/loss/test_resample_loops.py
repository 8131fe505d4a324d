"""Stage resample: the reference itself, and every backend, against loops over pixels."""

import math

import pytest
import torch

from cgc_kernels import CropFlip, heatmap_loss
from cgc_kernels.backends.reference.resample import transform_maps
from cgc_kernels.options import OBJECTIVES
from tests.loss.cases import random_maps
from tests.support.cases import EVERY_BACKEND, crop_flip, warp
from tests.support.compare import assert_close


def bilinear(m, y, x):
    """Value at fractional position (y, x) of a nested list, clamped to its border."""
    height, width = len(m), len(m[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = int(y), int(x)
    k, n = min(i + 1, height - 1), min(j + 1, width - 1)
    b, a = y - i, x - j
    return (m[i][j] * (1 - a) + m[i][n] * a) * (1 - b) + (m[k][j] * (1 - a) + m[k][n] * a) * b


def resize(m, height, width):
    """align_corners=False: pixel centres at half-integers."""
    rows, columns = len(m), len(m[0])
    return [
        [bilinear(m, (y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5) for x in range(width)]
        for y in range(height)
    ]


def normalised(heatmap, size, eps):
    up = resize(heatmap, *size)
    total = sum(map(sum, up))
    return [[v / (total + eps) + eps for v in row] for row in up]


def cropped(m, top, left, height, width, flip):
    crop = [row[left : left + width] for row in m[top : top + height]]
    out = resize(crop, len(m), len(m[0]))
    return [row[::-1] for row in out] if flip else out


def warped(m, matrix):
    """The sample at inverse(matrix) @ (x, y, 1), each tap outside counting as zero."""
    height, width = len(m), len(m[0])
    inverse = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64)).tolist()
    out = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            u, v, depth = (row[0] * x + row[1] * y + row[2] for row in inverse)
            if depth <= 0:
                continue
            u, v = u / depth, v / depth
            for j in (math.floor(u), math.floor(u) + 1):
                for i in (math.floor(v), math.floor(v) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        out[y][x] += m[i][j] * (1 - abs(u - j)) * (1 - abs(v - i))
    return out


def cosine(a, b):
    a, b = ([v for row in m for v in row] for m in (a, b))
    norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / norms if norms else 0.0


def loss_by_loops(originals, augmented, transform, size, tau, objective, consistency, eps):
    """The definition, one number at a time."""
    a = [normalised(m, size, eps) for m in augmented]
    o = [normalised(m, size, eps) for m in originals]
    o = [cropped(m, *t) if len(t) == 5 else warped(m, t) for m, t in zip(o, transform, strict=True)]
    batch = range(len(a))
    pos = [cosine(a[i], o[i]) for i in batch]
    if objective == "mse":
        unit = [[[v / (cosine_norm(m) or 1) for v in row] for row in m] for m in (*a, *o)]
        pairs = zip(unit[: len(a)], unit[len(a) :], strict=True)
        total = sum(
            (p - q) ** 2 for m, n in pairs for r, s in zip(m, n, strict=True) for p, q in zip(r, s, strict=True)
        )
        loss = total / (len(a) * size[0] * size[1])
    else:
        left = a if objective == "released" else o
        logits = [[(pos[i] if i == j else cosine(left[i], a[j])) / tau for j in batch] for i in batch]
        loss = sum(math.log(sum(math.exp(v) for v in row)) - row[i] for i, row in enumerate(logits)) / len(a)
    return loss + consistency * sum(1 - p for p in pos) / len(a)


def cosine_norm(m):
    return math.sqrt(sum(v * v for row in m for v in row))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["crop", "warp"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_equals_loops_over_pixels(backend, kind, objective):
    """The oracle's oracle: for what the released code's outputs do not show (warps, paper, odd and small sizes)."""
    generator = torch.Generator().manual_seed(7)
    for side, size in [((3, 2), (5, 8)), ((4, 5), (3, 2)), ((1, 3), (6, 5)), ((3, 3), (9, 9)), ((2, 2), (1, 4))]:
        batch = 6
        maps = random_maps(batch, side, seed=sum(size))
        if kind == "crop":
            transform = crop_flip(generator, size, ["any", "pixel", "full", "border", "row", "column"])
            listed = [[int(v) for v in row] for row in zip(*transform, strict=True)]
        else:
            transform = warp(generator, size, ["affine", "mirror", "identity", "homography", "horizon", "blind"])
            listed = transform.tolist()
        settings = {"temperature": 0.3, "objective": objective, "consistency": 0.7, "eps": 1e-3}
        loss = heatmap_loss(*maps, transform, image_size=size, backend=backend, **settings)
        expected = loss_by_loops(*maps.tolist(), listed, size, 0.3, objective, 0.7, 1e-3)
        assert_close(loss, torch.tensor(expected, dtype=torch.float64), 1e-11, what=f"{side} {size}")


def test_reference_crop_against_loops():
    m = random_maps(1, (6, 7))[0]
    for box in [(0, 0, 6, 7, 0), (2, 3, 1, 1, 0), (1, 2, 3, 5, 1), (5, 6, 1, 1, 1), (0, 3, 6, 1, 0)]:
        crop = CropFlip(*(torch.tensor([v]) for v in box[:4]), torch.tensor([bool(box[4])]))
        expected = torch.tensor(cropped(m[0].tolist(), *box), dtype=torch.float64)
        assert_close(transform_maps(m, crop)[0], expected, 1e-13, what=str(box))
