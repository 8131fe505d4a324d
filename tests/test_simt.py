"""The emulator that runs CUDA kernels on the CPU does what a device does, and finds the faults planted in samples."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from simt import Emulator, Traffic, asan_environment, build, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

HERE = Path(__file__).resolve().parent
SEEDS = range(10)


@cache
def samples(flavour: str = "instrumented", *faults: str, portable: bool = False) -> Emulator:
    defines = [f"FAULT_{fault}" for fault in faults]
    return Emulator(build("tests/simt/samples.cu", flavour, defines=defines, portable=portable))


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


def shares(device: Emulator) -> bool:
    x, partial, y = values(500) + 9, torch.full((4,), torch.nan), torch.full((500,), torch.nan)
    device.watch(x=x)
    device.watch_output(partial=partial, y=y)
    assert device.launch_shares(x, partial, y, 500, 4) == 0
    return shares_agree(x, y)


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


def gather(device: Emulator, stride: int = 1, slack: int = 28) -> bool:
    # With the slack, what a fault touches is memory of ours.
    x, y = values((100 + slack) * stride)[: 100 * stride], torch.empty(100 + slack)[:100]
    device.watch(x=x)
    device.watch_output(y=y)
    assert device.launch_gather(x, y, 100, stride) == 0
    return torch.equal(y, x[::stride])


def gather_from_the_end_of_memory(device: Emulator) -> bool:
    return gather(device, slack=0)


CASES = [block_sum, normalise_rows, shares, shares_in_sequence, histogram, reverse_warps, gather]

# Fault -> the kernel that has it, the kind of error that must be reported.
FAULTS = {
    "BARRIER": (block_sum, "race"),
    "SLOT": (normalise_rows, "race"),
    "WARP_BARRIER": (reverse_warps, "race"),
    "GRID_BARRIER": (shares, "race"),
    "ATOMIC": (histogram, "race"),
    "SEQUENCE": (shares_in_sequence, "uninitialised"),
    "END": (gather, "out_of_bounds"),
}


@pytest.mark.parametrize("flavour", ["plain", "instrumented"])
@pytest.mark.parametrize("case", CASES)
def test_clean_code_is_right_and_clean_on_every_schedule(case, flavour):
    device = samples(flavour)
    for seed in SEEDS:
        device.setup(seed, 0.05)
        assert case(device), f"seed {seed}"
        device.assert_clean()


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_on_every_schedule(fault):
    case, kind = FAULTS[fault]
    device = samples("instrumented", fault)
    for seed in SEEDS:
        device.setup(seed)
        case(device)
        assert device.error_counts()[kind] > 0, f"seed {seed}"
        assert "samples.cuh:" in device.messages()


@pytest.mark.parametrize("fault", ["BARRIER", "GRID_BARRIER", "WARP_BARRIER", "SEQUENCE"])
def test_missing_order_gives_wrong_results_without_instrumentation_on_some_schedule(fault):
    case, _ = FAULTS[fault]
    device = samples("plain", fault)

    def right(seed: int) -> bool:
        device.setup(seed)
        return case(device)

    assert not all(right(seed) for seed in SEEDS)


def test_threads_are_switched_without_assembly_too():
    device = samples(portable=True)
    device.setup(1, 0.05)
    assert shares(device)
    assert reverse_warps(device)
    device.assert_clean()


def test_launches_on_two_streams_are_not_ordered():
    device = samples()
    device.setup()
    assert shares_in_sequence(device, 1, 2)
    assert device.error_counts()["race"] > 0
    assert "another stream" in device.messages()


def test_a_schedule_can_be_played_again():
    device = samples("instrumented", "ATOMIC")

    def counts(seed: int) -> list[int]:
        device.setup(seed, 0.3)
        x, bins = torch.zeros(128, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
        device.watch(x=x, bins=bins)
        device.launch_histogram(x, bins, 128)
        return bins.tolist()

    assert counts(3) == counts(3)
    assert len({tuple(counts(seed)) for seed in range(1, 6)}) > 1


def test_warp_and_block_operations_follow_the_programming_guide():
    device = samples("plain")
    for seed in SEEDS:
        device.setup(seed)
        out = torch.full((64, 6), -1, dtype=torch.int32)
        assert device.launch_warp_operations(out) == 0
        lane = torch.arange(64) % 32
        down, up = lane + 4, lane - 4
        expected = torch.stack(
            [
                torch.full((64,), sum(1 << i for i in range(0, 32, 3))),
                torch.full((64,), 32),
                torch.where(lane < 16, torch.where(down < 16, down, lane), torch.where(up >= 16, up, lane)),
                lane // 8 * 8 + 5,
                (lane // 8 * 8) * 8 + 28,
                torch.full((64,), 1 + 2 + 4),
            ],
            dim=1,
        )
        assert torch.equal(out.long(), expected)
        device.assert_clean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_converts_as_torch_does(dtype):
    device = samples("plain")
    device.setup()
    x = torch.tensor([0.0, -0.0, 1.0, 6e-8, -3e-5, 0.1, 2047.0, 40000.0, 3e38, torch.inf, torch.nan], dtype=dtype)
    y = torch.empty_like(x)
    launch = device.launch_twice_float16 if dtype == torch.float16 else device.launch_twice_bfloat16
    assert launch(x, y, x.numel()) == 0
    assert torch.equal(y.view(torch.int16)[:-1], (2 * x).view(torch.int16)[:-1])
    assert y[-1].isnan()


def test_bytes_and_sectors_of_vector_accesses():
    device = samples()
    device.setup(1)
    assert normalise_rows(device)
    row = 512 * 2
    # Each row is read twice, sixteen bytes a lane: 64 vectors a row for 128 threads, so that two warps work.
    assert device.loads("x") == Traffic(2 * 4 * row, 2 * 4 * row, 2 * 4 * row // 32, 2 * 4 * 2, 2 * 4 * 64, 0)
    assert device.stores("y") == Traffic(4 * row, 4 * row, 4 * row // 32, 4 * 2, 4 * 64, 0)
    assert device.loads("x").efficiency == 1.0
    assert device.loads("y").requests == 0


def test_bytes_and_sectors_of_a_strided_gather():
    device = samples()
    device.setup(1)
    assert gather(device, stride=8)
    loads = device.loads("x")
    # 100 lanes in warps of 32, 32, 32 and 4; each lane touches a sector of its own and uses four bytes of it.
    assert (loads.requested, loads.sectors, loads.requests, loads.lanes, loads.wasteful) == (400, 100, 4, 100, 4)
    assert loads.efficiency == 1 / 8
    assert device.stores("y").sectors == 13  # 100 floats of an aligned tensor


def test_lanes_that_ran_more_often_are_in_step_again_after_a_barrier():
    device, rounds = samples(), 5
    device.setup(1)
    x, y = values(rounds * 64), torch.full((36,), torch.nan)
    device.watch(x=x)
    device.watch_output(y=y)
    assert device.launch_columns(x, y, rounds) == 0
    assert torch.allclose(y, x.view(rounds, 64)[:, :36].sum(0))
    loads = device.loads("x")
    # In each round all 32 lanes read four sectors, and then four lanes read half of one.
    assert (loads.requests, loads.sectors, loads.wasteful) == (2 * rounds, 5 * rounds, rounds)


def test_broadcasts_are_counted_once_among_distinct_bytes():
    device = samples()
    device.setup()
    assert shares(device)
    loads = device.loads("partial")  # all lanes read the same float
    assert loads.distinct * 32 == loads.requested
    with pytest.raises(KeyError, match="no tensor is watched as 'nothing'"):
        device.loads("nothing")


def test_shared_memory_is_as_large_as_on_the_smallest_device():
    device, numbers = samples("plain"), torch.arange(64, dtype=torch.int32)
    device.setup()
    assert device.launch_with_shared_memory(numbers, 99 * 1024) == 0
    device.assert_clean()
    assert device.launch_with_shared_memory(numbers, 99 * 1024 + 1) == 1
    assert "101377 bytes of shared memory" in device.messages()


def test_a_divergent_barrier_is_a_deadlock():
    device = samples("plain")
    device.setup()
    assert device.launch_stuck_at_barrier(64) == 0
    device.assert_clean()
    assert device.launch_stuck_at_barrier(40) == 1
    assert device.error_counts()["deadlock"] == 1
    assert "deadlock in block 0: threads at __syncthreads 40, at a warp operation 24" in device.messages()


def test_a_grid_barrier_that_not_all_blocks_reach_is_a_deadlock():
    device = samples("plain")
    device.setup()
    assert device.launch_stuck_at_grid_barrier(4) == 0
    device.assert_clean()
    assert device.launch_stuck_at_grid_barrier(3) == 1
    assert "3 blocks at grid.sync, 1 returned" in device.messages()
    # The next launch starts afresh.
    device.setup()
    assert shares(device)
    device.assert_clean()


def test_a_grid_barrier_needs_a_cooperative_launch():
    device = samples("plain")
    device.setup()
    assert device.launch_grid_barrier_alone() == 1
    assert "not cooperative" in device.messages()


def test_the_device_refuses_a_cooperative_launch_that_it_cannot_hold():
    device = samples("plain")
    x, partial, y = values(500) + 9, torch.full((4,), torch.nan), torch.full((500,), torch.nan)
    for properties, outcome in (({}, 0), ({"resident_blocks": 3}, 2), ({"cooperative": False}, 3)):
        device.setup(**properties)
        before = device.launches()
        assert device.launch_shares(x, partial, y, 500, 4) == outcome
        assert device.launches() - before == (outcome == 0)
        assert shares_in_sequence(device)  # which needs neither
        device.assert_clean()


def test_a_shuffle_from_a_lane_outside_the_mask_is_an_error():
    device = samples("plain")
    device.setup()
    out = torch.zeros(16, dtype=torch.int32)
    device.launch_bad_shuffle(out)
    assert device.error_counts()["warp_op"] == 16
    assert "lane 20, which does not take part" in device.messages()


ASAN_RUN = """
import sys
sys.path[:0] = [{here!r}]
import test_simt
device = test_simt.samples("asan", *sys.argv[2:])
device.setup(1)
for case in sys.argv[1].split(","):
    assert getattr(test_simt, case)(device), case
print("clean")
"""


def run_under_asan(cases: str, *faults: str) -> subprocess.CompletedProcess:
    build("tests/simt/samples.cu", "asan", defines=[f"FAULT_{fault}" for fault in faults])  # not under the sanitizer
    command = [sys.executable, "-c", ASAN_RUN.format(here=str(HERE)), cases, *faults]
    return subprocess.run(command, text=True, capture_output=True, env=asan_environment())


def test_clean_code_is_clean_under_address_sanitizer():
    done = run_under_asan(",".join(case.__name__ for case in CASES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "clean"


@pytest.mark.parametrize(
    ("case", "fault", "where"),
    [
        ("gather_from_the_end_of_memory", "END", "heap-buffer-overflow"),
        ("reverse_warps", "SHARED_END", "global-buffer-overflow"),
    ],
)
def test_reads_past_the_end_are_found_by_address_sanitizer(case, fault, where):
    done = run_under_asan(case, fault)
    assert done.returncode != 0
    assert where in done.stderr
    assert "samples.cuh:" in done.stderr
