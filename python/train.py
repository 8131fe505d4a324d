"""Train a classifier whose Grad-CAM heatmaps are consistent, and see what that does to them.

    python python/train.py                     the CGC loss with its consistency term
    python python/train.py --method baseline   the same views and cross-entropy, nothing else
    python python/train.py --compare           all methods, a table and pictures
    python python/train.py --help              every flag

Nothing is downloaded: handwritten digits are pasted on photographs, so that each object's box is known. A run folder
keeps the settings, every epoch's numbers, the checkpoints, the summary and the pictures.
"""

import shlex
import sys
from pathlib import Path

import torch
from driver import pictures, report, settings, storage
from driver.data.demo import Split, make_splits
from driver.engine import Run, steps_per_epoch, train
from driver.settings import Settings
from tqdm import tqdm


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, draw; returns the exit status."""
    chosen = settings.parse(arguments)
    settings.save(chosen)
    try:
        tests = train_all(chosen)
        write_report(chosen, tests)
    except KeyboardInterrupt:
        command = [sys.executable, sys.argv[0], "--resume", "--output", chosen.output]
        print(f"\nStopped. All finished epochs are kept. To go on:\n\n    {shlex.join(command)}\n")
        return 130
    return 0


def planned_runs(chosen: Settings) -> list[Run]:
    """Every method with every seed; a single run fills the run folder itself, several get a folder each inside it."""
    folder = Path(chosen.output)
    if not chosen.compare and chosen.seeds == 1:
        return [Run(chosen.method, chosen.seed, folder)]
    return [
        Run(method, seed, folder / f"{method}-seed{seed}") for seed in chosen.all_seeds for method in chosen.methods
    ]


def train_all(chosen: Settings) -> dict[int, Split]:
    """Train what is not finished yet; returns the test split of every seed."""
    device = torch.device("cuda" if chosen.device != "cpu" and torch.cuda.is_available() else "cpu")
    runs, tests = planned_runs(chosen), {}
    epochs_done = sum(_epochs_done(run) for run in runs)
    steps = steps_per_epoch(chosen)
    with tqdm(
        total=len(runs) * chosen.epochs * steps,
        initial=epochs_done * steps,
        unit="step",
        disable=None if chosen.progress else True,
        dynamic_ncols=True,
    ) as progress:
        for seed in chosen.all_seeds:
            splits = make_splits(chosen.sizes, seed)
            tests[seed] = splits["test"]
            for run in runs:
                if run.seed == seed and not run.results.exists():
                    train(run, chosen, splits, device, progress)
    return tests


def _epochs_done(run: Run) -> int:
    return storage.load(run.last)["epoch"] if run.last.exists() else 0


def write_report(chosen: Settings, tests: dict[int, Split]) -> None:
    """Measure the finished runs on the test split; write summary.json and the pictures, print the table."""
    folder, runs = Path(chosen.output), planned_runs(chosen)
    summary = report.write_summary(folder / "summary.json", report.measure_all(runs, tests))
    first = [run for run in runs if run.seed == chosen.seed]
    pictures.gallery(folder / "gallery.png", first, tests[chosen.seed])
    pictures.curves(folder / "curves.png", runs)
    print(f"\n{report.table(summary)}\n\nSee {folder / 'gallery.png'} and {folder / 'curves.png'}.")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # so that a log or a pipe shows every epoch when it ends
    sys.exit(main())
