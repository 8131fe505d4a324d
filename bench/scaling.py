"""`python -m bench.scaling`: how the cost of the loss grows with the batch, the view, the map and the channels.

Forward + backward of `cpp`, float32, channels_last, pooled gradients, one thing changed at a time; beside each time the
floor of the same round, and what a model of an H100 predicts. Of many samples only the loss of heatmaps is timed, whose
floor is arithmetic: three products of [B, H * W]. Work and traffic of each of W ranks are counted, not measured.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from cgc_kernels import heatmap_loss

from .floor import Floor
from .harness import steady, timed
from .problems import TEMPERATURE, build
from .report import machine
from .workloads import Workload, random_crop

USUAL = Workload("cgc", "pooled", "channels_last", shape=(64, 2048, 7, 7))
SWEEPS = {
    "B": [replace(USUAL, shape=(batch, 256, 7, 7)) for batch in (16, 64, 256, 1024)],
    "S": [replace(USUAL, image_size=size) for size in (56, 112, 224, 512, 1024)],
    "map": [replace(USUAL, shape=(64, 512, side, side)) for side in (4, 7, 14, 24, 32)],
    "C": [replace(USUAL, shape=(64, channels, 7, 7)) for channels in (64, 256, 1024, 4096)],
}
MANY = (1024, 4096, 16384, 65536)
RANKS = (1, 4, 16, 64)

# An H100 as docs/gpu.md has it: the bandwidth of a copy; what the small kernels take, one after another, on an H200;
# what three products of float32 by three of tf32 reach of its tensor cores, an assumption.
COPY, CHAIN, PRODUCTS = 3.0e12, 25e-6, 1.5e14


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=MANY[-1], help="samples of the largest batch of heatmaps")
    parser.add_argument("--picture", type=Path, help="also draw the times here")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    steady()
    print(
        "| | value | ms | floor, ms | time / floor | an H100, predicted, ms |\n|---|---:|---:|---:|---:|---:|",
        flush=True,
    )
    points = [_sweep(name, workload, chosen.rounds) for name, sweep in SWEEPS.items() for workload in sweep]
    points += [_heatmaps(batch, chosen.rounds) for batch in MANY if batch <= chosen.most]
    print("\n| ranks | samples of all | multiply-adds a rank | bytes that a rank receives |\n|---:|---:|---:|---:|")
    for ranks in RANKS:
        print(_shared(ranks))
    print(f"\n{machine()}, {chosen.rounds} rounds; medians, ratios within a round")
    if chosen.picture:
        draw(points, chosen.picture)


def value(name: str, workload: Workload) -> int:
    """What a sweep changes."""
    batch, channels, side, _ = workload.shape
    return {"B": batch, "S": workload.image_size, "map": side, "C": channels}[name]


def _sweep(name: str, workload: Workload, rounds: int) -> tuple[str, int, float]:
    problem = build(workload)
    step, floor = problem.backend("cpp"), Floor(problem.traffic)
    batch, _, height, width = workload.shape
    predicted = problem.traffic.total / COPY + CHAIN + _multiply_adds(batch, batch, height * width) / PRODUCTS
    return _row(name, value(name, workload), step, floor.seconds, predicted, rounds)


def _heatmaps(batch: int, rounds: int) -> tuple[str, int, float]:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(batch, 7, 7, generator=generator).requires_grad_() for _ in range(2)]
    crop = random_crop(batch, USUAL.image_size)

    def step():
        loss = heatmap_loss(*maps, crop, image_size=USUAL.image_size, temperature=TEMPERATURE, backend="cpp")
        return torch.autograd.grad(loss, maps)

    rows = torch.rand(batch, 49, generator=generator)
    block = rows[: min(batch, 1024)]

    def products() -> float:
        start = time.perf_counter()
        for _ in range(3 * batch // len(block)):
            torch.mm(block, rows.T)
        return time.perf_counter() - start

    predicted = CHAIN + _multiply_adds(batch, batch, 49) / PRODUCTS
    return _row("B, heatmaps alone", batch, step, products, predicted, rounds if batch < 16384 else 1)


def _multiply_adds(own: int, everyone: int, cells: int) -> int:
    """Of stage contrast of a rank's samples: the rows' losses, their gradients, and those of the keys."""
    return 5 * own * everyone * cells


def _shared(ranks: int, own: int = 256, cells: int = 49) -> str:
    received = ranks * own * (2 * cells * 4 + 8 + 8)
    return f"| {ranks} | {ranks * own} | {_multiply_adds(own, ranks * own, cells):.2e} | {received:.2e} |"


def _row(
    name: str, size: int, step: Callable, floor: Callable[[], float], predicted: float, rounds: int
) -> tuple[str, int, float]:
    step()
    pairs = [(floor(), timed(step)) for _ in range(rounds)]
    least, taken = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(seconds / bound for bound, seconds in pairs)
    cells = (name, size, f"{1e3 * taken:.3g}", f"{1e3 * least:.3g}", f"{ratio:.2f}", f"{1e3 * predicted:.3g}")
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return name, size, taken


def draw(points: list[tuple[str, int, float]], path: Path) -> None:
    """The times as curves, one a sweep, from their first points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(name for name, *_ in points):
        sizes, seconds = zip(*((size, taken) for other, size, taken in points if other == name), strict=True)
        label = {"map": "H = W", "B": "B (C = 256)"}.get(name, name)
        axes.loglog([s / sizes[0] for s in sizes], [s / seconds[0] for s in seconds], "o-", label=label)
    axes.set(xlabel="size, times the smallest", ylabel="time, times that of the smallest")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
