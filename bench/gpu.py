"""`python -m bench.gpu`: the loss on a GPU, every backend against its peers and against the device's own bandwidth.

In every round a plain copy, each peer and each backend run once, timed by events on the stream; ratios are within a
round. Before each of them another copy evicts its inputs from the cache, and the device waits until the host has queued
all of its work: what is timed is the device alone. A backend's share of the bandwidth is the bytes of its floor
(docs/performance.md) over its time, beside the bytes a second of that round's copy. Nothing is timed before it agrees
with `reference` in float64 on the same inputs; peers, whose sums are rounded as the inputs are, in float32.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cgc_kernels import CropFlip, cgc_loss
from cgc_kernels.backends import unavailable
from tests.compare import assert_close

from . import peers
from .cases import Case, grid, random_crop, view
from .harness import TOLERANCES

BACKENDS = ("cuda", "triton", "torch")
PEERS = ("vectorised", "compiled")
COPY_BYTES = 1 << 28
TEMPERATURE = 0.5
CASES = [
    *grid(
        Case("cgc", layout="channels_last", dtype="bfloat16"),
        weighting=("pooled", "gradcam", "elementwise"),
        shape=((64, 2048, 7, 7), (8, 2048, 7, 7), (64, 512, 14, 14)),
    ),
    *grid(Case("cgc"), weighting=("pooled", "elementwise"), layout=("contiguous", "channels_last")),
]


@dataclass
class Figures:
    """Of one case: seconds of every round, by candidate; "copy" is the plain copy."""

    case: Case
    floor_bytes: int
    copied_bytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def milliseconds(self, name: str) -> float:
        """Median time."""
        return 1e3 * median(self.seconds[name])

    def share_of_bandwidth(self, name: str) -> float:
        """Median over the rounds of the floor's bytes a second over the copy's."""
        pairs = zip(self.seconds[name], self.seconds["copy"], strict=True)
        return median(self.floor_bytes / own / (self.copied_bytes / copy) for own, copy in pairs)

    def over(self, peer: str, name: str) -> float:
        """Median over the rounds of the peer's time over the candidate's."""
        return median(p / own for p, own in zip(self.seconds[peer], self.seconds[name], strict=True))


def floor_bytes(case: Case) -> int:
    """Bytes that forward and backward must move for both views (docs/mathematics.md, section 5)."""
    tensors = {"pooled": 2 + 4, "gradcam": 4 + 4, "elementwise": 4 + 8}[case.weighting]
    return tensors * case.feature_bytes


def measure(case: Case, device: str, rounds: int, backends=BACKENDS, copy_bytes: int = COPY_BYTES) -> Figures:
    """Check every candidate, warm it up, and time `rounds` rounds."""
    leaves = [leaf.detach().to(device).requires_grad_() for seed in (0, 1) for leaf in view(case, seed)]
    crop = random_crop(case.shape[0], case.image_size).to(device)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    candidates: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    with torch.device(device):  # the peers make their tables of weights where they run
        truth = _step(_ours(case, crop, "reference"), [leaf.detach().double().requires_grad_() for leaf in leaves])()
        wide = [leaf.detach().to(torch.promote_types(leaf.dtype, torch.float32)).requires_grad_() for leaf in leaves]
        for name in PEERS:
            function = _peer(case, crop, name)
            _assert_agrees(_step(function, wide)(), truth, name)
            candidates[name] = _step(function, leaves)
            candidates[name]()
        for name in (name for name in backends if unavailable(name) is None):
            candidates[name] = _step(_ours(case, crop, name), leaves)
            _assert_agrees(candidates[name](), truth, name)
        figures = Figures(case, floor_bytes(case), 2 * copy_bytes, {name: [] for name in candidates})
        leads = {name: lead(run, device, candidates["copy"]) for name, run in candidates.items()}
        for _ in range(rounds):
            for name, run in candidates.items():
                leads[name]()
                figures.seconds[name].append(seconds(run, device))
    return figures


def _ours(case, crop: CropFlip, backend: str):
    def loss(*tensors: Tensor) -> Tensor:
        return cgc_loss(
            tensors[:2],
            tensors[2:],
            crop,
            image_size=case.image_size,
            temperature=TEMPERATURE,
            weighting="elementwise" if case.weighting == "elementwise" else "gradcam",
            backend=backend,
        )

    return loss


def _peer(case, crop: CropFlip, name: str):
    function = peers.LOSSES[name]()
    weighting = "elementwise" if case.weighting == "elementwise" else "gradcam"
    options = {"image_size": (case.image_size,) * 2, "temperature": TEMPERATURE, "weighting": weighting}
    return lambda *tensors: function(*tensors, crop, **options)


def _step(loss, leaves: list[Tensor]):
    def step():
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return step


def _assert_agrees(results, truth, name):
    scalar, tensor = TOLERANCES[str(results[1].dtype).removeprefix("torch.")]
    for i, (got, expected) in enumerate(zip(results, truth, strict=True)):
        assert_close(got.double(), expected, scalar if i == 0 else tensor, what=f"{name}, result {i}")


def lead(run: Callable[[], object], device: str, evict: Callable[[], object]) -> Callable[[], None]:
    """What is queued before a timed run: `evict`, and a wait of twice the time in which the host queues the run."""
    if device == "cpu":
        return lambda: None
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    cycles = int((2 * (time.perf_counter() - start) + 1e-3) * _cycles_a_second())
    torch.cuda.synchronize()

    def ahead() -> None:
        evict()
        torch.cuda._sleep(cycles)

    return ahead


@functools.cache
def _cycles_a_second(cycles: int = 10_000_000) -> float:
    return cycles / seconds(lambda: torch.cuda._sleep(cycles), "cuda")


def seconds(run: Callable[[], object], device: str) -> float:
    """Time of one run: by events where there is a stream, by the clock elsewhere."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def table(every: list[Figures]) -> str:
    """Markdown: a row for each case and backend."""
    lines = [
        "| case | backend | ms | share of copy bandwidth | vectorised / time | compiled / time |",
        "|" + "---|" * 6,
    ]
    for figures in every:
        for name in (name for name in figures.seconds if name not in ("copy", *PEERS)):
            ratios = " | ".join(f"{figures.over(peer, name):.1f}" for peer in PEERS)
            share = figures.share_of_bandwidth(name)
            lines.append(f"| {figures.case} | {name} | {figures.milliseconds(name):.3f} | {share:.0%} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the seconds of every round here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("a CUDA device must be there, got none: python -m pytest bench --benchmark-only measures the CPU")
    every = [measure(case, "cuda", args.rounds) for case in CASES]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.today()}, {args.rounds} rounds\n")
    print(table(every))
    if args.json:
        args.json.write_text(json.dumps({str(figures.case): figures.seconds for figures in every}, indent=1))


if __name__ == "__main__":
    main()
