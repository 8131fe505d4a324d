"""The demo's experiments: limited labels, unlabeled images, harder images; every method, three seeds, one table.

    python python/experiments.py                       all of them, into runs/experiments
    python python/experiments.py --only fraction       some of them
    python python/experiments.py --table               the table of what is finished, nothing is trained
    python python/experiments.py -- --epochs 6         with other settings of train.py

Runs one after the other, each as its own process, seed by seed, so that methods can be compared early. Stopped or
killed, it goes on where it was when started again; --table meanwhile shows how far it is.
"""

import argparse
import contextlib
import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from driver import report, settings, storage
from driver.flags import integer, run_script
from driver.state import Run
from tqdm import tqdm

TRAIN = Path(__file__).with_name("train.py")


class Arm(NamedTuple):
    """A method, and where its settings are not the experiment's a title and flags."""

    method: str
    title: str = ""
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """What its runs' folders are called."""
        return "-".join([self.method, *(flag.strip("-") for flag in self.flags)])


class Experiment(NamedTuple):
    """Arms under the same settings."""

    title: str
    flags: tuple[str, ...]
    arms: tuple[Arm, ...]
    baseline: str | None = None  # the experiment that already trains this one's baseline


EVERY = tuple(map(Arm, ("baseline", "gradcam_l2", "cgc", "cgc_consistent", "cgc_paper")))
COMPARED = tuple(map(Arm, ("baseline", "cgc", "cgc_consistent")))
QUARTER = ("--fraction", "0.25", "--epochs", "72")  # as many steps as the demo makes on all of its images
EXPERIMENTS = {
    "fraction": Experiment("A quarter of the training images", QUARTER, EVERY),
    "unlabeled": Experiment(
        "A quarter with labels for the cross-entropy, the rest without for the heatmap loss",
        (*QUARTER, "--unlabeled", "rest"),
        EVERY[1:],
        baseline="fraction",
    ),
    "distractors": Experiment("Two fragments of other digits beside the object", ("--distractors", "2"), COMPARED),
    "backgrounds": Experiment("Backgrounds tied to the class, in training only", ("--backgrounds", "class"), COMPARED),
}
COLUMNS = {
    "accuracy": "accuracy",
    "content_heatmap": "CH",
    "sharpness_matched_content_heatmap": "CH of the baseline, as sharp",
    "effective_area": "effective area",
    "pointing_game": "pointing game",
    "consistency": "consistency",
    "sharpness_matched_consistency": "of the baseline, as sharp",
    "twin_retrieval": "twin retrieval",
    "dead_heatmaps": "dead heatmaps",
}


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, then write the table; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    names = chosen.only or list(EXPERIMENTS)
    if not chosen.table and (status := train_missing(EXPERIMENTS, names, chosen.output, chosen.seeds, chosen.flags)):
        return status
    print(write_table(chosen.output, chosen.seeds))
    return 0


def train_missing(
    experiments: dict[str, Experiment], names: Sequence[str], output: Path, seeds: int, flags: Sequence[str]
) -> int:
    """Train, seed by seed, what of some experiments is not finished; returns the exit status."""
    planned = [
        (name, _run(name, arm, seed, output), (*experiments[name].flags, *arm.flags, *flags))
        for seed, name in product(range(seeds), names)
        for arm in experiments[name].arms
    ]
    missing = [run for run in planned if not run[1].results.exists()]
    began = time.monotonic()
    try:
        for done, (name, run, own) in enumerate(missing):
            left = (time.monotonic() - began) / max(1, done) * (len(missing) - done)
            eta = f", {tqdm.format_interval(left)} left" if done else ""
            print(f"{name}: {run.title}, seed {run.seed} ({done + 1} of {len(missing)}{eta})", flush=True)
            _train(run, own)
    except KeyboardInterrupt:
        print(f"\nStopped. Finished epochs are kept. To go on:\n\n    {shlex.join([sys.executable, *sys.argv])}\n")
        return 130
    except subprocess.CalledProcessError as error:  # which has said why
        return error.returncode
    return 0


def planned(name: str, experiment: Experiment, output: Path, seeds: int) -> list[Run]:
    """The runs of an experiment, a shared baseline included."""
    borrowed = [(experiment.baseline, Arm("baseline"))] if experiment.baseline else []
    sources = [*borrowed, *((name, arm) for arm in experiment.arms)]
    return [_run(source, arm, seed, output) for seed in range(seeds) for source, arm in sources]


def measured(name: str, experiment: Experiment, output: Path, seeds: int) -> tuple[dict[str, dict], list[Run]]:
    """The summary of the seeds that are finished, and their runs; writes what a run folder shows."""
    every = planned(name, experiment, output, seeds)
    missing = {run.seed for run in every if not run.results.exists()}
    runs = [run for run in every if run.seed not in missing]  # methods of different seeds do not compare
    own = [run for run in runs if name in run.folder.parts]
    if not own:
        return {}, []
    with contextlib.redirect_stdout(io.StringIO()):  # its own table
        return report.finish(output / name, runs, settings.load(own[0].folder)), runs


def _run(name: str, arm: Arm, seed: int, output: Path) -> Run:
    return Run(arm.method, seed, output / name / f"{arm.folder}-seed{seed}", arm.title)


def _train(run: Run, flags: tuple[str, ...]) -> None:
    """One run in a process of its own; raises CalledProcessError if it fails."""
    if (run.folder / settings.CONFIG).exists():
        flags = ("--resume",)
    else:
        flags = ("--method", run.method, "--seed", str(run.seed), *flags)
    command = [sys.executable, str(TRAIN), *flags, "--output", str(run.folder), "--no-progress"]
    run.folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, check=True, env=os.environ)


def write_table(output: Path, seeds: int) -> str:
    """Measure what is finished; writes and returns results.md."""
    text = "\n".join(section for name in EXPERIMENTS if (section := _section(name, output, seeds)))
    with storage.replacing(output / "results.md") as path:
        path.write_text(text, encoding="utf-8")
    return text


def _section(name: str, output: Path, seeds: int) -> str:
    experiment = EXPERIMENTS[name]
    summary, runs = measured(name, experiment, output, seeds)
    if not runs:
        return ""
    every = planned(name, experiment, output, seeds)
    command = shlex.join(["python", "python/train.py", *experiment.flags, "--method", "...", "--seed", "..."])
    lines = [
        f"## {experiment.title}\n",
        f"`{command}`; {len(runs)} of {len(every)} runs; percent, mean ± standard deviation.\n",
        f"| | seeds | {' | '.join(COLUMNS.values())} |",
        f"|---|{'---|' * (len(COLUMNS) + 1)}",
    ]
    for column in summary.values():
        cells = [report.cell(column, measure) for measure in COLUMNS]
        lines.append(f"| {column['title']} | {len(column['runs'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("runs/experiments"), help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=integer(1), metavar="N", default=3, help="seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--table", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: further flags of train.py, for every run")
    return parser


if __name__ == "__main__":
    run_script(main)
