"""`python -m bench.gpu`: the loss on a GPU, every backend against its peers and against the device's own bandwidth.

In every round a plain copy, each peer and each backend run once, each after another copy has evicted its inputs from
the cache; their times are those in which the device works (bench/device_time.py), and ratios are taken within a round.
A backend's share of the bandwidth is the bytes of its floor (docs/performance.md) over its time, beside the bytes a
second of that round's copy. Host times are of calls that do not wait for the device. Nothing is timed before it agrees
with `reference` in float64 on the same inputs; peers, whose sums are rounded as the inputs are, in float32. A second
table has the kernels of the fused backends one by one. A candidate that fails is named below, and in the exit status.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cgc_kernels.backends import unavailable

from . import device_time
from .harness import TOLERANCES, agree, steady
from .problems import backend_loss, peer_loss
from .workloads import Workload, grid, random_crop, view

FUSED = ("cuda", "triton")
BACKENDS = (*FUSED, "torch")
PEERS = ("vectorised", "compiled", "literal")
COPY_BYTES = 1 << 28
HOST_REPEATS = 30
_BF16 = Workload("cgc", layout="channels_last", dtype="bfloat16")
# Compiling takes longest, and the loop over the samples has thousands of launches.
WITH_ALL_PEERS = [
    *grid(_BF16, weighting=("pooled", "elementwise")),
    Workload("cgc", "elementwise"),
]
WORKLOADS = [
    *WITH_ALL_PEERS,
    Workload("cgc", "pooled"),
    Workload("cgc", "elementwise", "channels_last"),
    *grid(_BF16, weighting=("pooled",), shape=((8, 2048, 7, 7), (256, 512, 7, 7), (256, 2048, 7, 7))),
    *grid(_BF16, weighting=("elementwise",), shape=((256, 2048, 7, 7), (128, 768, 14, 14))),
    Workload("cgc", "elementwise", "contiguous", "bfloat16", (128, 768, 14, 14)),
    Workload("cgc", "elementwise", shape=(256, 2048, 7, 7)),
    Workload("cgc", "gradcam", shape=(128, 768, 14, 14)),
]


@dataclass
class Figures:
    """Of one workload: seconds of every round, by candidate, and of the plain "copy". kernels: as in device_time."""

    workload: Workload
    floor_bytes: int
    copied_bytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    host: dict[str, tuple[float, float]] = field(default_factory=dict)  # forward, backward
    kernels: dict[str, list[tuple[str, float, float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def microseconds(self, name: str) -> float:
        """Median time."""
        return 1e6 * median(self.seconds[name])

    def bandwidth(self) -> float:
        """Bytes a second of the copy."""
        return self.copied_bytes / median(self.seconds["copy"])

    def share_of_bandwidth(self, name: str) -> float:
        """Median over the rounds of the floor's bytes a second over the copy's."""
        pairs = zip(self.seconds[name], self.seconds["copy"], strict=True)
        return median(self.floor_bytes / seconds / (self.copied_bytes / copy) for seconds, copy in pairs)

    def over(self, peer: str, name: str) -> float:
        """Median over the rounds of the peer's time over the candidate's."""
        return median(theirs / ours for theirs, ours in zip(self.seconds[peer], self.seconds[name], strict=True))


def floor_bytes(workload: Workload) -> int:
    """Bytes that forward and backward must move for both views (docs/mathematics.md, section 5)."""
    tensors = {"pooled": 2 + 4, "gradcam": 4 + 4, "elementwise": 4 + 8}[workload.weighting]
    return tensors * workload.feature_bytes


def measure(
    workload: Workload, device: str, number: int, names=(*PEERS, *BACKENDS), copy_bytes: int = COPY_BYTES
) -> Figures:
    """Check every candidate, warm it up, and time `number` rounds of those that passed."""
    leaves = [leaf.detach().to(device).requires_grad_() for seed in (0, 1) for leaf in view(workload, seed)]
    wide = [leaf.detach().to(torch.promote_types(leaf.dtype, torch.float32)).requires_grad_() for leaf in leaves]
    crop = random_crop(workload.shape[0], workload.image_size).to(device)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    steps: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    figures = Figures(workload, floor_bytes(workload), 2 * copy_bytes)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = _step(backend_loss(workload, crop, "reference"), exact)()
    for name in names:
        try:
            loss = peer_loss(workload, crop, name) if name in PEERS else backend_loss(workload, crop, name)
            checked = wide if name in PEERS else leaves
            agree(name, _step(loss, checked)(), truth, TOLERANCES[str(checked[0].dtype).removeprefix("torch.")])
            step = _step(loss, leaves)
            step()
            figures.host[name] = device_time.host_seconds(
                lambda loss=loss: loss(*leaves), lambda value: torch.autograd.grad(value, leaves), device, HOST_REPEATS
            )
            steps[name] = step
        except Exception as error:  # whatever a candidate dies of, the others are measured
            figures.failures[name] = _said(error)
    found = device_time.rounds(steps, number, steps["copy"], device)
    figures.seconds = {name: [device_time.busy(run) for run in runs] for name, runs in found.items()}
    figures.kernels = {name: device_time.kernels(found[name]) for name in FUSED if name in found}
    return figures


def attempt(workload: Workload, device: str, number: int, names) -> Figures:
    """`measure`, or figures that say why there are none: memory, the profiler."""
    try:
        return measure(workload, device, number, names)
    except Exception as error:  # the other workloads are measured
        return Figures(workload, floor_bytes(workload), 0, failures={"all": _said(error)})


def _said(error: Exception) -> str:
    """Type and first line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def candidates(workload: Workload) -> list[str]:
    """Names of the peers that the workload is measured against, and of the backends that are there."""
    chosen = PEERS if workload in WITH_ALL_PEERS else ("vectorised",)
    return [*chosen, *(name for name in BACKENDS if unavailable(name) is None)]


def _step(loss, leaves: list[Tensor]):
    def step():
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return step


def header() -> str:
    """Of the table, Markdown."""
    titles = ["case", "backend", "device, us", "share of copy bandwidth", *(f"{peer} / time" for peer in PEERS)]
    titles += ["host forward, us", "host backward, us"]
    return f"| {' | '.join(titles)} |\n{'|---' * 2}{'|---:' * (len(titles) - 2)}|"


def rows(figures: Figures) -> list[str]:
    """Of the table: one for each backend of a workload."""
    lines = []
    for name in (name for name in figures.seconds if name not in ("copy", *PEERS)):
        ratios = [f"{figures.over(peer, name):.1f}" if peer in figures.seconds else "-" for peer in PEERS]
        cells = [str(figures.workload), name, f"{figures.microseconds(name):.1f}"]
        cells += [f"{figures.share_of_bandwidth(name):.0%}", *ratios]
        cells += [f"{1e6 * seconds:.0f}" for seconds in figures.host[name]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def kernel_rows(every: list[Figures]) -> list[str]:
    """Of the second table: the kernels of a fused backend and a workload, each with its microseconds and its start."""
    lines = ["| case | backend | kernels, us (after) |", "|---|---|---|"]
    for figures in every:
        for backend, kernels in figures.kernels.items():
            cells = (f"{_short(name)} {1e6 * took:.1f} ({1e6 * start:.1f})" for name, took, start in kernels)
            lines.append(f"| {figures.workload} | {backend} | {', '.join(cells)} |")
    return lines


def _short(kernel: str) -> str:
    """Without its namespaces and its arguments."""
    bare = re.sub(r"^void |\(anonymous namespace\)::|<unnamed>::", "", kernel)
    return re.sub(r"[<(].*", "", bare).split("::")[-1]


def notes(every: list[Figures], number: int) -> list[str]:
    """What stands below the table: the bandwidth, and what failed or is not there."""
    bandwidth = [figures.bandwidth() / 1e12 for figures in every if figures.seconds]
    copy = f"copy bandwidth {median(bandwidth):.2f} TB/s, " if bandwidth else ""
    lines = [f"- {copy}medians of {number} rounds, ratios paired within a round"]
    lines += [f"- {f.workload}, {name}: FAILED, {why}" for f in every for name, why in f.failures.items()]
    missing = {name: unavailable(name) for name in BACKENDS}
    return lines + [f"- {name}: not measured, {why}" for name, why in missing.items() if why]


def show(number: int, device: str) -> list[Figures]:
    """Measures all workloads and prints the table and the notes."""
    every = []
    print(header(), flush=True)
    for workload in WORKLOADS:
        every.append(attempt(workload, device, number, candidates(workload)))
        for row in rows(every[-1]):
            print(row, flush=True)  # kept, whatever becomes of the next workload
        torch.cuda.empty_cache()
    print("", *kernel_rows(every), "", *notes(every, number), sep="\n")
    return every


def main() -> int:
    """Command line; 1 where a candidate failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the seconds of every round here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("a CUDA device must be there, got none: python -m pytest bench --benchmark-only measures the CPU")
    steady()
    every = show(args.rounds, "cuda")
    if args.json:
        args.json.write_text(json.dumps({str(figures.workload): figures.seconds for figures in every}, indent=1))
    return int(any(figures.failures for figures in every))


if __name__ == "__main__":
    sys.exit(main())
