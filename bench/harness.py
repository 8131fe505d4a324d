"""Measures one backend: in every round the peers, then the floor, then the backend, so that ratios are of one moment.

Nothing is timed before it agrees with `reference` (in float64) on the same inputs.
"""

import ctypes
import gc
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from tests.support.compare import assert_close

from . import memory, peers
from .floor import Floor, FloorUnavailable
from .problems import Problem, Step

# Largest error relative to the largest entry of the reference: (scalar results, tensors).
TOLERANCES = {"float64": (1e-10, 1e-10), "float32": (1e-5, 1e-4), "bfloat16": (1e-3, 2e-2)}
_KEEP = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_MMAP_THRESHOLD": (-3, 32 << 20)}


class Field:
    """What the backends of one problem are measured against: truth, peers, floor; made once, since compiling is slow.

    Args:
        problem: what is measured.
        peer_names: the peers to run, those of them that the problem has and this machine can compile.

    Raises:
        AssertionError: a peer disagrees with the reference.
    """

    def __init__(self, problem: Problem, peer_names: tuple[str, ...] = ()):
        self.problem = problem
        self._truth = problem.comparable(problem.truth())
        missing = ("compiled",) if peers.no_compiler() else ()
        names = [name for name in problem.peers if name in peer_names and name not in missing]
        self.peers = {name: problem.peers[name]() for name in names}
        for name, step in self.peers.items():
            self.check(name, step)
        self.without_floor = ""
        try:
            self.floor = Floor(problem.traffic)
        except FloorUnavailable as error:
            self.floor, self.without_floor = None, str(error)

    def check(self, name: str, step: Step) -> None:
        """Raise AssertionError if what `step` computes disagrees with the reference."""
        workload = self.problem.workload
        agree(f"{name} in {workload}", self.problem.comparable(step()), self._truth, TOLERANCES[workload.dtype])


class BackendTimer:
    """A backend in its field, checked and warm. Raises AssertionError if it disagrees with the reference."""

    def __init__(self, field: Field, backend: str):
        self._field, self.backend = field, backend
        self._step = field.problem.backend(backend)
        field.check(backend, self._step)
        self._results = None
        self._peer_seconds = {name: [] for name in field.peers}
        self._floor_seconds = []
        self._seconds_per_round = self._time_one_round()

    def rounds(self, seconds: float, least: int = 5, most: int = 60) -> int:
        """How many rounds take about `seconds`."""
        return min(most, max(least, round(seconds / self._seconds_per_round)))

    def around(self) -> None:
        """The part of a round that surrounds the backend: every peer and the floor, timed."""
        self._results = None  # freed here: giving memory back is no part of its time
        for name, step in self._field.peers.items():
            self._peer_seconds[name].append(timed(step))
        if self._field.floor:
            self._floor_seconds.append(self._field.floor.seconds())

    def run(self) -> None:
        """The backend, once."""
        self._results = self._step()

    def figures(self, seconds: list[float]) -> dict:
        """Everything that is reported, from the backend's seconds in each round since the timer was made."""
        workload, traffic = self._field.problem.workload, self._field.problem.traffic
        over_floor = np.divide(seconds, self._floor_seconds) if self._floor_seconds else None
        peer_ratios = {name: percentiles(np.divide(s, seconds)) for name, s in self._peer_seconds.items()}
        middle = median(seconds)
        return {
            "case": str(workload),
            "stage": workload.stage,
            "backend": self.backend,
            "threads": torch.get_num_threads(),
            "rounds": len(seconds),
            "milliseconds": percentiles(np.multiply(seconds, 1e3)),
            "bytes_read": traffic.read,
            "bytes_written": traffic.written,
            "gigabytes_per_second": traffic.total / middle / 1e9,
            "floor_milliseconds": median(self._floor_seconds) * 1e3 if self._floor_seconds else None,
            "time_over_floor": None if over_floor is None else percentiles(over_floor),
            "without_floor": self._field.without_floor,
            "peer_milliseconds": {name: median(s) * 1e3 for name, s in self._peer_seconds.items()},
            "peer_over_time": peer_ratios,
            "fastest_peer": min(peer_ratios, key=lambda name: peer_ratios[name]["p50"], default=None),
            "extra_bytes": memory.measure(workload, self.backend, torch.get_num_threads()),
            "feature_bytes": workload.feature_bytes,
        }

    def _time_one_round(self) -> float:
        start = time.perf_counter()
        self.around()
        self.run()
        seconds = time.perf_counter() - start
        for times in (*self._peer_seconds.values(), self._floor_seconds):
            times.clear()
        return seconds


def measure(timer: BackendTimer, rounds: int) -> dict:
    """Runs the rounds without pytest-benchmark; the figures."""
    seconds = []
    for _ in range(rounds):
        timer.around()
        start = time.perf_counter()
        timer.run()
        seconds.append(time.perf_counter() - start)
    return timer.figures(seconds)


def agree(name: str, results: tuple, truth: tuple, tolerance: tuple[float, float]) -> None:
    """Raise AssertionError unless the results agree with the float64 `truth`; tolerance: (scalars, other tensors)."""
    for i, (result, expected) in enumerate(zip(results, truth[: len(results)], strict=True)):
        assert_close(result, expected, tolerance[result.dim() > 0], what=f"{name}, result {i}", oracle=True)


def timed(step: Callable[[], object]) -> float:
    """Seconds of one call; what it returns is freed after the clock is read."""
    start = time.perf_counter()
    results = step()
    seconds = time.perf_counter() - start
    del results
    return seconds


def percentiles(values) -> dict[str, float]:
    """p20, p50 and p80."""
    return dict(zip(("p20", "p50", "p80"), map(float, np.percentile(values, (20, 50, 80))), strict=True))


def steady() -> None:
    """No garbage collection in between, and freed memory kept by the allocator (glibc), for backend and peers alike.

    glibc returns large blocks to the system or keeps them depending on what was freed before; the page faults of a
    fresh block cost as much as the whole floor, so without this the order of the tests would decide the figures.
    """
    gc.disable()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in _KEEP.values():
            mallopt(option, value)
