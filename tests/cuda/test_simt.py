"""The emulator that runs CUDA kernels on the CPU does what a device does, and finds the faults planted in samples."""

import re
import subprocess
import sys

import pytest
import torch

from tests.cuda.simt import Traffic, asan_environment, build, missing
from tests.cuda.simt_cases import (
    CASES,
    FAULTS,
    SEEDS,
    gather,
    multiply,
    multiply_split,
    normalise_rows,
    reverse_warps,
    samples,
    shares_in_sequence,
    values,
)
from tests.support import ROOT

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


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
        assert re.search(r"samples\w*\.cuh:", device.messages())


@pytest.mark.parametrize("fault", ["BARRIER", "WARP_BARRIER", "SEQUENCE"])
def test_missing_order_gives_wrong_results_without_instrumentation_on_some_schedule(fault):
    case, _ = FAULTS[fault]
    device = samples("plain", fault)

    def right(seed: int) -> bool:
        device.setup(seed)
        return case(device)

    assert not all(right(seed) for seed in SEEDS)


@pytest.mark.parametrize("flavour", ["plain", "instrumented"])
@pytest.mark.parametrize(
    ("fault", "case"), [("FRAGMENT", multiply), ("FRAGMENT", multiply_split), ("SPLIT", multiply_split)]
)
def test_wrong_fragment_or_rounding_gives_a_wrong_product_on_every_schedule(fault, case, flavour):
    device = samples(flavour, fault)
    for seed in SEEDS:
        device.setup(seed)
        assert not case(device), f"seed {seed}"


def test_an_mma_needs_the_whole_warp():
    device = samples("plain")
    device.setup()
    c = torch.zeros(32, dtype=torch.float64)
    assert device.launch_multiply_by_half(c) == 0
    assert device.error_counts()["warp_op"] == 1
    assert "mma by lanes 0xffff of a warp" in device.messages()
    assert c[:16].isnan().all()


def test_threads_are_switched_without_assembly_too():
    device = samples(portable=True)
    device.setup(1, 0.05)
    assert shares_in_sequence(device)
    assert reverse_warps(device)
    device.assert_clean()


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


def test_streamed_accesses_are_counted_as_others():
    device = samples()
    device.setup(1)
    x, y = (torch.zeros(101, 4).copy_(values(101, 4)) for _ in range(2))
    device.watch(x=x)
    device.watch_output(y=y)
    assert device.launch_copy_stream(x, y, 101) == 0
    assert torch.equal(x, y)
    for traffic in (device.loads("x"), device.stores("y")):
        assert (traffic.requested, traffic.distinct, traffic.requests, traffic.lanes) == (1616, 1616, 4, 101)


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
    assert shares_in_sequence(device)
    loads = device.loads("partial")  # all lanes read the same float
    assert loads.distinct * 32 == loads.requested
    with pytest.raises(KeyError, match="no tensor is watched as 'nothing'"):
        device.loads("nothing")


def test_shared_memory_is_as_large_as_a_launch_asks_for():
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


def test_a_shuffle_from_a_lane_outside_the_mask_is_an_error():
    device = samples("plain")
    device.setup()
    out = torch.zeros(16, dtype=torch.int32)
    device.launch_bad_shuffle(out)
    assert device.error_counts()["warp_op"] == 16
    assert "lane 20, which does not take part" in device.messages()


ASAN_RUN = """
import sys
sys.path[:0] = [{root!r}]
from tests.cuda import simt_cases
device = simt_cases.samples("asan", *sys.argv[2:])
device.setup(1)
for case in sys.argv[1].split(","):
    assert getattr(simt_cases, case)(device), case
print("clean")
"""


def run_under_asan(cases: str, *faults: str) -> subprocess.CompletedProcess:
    build(
        "tests/cuda/simt/samples.cu", "asan", defines=[f"FAULT_{fault}" for fault in faults]
    )  # not under the sanitizer
    command = [sys.executable, "-c", ASAN_RUN.format(root=str(ROOT)), cases, *faults]
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
