"""Seconds that candidates keep a device busy, from the profiler's records of its kernels.

Events on the stream would also count the gaps in which the device waits for its host, and a candidate of more than
about a thousand launches fills their queue: it is timed by its host, whatever waits in front. What is counted here is
the time in which kernels, copies and fills run. On the CPU it is the clock.
"""

import functools
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]

MARK = "spin_kernel"  # what torch.cuda._sleep runs
LOST = 2  # rounds ahead of the others, since the profiler may drop what a session starts with (pytorch#192021)
LONGEST_WAIT = 5e-3  # seconds


class Activity(NamedTuple):
    """One kernel, copy or fill on the device; times in seconds."""

    name: str
    start: float
    stop: float


def rounds(candidates: dict[str, Step], number: int, evict: Step, device: str) -> dict[str, list[list[Activity]]]:
    """What each candidate made the device do in each of the rounds; on the CPU that is one activity a run.

    candidates: warm already; every round runs each once, in order. evict: one copy or fill of more bytes than the cache
    has; it precedes each run. device: "cuda" or "cpu".

    Raises:
        RuntimeError: the profiler has not recorded all of the device's work.
    """
    if device == "cpu":
        timed = [[Activity("", 0.0, _clock(run))] for _ in range(number) for run in candidates.values()]
        return _deal(timed, list(candidates))
    waits = [_cycles(run) for run in candidates.values()]

    def work() -> None:
        for _ in range(LOST + number):
            for run, cycles in zip(candidates.values(), waits, strict=True):
                evict()
                torch.cuda._sleep(cycles)  # the host queues the run meanwhile, as much of it as the queue takes
                run()
                torch.cuda._sleep(1)

    return _deal(runs(record(work), len(candidates) * number), list(candidates))


def record(work: Callable[[], None]) -> list[Activity]:
    """What the device does during `work`, in the order of its beginning."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    events = (e for e in profiler.events() if e.device_type == DeviceType.CUDA)
    done = [e for e in events if not e.is_user_annotation and not e.name.endswith(" Sync")]
    times = ((e.name, e.time_range.start / 1e6, e.time_range.end / 1e6) for e in done)
    return sorted((Activity(*each) for each in times), key=lambda activity: activity.start)


def runs(activities: list[Activity], number: int) -> list[list[Activity]]:
    """The last `number` runs: what is between two marks, of which there is one on each side of every run.

    Raises:
        RuntimeError: there are fewer, or what is between two of them is not the one activity that evicts.
    """
    marks = [i for i, activity in enumerate(activities) if MARK in activity.name]
    between = [activities[a + 1 : b] for a, b in pairwise(marks)]
    found, evictions = between[::-2][:number], between[-2::-2][: number - 1]
    alone = all(len(each) == 1 for each in evictions) and len({each[0].name for each in evictions}) <= 1
    if len(found) < number or not all(found) or not alone:
        raise RuntimeError(
            f"the profiler must record all of the device's work, got {len(activities)} activities, {len(found)} "
            f"of {number} runs: is CUPTI there, and is nothing else profiling?"
        )
    return found[::-1]


def _deal(found: list[list[Activity]], names: list[str]) -> dict[str, list[list[Activity]]]:
    """By candidate, of the runs of whole rounds."""
    return {name: found[i :: len(names)] for i, name in enumerate(names)}


def kernels(found: list[list[Activity]]) -> list[tuple[str, float, float]]:
    """Of runs of one candidate, (name, seconds, start) of each kernel of a run, in order of their start: medians.

    start: seconds since the run's first one began. Runs of another number of kernels than the first are left out.
    """
    alike = [run for run in found if len(run) == len(found[0])]
    return [
        (
            each[0].name,
            median(a.stop - a.start for a in each),
            median(a.start - run[0].start for a, run in zip(each, alike, strict=True)),
        )
        for each in zip(*alike, strict=True)
    ]


def busy(activities: list[Activity]) -> float:
    """Seconds in which at least one of them runs: a dependent launch begins before the kernel ahead of it ends."""
    total, until = 0.0, float("-inf")
    for activity in activities:
        total += max(0.0, activity.stop - max(activity.start, until))
        until = max(until, activity.stop)
    return total


def host_seconds(forward: Callable[[], object], backward: Callable[[object], object], device: str, repeats: int):
    """Medians of (forward, backward): seconds that a call takes the host, which does not wait for the device.

    The queue of launches is empty when a forward begins.
    """
    seconds = []
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        value = forward()
        middle = time.perf_counter()
        gradients = backward(value)
        seconds.append((middle - start, time.perf_counter() - middle))
        del value, gradients
    return tuple(float(torch.tensor(each, dtype=torch.float64).median()) for each in zip(*seconds, strict=True))


def _clock(run: Step) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cycles(run: Step) -> int:
    """Cycles of a wait in which the host queues a run, twice over; no longer than what fills the queue anyway."""
    torch.cuda.synchronize()
    seconds = min(2 * _clock(run) + 1e-4, LONGEST_WAIT)
    torch.cuda.synchronize()
    return int(seconds * _cycles_a_second())


@functools.cache
def _cycles_a_second(cycles: int = 10_000_000) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.cuda._sleep(cycles)
    stop.record()
    stop.synchronize()
    return cycles / (start.elapsed_time(stop) / 1e3)
