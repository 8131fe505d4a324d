"""The benchmark for GPUs: what it times, what it says, and that one failure hides no other figure."""

from dataclasses import replace

import pytest
import torch

from bench import device_time, gpu, peers
from bench.device_time import Activity
from bench.workloads import Workload


def small(weighting="pooled", dtype="float32"):
    return Workload("cgc", weighting, shape=(4, 16, 5, 4), dtype=dtype, image_size=12)


@pytest.mark.skipif(peers.no_compiler() is not None, reason=str(peers.no_compiler()))
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_gpu_benchmark_runs_anywhere(dtype):
    """Its code, on the CPU: figures of every candidate, ratios within rounds."""
    figures = gpu.measure(small(dtype=dtype), "cpu", 2, ("vectorised", "compiled", "torch"), copy_bytes=1 << 16)
    assert figures.failures == {}
    assert figures.floor_bytes == 6 * 4 * 16 * 20 * getattr(torch, dtype).itemsize
    assert set(figures.seconds) == {"copy", "vectorised", "compiled", "torch"}
    assert all(len(times) == 2 and min(times) > 0 for times in figures.seconds.values())
    assert min(figures.host["torch"]) > 0
    figures.seconds |= {"copy": [1.0, 1.0], "torch": [0.5, 0.25], "vectorised": [1.0, 1.0]}
    figures.host["torch"] = (1e-4, 2e-4)
    assert figures.over("vectorised", "torch") == 3.0
    assert figures.share_of_bandwidth("torch") == figures.floor_bytes / (2 << 16) * 3
    assert figures.bandwidth() == 2 << 16
    assert gpu.header().count("|") == 2 * (gpu.rows(figures)[0].count("|"))
    (row,) = gpu.rows(figures)
    assert "| torch | 375000.0 |" in row
    assert row.endswith("| 100 | 200 |")


def test_a_candidate_that_fails_hides_no_other(monkeypatch):
    def dies():
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setitem(peers.LOSSES, "literal", lambda: lambda *_, **__: dies())
    monkeypatch.setitem(peers.LOSSES, "vectorised", lambda: lambda *views, **__: sum(v.sum() for v in views[:4]))
    figures = gpu.measure(small(), "cpu", 1, ("literal", "vectorised", "torch"), copy_bytes=1 << 10)
    assert set(figures.seconds) == {"copy", "torch"}
    assert figures.failures["literal"] == "RuntimeError: out of luck"
    assert figures.failures["vectorised"].startswith("AssertionError: vectorised, result 0")
    assert "| torch |" in gpu.rows(figures)[0]
    assert f"- {figures.workload}, literal: FAILED, RuntimeError: out of luck" in gpu.notes([figures], 1)


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "without a profiler"])
def test_a_case_that_fails_hides_no_other(monkeypatch, capsys, broken):
    """All of it, but on the CPU: the second workload is refused, the third measured."""
    workloads = [small(), replace(small(), image_size=0), small("elementwise")]
    if broken:
        monkeypatch.setattr(device_time, "rounds", lambda *_: {}[0])
    monkeypatch.setattr(gpu, "WORKLOADS", workloads)
    monkeypatch.setattr(gpu, "candidates", lambda workload: ("torch",))
    figures = gpu.show(2, "cpu")
    assert [set(f.failures) for f in figures] == ([{"all"}] * 3 if broken else [set(), {"all"}, set()])
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if "| torch |" in line]) == (0 if broken else 2)
    failed = [line for line in said if "FAILED" in line]
    assert len(failed) == (3 if broken else 1)
    assert f"- {workloads[1]}, all: FAILED, " in failed[1 if broken else 0]


def test_every_case_is_another_and_the_slow_peers_see_few():
    assert len(set(gpu.WORKLOADS)) == len(gpu.WORKLOADS)
    assert set(gpu.WITH_ALL_PEERS) < set(gpu.WORKLOADS)
    first, last = (set(gpu.candidates(workload)) & set(gpu.PEERS) for workload in (gpu.WORKLOADS[0], gpu.WORKLOADS[-1]))
    assert (first, last) == (set(gpu.PEERS), {"vectorised"})


# ---- Time of the device


class Device:
    """Stands in for a stream and its profiler: kernels run one after another, a wait is a kernel of its own."""

    def __init__(self):
        self.activities, self.now = [], 0.0

    def kernel(self, name, seconds, gap=0.0, ahead=0.0):
        start = self.now + gap - ahead
        self.activities.append(Activity(name, start, start + seconds))
        self.now = start + seconds

    def sleep(self, cycles):
        self.kernel("at::cuda::(anonymous namespace)::spin_kernel(long)", 1e-9 * cycles)


def seconds(*arguments) -> dict[str, list[float]]:
    """Of each candidate in each round."""
    found = device_time.rounds(*arguments)
    return {name: [device_time.busy(run) for run in runs] for name, runs in found.items()}


@pytest.fixture
def device(monkeypatch):
    stream = Device()
    monkeypatch.setattr(torch.cuda, "_sleep", stream.sleep)
    monkeypatch.setattr(device_time, "_cycles", lambda run: 1000)
    monkeypatch.setattr(device_time, "record", lambda work: work() or stream.activities)
    return stream


def test_the_gaps_of_a_host_bound_candidate_are_not_its_time(device):
    """Two thousand launches of a microsecond, ten apart: two milliseconds, not twenty-two."""

    def many():
        for _ in range(2000):
            device.kernel("elementwise", 1e-6, gap=1e-5)

    timed = {"copy": lambda: device.kernel("Memcpy DtoD", 5e-4), "many": many}
    found = seconds(timed, 3, timed["copy"], "cuda")
    assert found == {"copy": pytest.approx([5e-4] * 3), "many": pytest.approx([2e-3] * 3)}


def test_a_dependent_launch_is_not_counted_twice(device):
    def two():
        device.kernel("cam_rows", 1e-3)
        device.kernel("resample_kernel", 5e-4, ahead=2e-4)

    found = seconds({"two": two}, 2, lambda: device.kernel("Memcpy DtoD", 1e-4), "cuda")
    assert found == {"two": pytest.approx([1.3e-3] * 2)}


def test_kernels_are_told_apart(device):
    def two():
        device.kernel("void cgc::cuda::(anonymous namespace)::cam_rows<float, 4>(cgc::cuda::CamCall<T1>)", 1e-3)
        device.kernel("resample_kernel", 5e-4, gap=2e-4)

    found = device_time.rounds({"two": two}, 2, lambda: device.kernel("Memcpy DtoD", 1e-4), "cuda")
    figures = gpu.Figures(small(), 1, 1, kernels={"cuda": device_time.kernels(found["two"])})
    assert gpu.kernel_rows([figures])[2:] == [
        f"| {small()} | cuda | cam_rows 1000.0 (0.0), resample_kernel 500.0 (1200.0) |"
    ]


def test_rounds_are_told_apart(device):
    lengths = iter([9, 9, 9, 9, 1, 2, 3, 4])  # two rounds ahead, of both candidates
    once = {name: lambda: device.kernel("k", next(lengths) * 1e-3) for name in ("a", "b")}
    found = seconds(once, 2, lambda: device.kernel("Memcpy DtoD", 1e-4), "cuda")
    assert found == {"a": pytest.approx([1e-3, 3e-3]), "b": pytest.approx([2e-3, 4e-3])}


@pytest.mark.parametrize("lost", [1, 5, 9])
def test_what_the_profiler_drops_at_its_start_costs_no_round(device, monkeypatch, lost):
    monkeypatch.setattr(device_time, "record", lambda work: work() or device.activities[lost:])
    found = seconds({"a": lambda: device.kernel("k", 1e-3)}, 3, lambda: device.kernel("Memcpy DtoD", 1e-4), "cuda")
    assert found == {"a": pytest.approx([1e-3] * 3)}


@pytest.mark.parametrize(
    "keep",
    [lambda all_of_it: [], lambda all_of_it: all_of_it[-6:], lambda all_of_it: [a for a in all_of_it if a.name != "k"]],
    ids=["nothing", "only the end", "no kernels"],
)
def test_records_with_holes_are_refused(device, monkeypatch, keep):
    monkeypatch.setattr(device_time, "record", lambda work: work() or keep(device.activities))
    with pytest.raises(RuntimeError, match="the profiler must record all of the device's work"):
        device_time.rounds(
            {"a": lambda: device.kernel("k", 1e-3)}, 3, lambda: device.kernel("Memcpy DtoD", 1e-4), "cuda"
        )


def test_a_lost_mark_is_noticed(device, monkeypatch):
    def without_one(work):
        work()
        marks = [i for i, activity in enumerate(device.activities) if device_time.MARK in activity.name]
        return [activity for i, activity in enumerate(device.activities) if i != marks[-4]]

    monkeypatch.setattr(device_time, "record", without_one)
    with pytest.raises(RuntimeError, match="the profiler must record"):
        device_time.rounds(
            {"a": lambda: device.kernel("k", 1e-3)}, 3, lambda: device.kernel("Memcpy DtoD", 1e-4), "cuda"
        )


def test_host_times_are_medians_of_each_half(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 10.0, 12.0, 16.0, 20.0, 23.0, 24.0])
    monkeypatch.setattr(device_time.time, "perf_counter", lambda: next(ticks))
    seen = []
    found = device_time.host_seconds(lambda: "loss", seen.append, "cpu", 3)
    assert found == (2.0, 2.0)
    assert seen == ["loss"] * 3


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own
def test_the_gpu_benchmark_on_a_gpu():
    workload = Workload("cgc", "elementwise", "channels_last", shape=(8, 64, 7, 7))
    names = [name for name in gpu.candidates(workload) if name != "compiled"]
    figures = gpu.measure(workload, "cuda", 3, names)
    assert figures.failures == {}
    assert all(len(times) == 3 and min(times) > 0 for times in figures.seconds.values())
    assert 1e10 < figures.bandwidth() < 2e13  # bytes a second, whatever else runs on the device
    assert 0 < figures.share_of_bandwidth("torch") < 1
    assert min(figures.host["torch"]) > 0
