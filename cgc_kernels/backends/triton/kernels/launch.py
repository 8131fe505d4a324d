"""How kernels are launched: what is worked out once for a kind of call, and the one table of block sizes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl

from ...backend import LARGEST_SIDE

LARGEST_SAMPLE = 2**31 - 1  # elements: offsets inside a sample are 32 bits wide

# Positions of the three tiles. Lanes beyond H * W idle, which costs nothing: streaming waits for memory.
POSITIONS = (64, 256, 1024)
# Elements of a contiguous tile: 16 for each thread of eight warps, which keeps enough bytes in flight to reach DRAM's
# bandwidth at half occupancy; with twice as many, odd maps of 16-bit features would spill. In channels_last a thread
# takes 64, since neighbours in memory are channels: fewer would be parts of lines (measured on an H100, docs/gpu.md).
# Of float64, which takes two registers, half as many.
TILE = 4096
THREAD_LAST = 64
WARPS = 8
# Contiguous bytes of channels in a tile of channels_last features: a whole sector.
SECTOR = 32
# Channels summed by a program before it pays for a partial sum: more splits than this cost more traffic than they hide.
SPLIT_CHANNELS = 128
# Programs for each multiprocessor: two rounds of those that fit.
PROGRAMS = 16
# Registers of a thread in the kernels that have few blocks, or much in each: left to itself, the assembler spills some
# of them to fit more blocks on a multiprocessor.
REGISTERS = 255
# Of many short rows a program of the contrast takes more than the least, to read columns less often, as long as this
# many programs are left: (rows, columns at once, warps). Backward the last of them, since registers would not do.
MANY_PROGRAMS = 128
MANY_ROWS = ((128, 32, 8), (64, 32, 4), (32, 32, 4))
# Kinds of call whose launches are kept: a training has a few, one that resizes its images more.
KINDS = 256


class Streaming(NamedTuple):
    """Tiles of the kernels that stream features: [block, positions] of [channels, H * W]."""

    positions: int  # at least H * W
    block: int  # channels of a tile
    options: dict  # of the compiler


class Resampling(NamedTuple):
    """How one sample is resampled."""

    step: int  # pixels of an axis, or of a line, at once
    options: dict


class Contrasting(NamedTuple):
    """Tiles of similarities."""

    rows: int  # of a program
    columns: int  # at once
    cells: int  # of rows and columns at once, and cells whose gradient a program sums
    options: dict

    @property
    def blocks(self) -> dict[str, int]:
        """As the kernels name them."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": self.cells}


class Splits(NamedTuple):
    """How the channels of a sample are shared by programs."""

    count: int
    blocks: int  # tiles of each


class Layout:
    """Parts of one buffer of bytes, without padding: (dtype, bytes) of each."""

    def __init__(self, *parts: tuple[torch.dtype, int]):
        self._dtypes, self._sizes = zip(*parts, strict=True)
        self._offsets = [sum(self._sizes[:i]) for i in range(len(parts))]
        self.bytes = sum(self._sizes)

    def tensors(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Each part as a flat tensor."""
        return [part.view(dtype) for part, dtype in zip(buffer.split(self._sizes), self._dtypes, strict=True)]

    def addresses(self, buffer: torch.Tensor) -> list[int]:
        """Where each part begins."""
        start = buffer.data_ptr()
        return [start + offset for offset in self._offsets]


class Launch:
    """A kernel, its grid, and those of its arguments that every call of one kind shares.

    fixed: by name, the kernel's last parameters. Its first ones, tensors and floats, are given at each call: the first
    call has Triton find or compile the code for them, later ones go straight to it and may give addresses for tensors.
    They must be alike in dtype and in whether a multiple of 16 bytes: what Triton specialises the code for.
    """

    def __init__(self, kernel, grid: tuple[int, int, int], options: dict, fixed: dict[str, Any]):
        self.kernel, self.grid = kernel, grid
        self._named = {**fixed, **options}
        self._fixed = [fixed[name] for name in kernel.arg_names if name in fixed]
        self._run = None

    @property
    def compiled(self) -> bool:
        """Whether addresses will do."""
        return self._run is not None

    def __call__(self, *changing) -> None:
        if self._run is None:
            code = self.kernel[self.grid](*changing, **self._named)
            if code is not None:  # the interpreter has none
                self._run = code[self.grid]
        else:
            self._run(*changing, *self._fixed)


def kind(*tensors: torch.Tensor) -> tuple:
    """What the code that Triton compiles depends on, and where it is loaded."""
    return tensors[0].device, *[(tensor.dtype, tensor.data_ptr() % 16) for tensor in tensors]


def plans(make: Callable) -> Callable:
    """`make`, whose results are kept by its arguments and one before them, the kind of the tensors."""
    return functools.lru_cache(KINDS)(lambda kind, *settings: make(*settings))


def streaming(positions: int, itemsize: int, channels_last: bool) -> Streaming:
    """The tile for maps of H * W positions and features of `itemsize` bytes."""
    room = next(room for room in POSITIONS if positions <= room)
    warps = WARPS // 2 if channels_last and room == POSITIONS[0] else WARPS
    tile = 32 * warps * THREAD_LAST if channels_last else TILE
    block = max(tile // (2 if itemsize == 8 else 1) // room, SECTOR // itemsize)
    crowded = itemsize == 8 or room == POSITIONS[-1]
    return Streaming(room, block, {"num_warps": warps, "maxnreg": REGISTERS if crowded else None})


def resampling(height: int, width: int, warp: bool, forward: bool) -> Resampling:
    """For maps of H x W cells; warp: by matrices, whose weights take more registers."""
    small = padded(height) * padded(width) <= 256
    halved = small and forward  # what fits fewer warps leaves room for another sample on the multiprocessor
    step = 16 if not small else 32 if warp or forward else 64
    return Resampling(step, {"num_warps": WARPS // 2 if halved else WARPS, "maxnreg": REGISTERS})


def contrasting(count: int, batch: int, length: int, dtype: torch.dtype, forward: bool) -> Contrasting:
    """For gradients or losses of `count` rows, against all of a batch: as few for a program as a dot product takes,
    while these are few."""
    short, double = length <= 64, dtype == torch.float64
    cells = 64 if short else 32  # of more in two steps the registers would not do
    many = MANY_ROWS if forward else MANY_ROWS[-1:]
    tiles = [tile for tile in many if count >= MANY_PROGRAMS * tile[0] and short and not double]
    rows, columns, warps = tiles[0] if tiles else (16, 128 if batch > 64 and (forward or not short) else 64, WARPS)
    if double:
        columns = cells = 32
    # A short row is one step, which nothing is loaded ahead of; more stages would not fit every device's memory.
    options = {"num_warps": warps, "num_stages": 1 if short else 2, "maxnreg": REGISTERS}
    return Contrasting(rows, columns, cells, options)


def split(channels: int, samples: int, block: int, device: torch.device) -> Splits:
    """Share the channels of each of `samples` maps so that all programs together fill the device."""
    blocks = ceil_div(channels, block)
    wanted = ceil_div(PROGRAMS * _multiprocessors(device), samples)
    most = max(1, channels // max(block, SPLIT_CHANNELS))
    each = ceil_div(blocks, min(wanted, most))
    return Splits(ceil_div(blocks, each), each)


def ceil_div(count: int, size: int) -> int:
    """count / size, rounded up."""
    return -(-count // size)


def padded(side: int) -> int:
    """Cells of a heatmap along one axis, rounded up to what a dot product takes, a power of two."""
    return max(16, 1 << (side - 1).bit_length())


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """float64 for float64, float32 otherwise: the type of accumulators."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def check_map(height: int, width: int) -> None:
    """Raise ValueError for maps larger than the kernels take."""
    if max(height, width) > LARGEST_SIDE:
        raise ValueError(
            f"H and W must be at most {LARGEST_SIDE} for backend 'triton', got {height} x {width}; use backend='torch'"
        )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # the interpreter plays an H100
    return torch.cuda.get_device_properties(device).multi_processor_count
