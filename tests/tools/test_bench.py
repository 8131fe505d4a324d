"""The benchmarks themselves: peers compute the loss, nothing wrong is timed, figures are what they are called."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import bench_cam, bench_cgc, bench_contrast, bench_resample, harness, memory, peers, report
from bench.floor import Floor, FloorUnavailable, Traffic, library
from bench.problems import build
from bench.workloads import Workload, random_crop, view
from cgc_kernels import CropFlip, cgc_loss
from cgc_kernels.options import OBJECTIVES
from tests.support import ROOT

DATA = ROOT / "tests" / "loss" / "golden"
EAGER_PEERS = ("literal", "grid_sample", "vectorised")
DEFAULT_WORKLOADS = (*bench_cgc.DEFAULT, *bench_cam.DEFAULT, *bench_resample.DEFAULT, *bench_contrast.DEFAULT)
NAMES = ("features", "gradients", "aug_features", "aug_gradients")


def small(workload):
    return replace(workload, shape=(5, 6, 4, 3), image_size=20)


def relative_error(result, expected):
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def loops():
    try:
        return library()
    except FloorUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.npz")), ids=lambda path: path.stem)
@pytest.mark.parametrize("name", EAGER_PEERS)
def test_peers_give_the_released_codes_numbers(name, path):
    data = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    box, flip = data["crop"].split((4, 1), dim=1)
    leaves = [data[key].requires_grad_() for key in NAMES]
    loss = peers.LOSSES[name]()(
        *leaves,
        CropFlip(*box.unbind(1), flip[:, 0].bool()),
        image_size=(data["image_size"].item(),) * 2,
        temperature=data["temperature"].item(),
        weighting="elementwise",
    )
    assert relative_error(loss, data["loss"]) < 1e-12
    for key, grad in zip(NAMES, torch.autograd.grad(loss, leaves), strict=True):
        assert relative_error(grad, data[f"grad_{key}"]) < 1e-10


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighting", ["elementwise", "gradcam", "pooled"])
@pytest.mark.parametrize("name", EAGER_PEERS)
def test_peers_agree_with_the_reference(name, weighting, objective):
    workload = Workload("cgc", weighting, layout="channels_last", dtype="float64", shape=(5, 6, 4, 3))
    leaves = [*view(workload, 0), *view(workload, 1)]
    crop = random_crop(5, 18)
    options = {"weighting": weighting.replace("pooled", "gradcam"), "objective": objective, "image_size": (24, 18)}
    expected = cgc_loss(leaves[:2], leaves[2:], crop, **options, backend="reference")
    loss = peers.LOSSES[name]()(*leaves, crop, **options)
    assert relative_error(loss, expected) < 1e-10
    grads = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True)
    assert max(relative_error(grad, truth) for grad, truth in grads) < 1e-9


@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("name", EAGER_PEERS)
def test_peers_make_their_tables_on_the_device_of_their_inputs(name, weighting):
    """Fake tensors stand in for a GPU's; two devices in one operation are an error, as inside torch.compile."""
    crop = CropFlip(*torch.ones(4, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))
    with FakeTensorMode(allow_non_fake_inputs=True):
        views = [torch.empty(3, 6, 4, 3, device="cuda") for _ in range(4)]
        if name != "literal":  # which reads the numbers, and fake tensors have none
            crop = CropFlip(*(torch.empty_like(field, device="cuda") for field in crop))
        loss = peers.LOSSES[name]()(*views, crop, image_size=(24, 18), weighting=weighting)
    assert loss.device.type == "cuda"


@pytest.mark.slow
@pytest.mark.skipif(peers.no_compiler() is not None, reason=str(peers.no_compiler()))
def test_compiled_peer_agrees_with_the_reference():
    harness.Field(build(small(Workload("cgc"))), ("compiled",))


@pytest.mark.parametrize("workload", dict.fromkeys(map(small, DEFAULT_WORKLOADS)), ids=str)
def test_every_case_is_measured_against_peers_that_agree(workload, monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda *_: 0)
    field = harness.Field(build(workload), EAGER_PEERS)
    figures = harness.measure(harness.BackendTimer(field, "torch"), rounds=2)
    assert set(field.peers) == {"vectorised", "literal", "grid_sample"} & set(field.problem.peers)
    assert str(workload) in report.table([figures])


def test_a_wrong_peer_is_never_timed():
    problem = build(small(Workload("cgc")))
    right = problem.peers["vectorised"]()
    problem.peers["wrong"] = lambda: lambda: tuple(result * 1.001 for result in right())
    with pytest.raises(AssertionError, match=r"wrong in .*result 0"):
        harness.Field(problem, ("wrong",))


@pytest.mark.parametrize("bad", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.1]), torch.ones(1, 2)])
def test_agree_refuses(bad):
    with pytest.raises(AssertionError, match="result 0"):
        harness.agree("entry", (bad,), (torch.tensor([1.0, 2.0]),), (1e-2, 1e-2))


def test_figures_are_paired_within_rounds(monkeypatch):
    """A machine that slows down tenfold in one round leaves the ratios as they are."""
    clock, slowness = [0.0], iter([1, 1, 10, 1])  # the first round is the warm-up
    now = [1]

    def takes(seconds):
        def step():
            clock[0] += seconds * now[0]
            return (torch.zeros(()),)

        return step

    problem = build(small(Workload("cgc")))
    problem.truth = takes(0)
    problem.backend = lambda name: takes(2.0)
    problem.peers = {"slow": lambda: takes(6.0), "fast": lambda: takes(3.0)}
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(harness, "agree", lambda *_: None)
    monkeypatch.setattr(memory, "measure", lambda *_: 123)
    monkeypatch.setattr(harness, "Floor", lambda _: type("", (), {"seconds": lambda _: now[0] * 1.0})())
    timers = harness.BackendTimer
    around = timers.around
    monkeypatch.setattr(timers, "around", lambda timer: (now.__setitem__(0, next(slowness)), around(timer)))

    figures = harness.measure(timers(harness.Field(problem, ("slow", "fast")), "torch"), rounds=3)
    assert figures["milliseconds"] == pytest.approx({"p20": 2000, "p50": 2000, "p80": 12800})
    assert figures["peer_over_time"]["slow"] == pytest.approx({"p20": 3, "p50": 3, "p80": 3})
    assert figures["peer_over_time"]["fast"]["p50"] == pytest.approx(1.5)
    assert figures["time_over_floor"] == pytest.approx({"p20": 2, "p50": 2, "p80": 2})
    assert figures["fastest_peer"] == "fast"
    assert figures["gigabytes_per_second"] == pytest.approx(problem.traffic.total / 2e9)
    assert figures["extra_bytes"] == 123


@pytest.mark.parametrize(
    ("weighting", "forward", "backward"), [("pooled", 2, 4), ("gradcam", 4, 4), ("elementwise", 4, 8)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_traffic_is_the_floor_of_the_mathematics(weighting, forward, backward, dtype):
    """Feature tensors moved each way, both views; what is [B, C]-sized is counted too, and small."""
    workload = Workload("cgc", weighting, dtype=dtype, shape=(2, 64, 7, 7))
    moved = {
        way: build(replace(workload, backward=way)).traffic.total / workload.feature_bytes for way in (False, True)
    }
    assert moved[False] == pytest.approx(forward, rel=0.03)
    assert moved[True] - moved[False] == pytest.approx(backward, rel=0.03)


def test_floor_loops_touch_every_byte(loops):
    values = torch.arange(1, 4097, dtype=torch.int32)
    start = -values.data_ptr() % 64 // 4
    inside = values[start : start + 3968]  # 31 blocks, aligned
    assert loops.floor_read(inside.data_ptr(), inside.numel() * 4, 2) == inside.sum().item()
    loops.floor_write(inside.data_ptr(), inside.numel() * 4, 2)
    assert inside.eq(1).all()
    assert values[:start].eq(torch.arange(1, start + 1)).all()
    assert values[-1] == 4096


def test_floor_is_bytes_over_bandwidth(loops):
    both, read = (
        min(Floor(Traffic(1 << 25, written, 1 << 24, 1 << 24)).seconds() for _ in range(5)) for written in (1 << 25, 0)
    )
    assert 0 < read < both < 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_peak_memory_counts_temporaries_and_neither_inputs_nor_results(blocks):
    source = torch.ones(12 << 20)  # 48 MiB: glibc maps and unmaps blocks of this size

    def step():
        temporaries = [source + i for i in range(blocks)]
        return (source * (1 + len(temporaries)),)

    step()
    assert memory._peak_extra(step) / 2**20 == pytest.approx(48 * blocks, abs=2)


def test_memory_is_measured_in_a_fresh_process():
    assert 0 <= (memory.measure(small(Workload("cgc")), "torch", 1) or 0) < 16 << 20


def test_no_two_workloads_share_a_name():
    workloads = {
        workload for module in (bench_cam, bench_cgc, bench_contrast, bench_resample) for workload in module.EXHAUSTIVE
    }
    assert len({str(workload) for workload in workloads}) == len(workloads)


# What pytest-benchmark 5.2 does at its start when xdist runs the tests.
WARNING_PLUGIN = """
import warnings

def pytest_configure():
    warnings.warn("Benchmarks are automatically disabled because xdist plugin is active.Benchmarks cannot be performed")
"""


def test_a_warning_of_pytest_benchmark_under_xdist_does_not_end_pytest(tmp_path):
    (tmp_path / "warns.py").write_text(WARNING_PLUGIN)
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    settings = ROOT / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", "-c", str(settings), "-p", "warns", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, tmp_path], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
