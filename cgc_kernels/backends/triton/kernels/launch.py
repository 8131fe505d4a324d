"""How kernels are launched: in grids that fill the device, with block sizes from one small table."""

import functools
from typing import NamedTuple

import torch
import triton.language as tl

from ...backend import LARGEST_SIDE

LARGEST_SAMPLE = 2**31 - 1  # elements: offsets inside a sample are 32 bits wide

# Positions of the three tiles. Lanes beyond H * W idle, which costs nothing: streaming waits for memory.
POSITIONS = (64, 256, 1024)
# Elements of a tile: 16 for each thread of eight warps, which keeps enough bytes in flight to reach DRAM's bandwidth at
# half occupancy; with twice as many, odd maps of 16-bit features would spill. Of float64, which takes two registers,
# half as many.
TILE = 4096
TILE_BYTES = 16384
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
# Pixels of the view handled at once: the least that a dot product takes.
STEP = 16


class Streaming(NamedTuple):
    """Tiles of the kernels that stream features: [block, positions] of [channels, H * W]."""

    positions: int  # at least H * W
    block: int  # channels of a tile
    registers: int | None  # at most, of a thread; None: as many as the assembler likes


class Splits(NamedTuple):
    """How the channels of a sample are shared by programs."""

    count: int
    blocks: int  # tiles of each


def streaming(positions: int, itemsize: int) -> Streaming:
    """The tile for maps of H * W positions and features of `itemsize` bytes."""
    room = next(room for room in POSITIONS if positions <= room)
    block = max(min(TILE, TILE_BYTES // itemsize) // room, SECTOR // itemsize)
    crowded = itemsize == 8 or room == POSITIONS[-1]
    return Streaming(room, block, REGISTERS if crowded else None)


def split(channels: int, samples: int, block: int, device: torch.device) -> Splits:
    """Share the channels of each of `samples` maps so that all programs together fill the device."""
    blocks = ceil_div(channels, block)
    wanted = ceil_div(PROGRAMS * _multiprocessors(device), samples)
    most = max(1, channels // max(block, SPLIT_CHANNELS))
    each = ceil_div(blocks, min(wanted, most))
    return Splits(ceil_div(blocks, each), each)


def ceil_div(count: int, size: int) -> int:
    """count / size, rounded up; Triton's own takes a microsecond."""
    return -(-count // size)


def padded(side: int) -> int:
    """Cells of a heatmap along one axis, rounded up to what a dot product takes, a power of two."""
    return max(16, 1 << (side - 1).bit_length())


def small(height: int, width: int) -> bool:
    """Whether a heatmap fits the smallest tile of a dot product."""
    return padded(height) * padded(width) <= 256


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
