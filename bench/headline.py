"""`python -m bench.headline`: the figures the README quotes, measured over many rounds, as a Markdown table.

cgc_loss forward + backward, B=64, C=2048, 7x7 maps, S=224, float32: elementwise and pooled gradients, both layouts.
"""

import argparse
import json
from pathlib import Path

import torch

from .harness import BackendTimer, Field, measure, steady
from .peers import LOSSES
from .problems import build
from .report import machine, table
from .workloads import Workload, grid

WORKLOADS = grid(Workload("cgc"), weighting=("elementwise", "pooled"), layout=("contiguous", "channels_last"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steady()
    figures = []
    for workload in WORKLOADS:
        print(f"{workload} ...", flush=True)
        figures.append(measure(BackendTimer(Field(build(workload), tuple(LOSSES)), args.backend), args.rounds))
    print(f"\n{machine()}, {args.rounds} rounds; median [p20-p80] of ratios within a round\n\n{table(figures)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
