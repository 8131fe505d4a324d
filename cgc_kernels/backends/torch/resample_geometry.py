"""Bilinear upsampling and crop-resize-flip as small matrices (docs/mathematics.md, section 2)."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _disable_current_modes

from ...options import widest_dtype
from ...transforms import CropFlip
from .chunks import samples

# Elements of the largest temporary, the rows of U that a few samples see along both axes.
CHUNK_ELEMENTS = 1 << 20


class Grid(NamedTuple):
    """What views of S_h x S_w pixels and maps of H x W cells share, in the device's widest dtype.

    Of the fields from `rows` on, the first entry is that of axis y, the second that of axis x; where the axes differ,
    S is the larger number of pixels and n that of cells.
    """

    upsample: tuple[torch.Tensor, torch.Tensor]  # U_H [S_h, H] and U_W [S_w, W]
    gram: tuple[torch.Tensor, torch.Tensor]  # K_H [H, H] and K_W [W, W]
    share: torch.Tensor  # u_H u_W^T [H, W]: of every cell in the sum of the fine map
    rows: torch.Tensor  # [2, S, 2n]: every row of U, and the next one minus it
    last: torch.Tensor  # [2, 1, 1]: index of the last row
    size: torch.Tensor  # [2, 1, 1]: of the view
    centres: torch.Tensor  # [2, 1, S]: of the pixels, in halves of a pixel
    mirror: torch.Tensor  # [2, 1, S]: from a centre to that of the mirrored pixel; 0 along y
    axes: torch.Tensor  # [2, 1, 1]: 0 and 1


def grid(image_size: tuple[int, int], like: torch.Tensor) -> Grid:
    """The grid of maps `like` [B, H, W], made once where it is a plain tensor's.

    It is made anew in a compiled graph, for fake tensors, under torch.func and in the capture of a CUDA graph, which
    outlives what is kept here.
    """
    where = *image_size, *like.shape[1:], like.device
    return _kept_grid(*where) if _is_plain(like) else _grid(*where)


def _is_plain(tensor):
    return not (
        torch.compiler.is_compiling()
        or type(tensor) is not torch.Tensor
        or tensor.is_meta
        or torch._C._are_functorch_transforms_active()
        or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )


@functools.lru_cache(maxsize=32)
def _kept_grid(height, width, rows, columns, device):
    """Of plain tensors, whatever mode is active: a tensor of inference mode could not be saved for a backward."""
    with _disable_current_modes(), torch.inference_mode(False):
        made = _grid(height, width, rows, columns, device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # later calls may read it on other streams
    return made


def _grid(height, width, rows, columns, device):
    upsample = upsampling(height, rows, device), upsampling(width, columns, device)
    dtype, pixels, cells = upsample[0].dtype, max(height, width), max(rows, columns)
    padded = torch.stack([F.pad(u, (0, cells - u.shape[1], 0, pixels - u.shape[0])) for u in upsample])
    axes = torch.arange(2, device=device)[:, None, None]  # from numbers on the host alone, which a capture allows
    size = height + (width - height) * axes
    centres = 2 * torch.arange(pixels, dtype=dtype, device=device) + 1
    return Grid(
        upsample,
        tuple(u.T @ u for u in upsample),
        torch.outer(*(u.sum(dim=0) for u in upsample)),
        torch.cat((padded, padded.diff(dim=1, append=padded[:, -1:])), dim=2),
        (size - 1).to(dtype),
        size.to(dtype),
        centres.expand(2, 1, -1),
        axes * (2 * size - 2 * centres),
        axes,
    )


def upsampling(size: int, cells: int, device: torch.device) -> torch.Tensor:
    """U, [size, cells]: bilinear upsampling of `cells` values to `size` (align_corners=False) as a matrix.

    From integers, in units of 1 / (2 size), in which positions are exact: what a pixel does not see has no share in it.
    """
    pixels, twice = torch.arange(size, device=device), 2 * size
    position = ((2 * pixels + 1) * cells - size).clamp(0, (cells - 1) * twice)
    distance = (position[:, None] - twice * torch.arange(cells, device=device)).abs()
    return (twice - distance).clamp_min(0).to(widest_dtype(device)) / twice


def crop_products(transform: CropFlip, grid: Grid) -> tuple[torch.Tensor, ...]:
    """P = U^T R U and Q = (R U)^T (R U) of every sample: P_y, Q_y, [B, H, H], and P_x, Q_x, [B, W, W]."""
    fields = torch.stack(transform).to(grid.rows.dtype)[:, :, None]
    batch = fields.shape[1]
    step = samples(CHUNK_ELEMENTS, grid.rows.numel(), fields.device)
    if step >= batch:
        return _products(fields, grid)
    products = [fields.new_empty(batch, *gram.shape) for gram in grid.gram for _ in "PQ"]
    for first in range(0, batch, step):
        part = slice(first, first + step)
        for product, found in zip(products, _products(fields[:, part], grid), strict=True):
            product[part] = found  # apart from the temporaries of a part, whose place the next part's take
    return tuple(products)


def _products(fields, grid):
    """The four of crop_products, of a few samples."""
    products = []
    for upsample, cropped in zip(grid.upsample, _crop_rows(fields, grid), strict=True):
        cropped = cropped[:, : upsample.shape[0], : upsample.shape[1]]
        products += [torch.bmm(upsample.mT.expand(cropped.shape[0], -1, -1), cropped), torch.bmm(cropped.mT, cropped)]
    return tuple(products)


def _crop_rows(fields, grid):
    """R U, [2, b, S, n]: each row blends the two rows of U around the crop's clamped source position.

    fields: top, left, height, width, flip [5, b, 1]. Positions are exact where they are whole: a quotient of integers.
    A crop outside the view reads no memory outside U.
    """
    start, length, flip = fields[:2], fields[2:4], fields[4]
    position = torch.addcmul(-grid.size, length, torch.addcmul(grid.centres, flip, grid.mirror))
    position = position.div_(2 * grid.size).add_(start).clamp_(start, start + length - 1)
    position = torch.minimum(position.clamp_min_(0), grid.last)
    row = position.long()
    rows, steps = grid.rows[grid.axes, row].chunk(2, dim=3)
    return torch.addcmul(rows, (position - row)[..., None], steps)


def sandwich(left: torch.Tensor, maps: torch.Tensor, right: torch.Tensor, plus: torch.Tensor | None = None):
    """left m right^T (+ plus) of every m in maps [B, h, w]; left, right: [H, h] and [W, w], or of every sample."""
    batch = maps.shape[0]  # len would make a constant of it where it is traced
    maps, right = torch.bmm(left.expand(batch, -1, -1), maps), right.mT.expand(batch, -1, -1)
    return torch.bmm(maps, right) if plus is None else torch.baddbmm(plus, maps, right)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of a * b over each map of [B, h, w], [B, 1, 1]."""
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])
