"""The kernels of tests/cuda/simt/samples*.cuh: each case runs one of them and tells whether its result is right."""

from functools import cache

import torch

from tests.cuda.simt import Emulator, build

SEEDS = range(10)


@cache
def samples(flavour: str = "instrumented", *faults: str, portable: bool = False) -> Emulator:
    defines = [f"FAULT_{fault}" for fault in faults]
    return Emulator(build("tests/cuda/simt/samples.cu", flavour, defines=defines, portable=portable))


def values(*shape: int) -> torch.Tensor:
    """Small integers in float32: any order of addition gives the same sum."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).float()


def block_sum(device: Emulator) -> bool:
    x, out = values(1000), torch.empty(3)
    device.watch(x=x)
    device.watch_output(out=out)
    assert device.launch_block_sum(x, out, 1000, 3) == 0
    return out.sum().item() == x.sum().item()


def normalise_rows(device: Emulator) -> bool:
    x = (values(4, 512) + 0.5).bfloat16()
    y = torch.full_like(x, torch.nan)
    device.watch(x=x)
    device.watch_output(y=y)
    assert device.launch_normalise_rows(x, y, 4, 512) == 0
    expected = (x.double() / x.double().square().mean(1, keepdim=True).sqrt()).bfloat16()
    return bool(((y.double() - expected.double()).abs() <= 2**-7 * expected.double().abs()).all())


def shares_agree(x: torch.Tensor, y: torch.Tensor) -> bool:
    return bool(((y - x / x.sum()).abs() < 1e-6).all())


def shares_in_sequence(device: Emulator, first_stream: int = 1, second_stream: int = 1) -> bool:
    x, partial, y = values(500) + 9, torch.full((4,), torch.nan), torch.full((500,), torch.nan)
    device.watch(x=x)
    device.watch_output(partial=partial, y=y)
    assert device.launch_shares_in_sequence(x, partial, y, 500, 4, first_stream, second_stream) == 0
    return shares_agree(x, y)


def histogram(device: Emulator) -> bool:
    x = torch.arange(1000, dtype=torch.int32) * 7919 % 251
    bins = torch.zeros(16, dtype=torch.int32)
    device.watch(x=x, bins=bins)
    assert device.launch_histogram(x, bins, 1000) == 0
    return torch.equal(bins.long(), torch.bincount(x % 16, minlength=16))


def reverse_warps(device: Emulator) -> bool:
    x, y = torch.arange(64, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
    device.watch(x=x)
    device.watch_output(y=y)
    assert device.launch_reverse_warps(x, y) == 0
    return torch.equal(y, x.view(2, 32).flip(1).flatten())


def sum_by_last(device: Emulator, threads: int = 128) -> bool:
    x, partial = values(1000), torch.full((5 * threads // 32,), torch.nan)
    counter, out = torch.full((2,), 7, dtype=torch.int32), torch.full((1,), torch.nan)
    device.watch(x=x)
    device.watch_output(partial=partial, counter=counter, out=out)
    assert device.launch_sum_by_last(x, partial, counter, out, 1000, 5, threads) == 0
    return out.item() == x.sum().item() and counter[0] == 5


def chain(device: Emulator, first_depends: bool = False) -> bool:
    count = 20 * 64 - 3
    x, work, y = (
        values(count) + 9,
        torch.full((2 * count * 4,), 255, dtype=torch.uint8),
        torch.full((count,), torch.nan),
    )
    i = torch.arange(count)
    expected = 3 * x**2 + i % 8 + i // 64
    device.watch(x=x)
    device.watch_output(work=work, y=y)
    assert device.launch_chain(x, work, y, count, first_depends) == 0
    return torch.equal(y, expected)


def chain_of_dependents(device: Emulator) -> bool:
    return chain(device, first_depends=True)


def tf32(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def factors(*shape: int, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tiles, rows, depth = shape
    return [torch.randn(tiles, *s, generator=generator, dtype=dtype) for s in ((rows, depth), (depth, 8))]


def close(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.double(), b.double()
    return bool(((c - a @ b).abs() <= 1e-6 * (a.abs() @ b.abs())).all())


def multiply(device: Emulator, split: bool = False) -> bool:
    a, b = factors(4, 16, 40)
    c = torch.full((4, 16, 8), torch.nan)
    device.watch(a=a, b=b)
    device.watch_output(c=c)
    assert device.launch_multiply(a, b, c, 4, 40, split) == 0
    if split:
        return close(c, a, b)
    expected = torch.zeros_like(c)
    for k in range(40):  # the emulator's order
        expected = (expected + tf32(a).double()[:, :, k, None] * tf32(b).double()[:, None, k]).float()
    return torch.equal(c, expected) and close(c, tf32(a), tf32(b))


def multiply_split(device: Emulator) -> bool:
    return multiply(device, split=True)


def multiply_double(device: Emulator) -> bool:
    a, b = (factor[0] for factor in factors(1, 8, 12, dtype=torch.float64))
    c = torch.ones(8, 8, dtype=torch.float64)
    device.watch(a=a, b=b, c=c)
    assert device.launch_multiply_double(a, b, c, 12) == 0
    return bool(((c - 1 - a @ b).abs() < 1e-14).all())


def gather(device: Emulator, stride: int = 1, slack: int = 28) -> bool:
    # With the slack, what a fault touches is memory of ours.
    x, y = values((100 + slack) * stride)[: 100 * stride], torch.empty(100 + slack)[:100]
    device.watch(x=x)
    device.watch_output(y=y)
    assert device.launch_gather(x, y, 100, stride) == 0
    return torch.equal(y, x[::stride])


def gather_from_the_end_of_memory(device: Emulator) -> bool:
    return gather(device, slack=0)


CASES = [
    block_sum, normalise_rows, shares_in_sequence, histogram, reverse_warps, gather, sum_by_last, multiply,
    multiply_split, multiply_double, chain, chain_of_dependents,
]  # fmt: skip

# Fault -> the kernel that has it, the kind of error that must be reported.
FAULTS = {
    "BARRIER": (block_sum, "race"),
    "SLOT": (normalise_rows, "race"),
    "WARP_BARRIER": (reverse_warps, "race"),
    "ATOMIC": (histogram, "race"),
    "SEQUENCE": (shares_in_sequence, "uninitialised"),
    "END": (gather, "out_of_bounds"),
    "TICKET": (sum_by_last, "race"),
    "TICKET_BARRIER": (sum_by_last, "race"),
    "TICKET_HOLDER": (sum_by_last, "race"),
    "TICKET_NEWS": (sum_by_last, "race"),
    "TICKET_FIRST": (sum_by_last, "race"),
    "TICKET_LATE": (sum_by_last, "race"),
    "TICKET_COUNTERS": (sum_by_last, "race"),
    "TICKET_PEEK": (sum_by_last, "race"),
    "TICKET_STREAM": (sum_by_last, "misuse"),
    "WAIT": (chain, "dependence"),
    "WAIT_OF_ONE": (chain, "dependence"),
    "EARLY_READ": (chain, "dependence"),
    "EARLY_WRITE": (chain, "dependence"),
    "EARLY_INPUT": (chain_of_dependents, "dependence"),
    "RELEASE": (chain, "dependence"),
}
