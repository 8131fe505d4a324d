"""Figures as a table.

`python -m bench.report FILE` prints that of a file made by `pytest bench --benchmark-only --benchmark-json=FILE`.
"""

import json
import platform
import sys
from pathlib import Path

import torch

_MIB = 2**20


def table(figures: list[dict]) -> str:
    """Markdown, one row a workload and backend: median [p20-p80] of the ratios, which are paired within rounds."""
    peers = list(dict.fromkeys(name for f in figures for name in f["peer_over_time"]))
    header = ["workload", "backend", "ms", "GB/s", "MB moved", "time / floor", *(f"{p} / time" for p in peers)]
    header += ["fastest peer", "extra MiB", "extra / features"]
    rows = [_row(f, peers) for f in figures]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _row(f: dict, peers: list[str]) -> list[str]:
    extra = f["extra_bytes"]
    return [
        f["case"],
        f["backend"],
        f"{f['milliseconds']['p50']:.3g}",
        f"{f['gigabytes_per_second']:.3g}",
        f"{(f['bytes_read'] + f['bytes_written']) / 1e6:.3g}",
        _spread(f["time_over_floor"]),
        *(_spread(f["peer_over_time"].get(name)) for name in peers),
        f["fastest_peer"] or "-",
        "-" if extra is None else f"{extra / _MIB:.2f}",
        "-" if extra is None else f"{100 * extra / f['feature_bytes']:.1f} %",
    ]


def _spread(ratio: dict | None) -> str:
    return "-" if ratio is None else "{p50:.3g} [{p20:.3g}-{p80:.3g}]".format(**ratio)


def machine() -> str:
    """Processor, threads and PyTorch, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {torch.get_num_threads()} threads, {capability}, PyTorch {torch.__version__}"


def _main(path: str) -> None:
    results = json.loads(Path(path).read_text())["benchmarks"]
    print(table([r["extra_info"] for r in results]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
