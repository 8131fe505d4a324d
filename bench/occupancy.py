"""Theoretical occupancy of a kernel: the share of a multiprocessor's warps that can be resident at once."""

from typing import NamedTuple

WARP = 32
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # registers are given to warps in multiples of it
SCHEDULERS = 4  # warps are given to them in turn, each has a quarter of the registers
SHARED_UNIT = 128  # bytes
SHARED_RESERVED = 1024  # bytes of each block, for the system


class Multiprocessor(NamedTuple):
    """Limits of one multiprocessor, from the CUDA programming guide's table of technical specifications."""

    threads: int
    blocks: int
    shared: int  # bytes of all blocks, reserved ones included
    shared_block: int  # bytes of one block


MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164 * 1024, 163 * 1024),
    90: Multiprocessor(2048, 32, 228 * 1024, 227 * 1024),
    100: Multiprocessor(2048, 32, 228 * 1024, 227 * 1024),
}


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def resident_blocks(registers: int, shared: int, threads: int, architecture: int) -> int:
    """Blocks that one multiprocessor holds at once; 0 where not even one fits.

    registers: of a thread. shared: bytes of a block, static and dynamic. threads: of a block, 1 to 1024.
    architecture: 80, 90 or 100.
    """
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads must be 1 to 1024, got {threads}")
    limits = MULTIPROCESSORS[architecture]
    warps = round_up(threads, WARP) // WARP
    if shared > limits.shared_block:
        return 0
    warp_registers = round_up(registers * WARP, REGISTER_UNIT)
    warps_by_registers = REGISTERS // SCHEDULERS // warp_registers * SCHEDULERS if registers else warps * limits.blocks
    return min(
        limits.blocks,
        limits.threads // (warps * WARP),
        warps_by_registers // warps,
        limits.shared // round_up(shared + SHARED_RESERVED, SHARED_UNIT),
    )


def occupancy(registers: int, shared: int, threads: int, architecture: int) -> float:
    """Resident warps over those that a multiprocessor can hold; arguments as of `resident_blocks`.

    >>> occupancy(registers=64, shared=0, threads=256, architecture=80)
    0.5
    """
    warps = round_up(threads, WARP) // WARP * resident_blocks(registers, shared, threads, architecture)
    return warps * WARP / MULTIPROCESSORS[architecture].threads
