"""Train a classifier whose Grad-CAM heatmaps are consistent, and see what that does to them.

    python python/train.py                     the CGC loss with its consistency term, on a demo made on the spot
    python python/train.py --method baseline   the same views and cross-entropy, nothing else
    python python/train.py --compare           baseline, CGC, CGC with consistency: a table and pictures
    python python/train.py --data cub --data-root CUB_200_2011
    python python/train.py --data folder --data-root D --check      what would be trained, and what is wrong with D
    torchrun --nproc-per-node 8 python/train.py --preset imagenet --data-root ILSVRC --amp bf16 --compile
    python python/train.py --help              every flag

A run folder keeps the settings, every epoch's numbers, the checkpoints, the summary, the report and the pictures.
"""

import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from driver import check, checkpoints, data, engine, ranks, report, settings, storage, workers
from driver.data import CorruptImage, DataError
from driver.divergence import Diverged
from driver.flags import run_script
from driver.ranks import Ranks
from driver.settings import Settings
from driver.state import Run
from driver.stopping import Terminated, how_to_go_on, stop_rank, terminable
from driver.storage import FileError
from tqdm import tqdm

FORESEEN = (DataError, CorruptImage, FileError, Diverged, OSError)  # what ends a training with a message


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, draw; returns the exit status."""
    here = ranks.join()
    chosen = None
    try:
        with terminable(here, lambda: chosen), refusing(*FORESEEN), workers.watched(), ExitStack() as held:
            wanted = here.share(settings.parse(arguments) if not here.rank else None)
            if wanted.check:
                return check_all(wanted, here)
            chosen = here.share(held.enter_context(claimed(wanted)) if not here.rank else None)
            train_all(chosen, here)
            if not here.rank:
                report.finish(Path(chosen.output), planned_runs(chosen), chosen)
    except (KeyboardInterrupt, Terminated) as stop:
        if here.world == 1:
            print(f"\nStopped. {how_to_go_on(chosen, here)}")
            return 130 if isinstance(stop, KeyboardInterrupt) else 143
        stop_rank(here, chosen, "it was told to end")
    except SystemExit as refusal:
        if here.world == 1 or chosen is None:
            raise
        stop_rank(here, chosen, str(refusal))
    except Exception as error:  # a collective raises RuntimeError when another rank is gone; and what broke this one
        if here.world == 1:
            raise
        traceback.print_exc()
        stop_rank(here, chosen, str(error).strip().partition("\n")[0])
    ranks.leave()
    return 0


@contextmanager
def claimed(chosen: Settings):
    """The settings, with a run folder that is this training's alone and holds them."""
    name = settings.default_output("compare" if chosen.compare else chosen.method)
    with storage.claimed(Path(chosen.output) if chosen.output else storage.numbered(name), not chosen.resume) as folder:
        chosen = replace(chosen, output=str(folder))
        settings.save(chosen)
        yield chosen


def planned_runs(chosen: Settings) -> list[Run]:
    """Every method with every seed; a single run fills the run folder itself, several get a folder each inside it."""
    folder = Path(chosen.output)
    if not chosen.compare and chosen.seeds == 1:
        return [Run(chosen.method, chosen.seed, folder)]
    return [
        Run(method, seed, folder / f"{method}-seed{seed}") for seed in chosen.all_seeds for method in chosen.methods
    ]


def check_all(chosen: Settings, here: Ranks) -> int:
    """Train nothing; returns 1 if something is wrong with the data."""
    with refusing(ValueError):
        if here.world > 1:
            raise ValueError("--check must run in one process, got several")
        return check.check(chosen, here.device(chosen.device), here)


def train_all(chosen: Settings, here: Ranks) -> None:
    """Train what is not finished yet."""
    runs = planned_runs(chosen)
    with refusing(ValueError):
        device = here.device(chosen.device)
        opened = {chosen.seed: data.open_data(chosen)}
        data.check_readable(opened[chosen.seed])
        steps = engine.steps_per_epoch(chosen, opened[chosen.seed])
    with tqdm(
        total=len(runs) * chosen.epochs * steps * chosen.batch_size,
        initial=sum(_steps_done(run, steps) for run in runs) * chosen.batch_size,
        unit="img",
        disable=True if here.rank or not chosen.progress else None,
        dynamic_ncols=True,
    ) as progress:
        for run in runs:
            if here.share(run.results.exists()):
                continue
            if run.seed not in opened:
                opened = {run.seed: data.open_data(replace(chosen, seed=run.seed))}
            with refusing(ValueError):
                trainer = engine.Trainer(run, chosen, opened[run.seed], device, here)
            engine.train(trainer, progress)


def _steps_done(run: Run, steps: int) -> int:
    if not run.last.exists():
        return 0
    state = checkpoints.read_ours(run.last, "--resume: the last checkpoint")
    return state["epoch"] * steps + state["step"]


@contextmanager
def refusing(*kinds: type[Exception]):
    """What is wrong with the settings, the data, the files or the training: a message, no traceback."""
    try:
        yield
    except kinds as error:
        raise SystemExit(f"train.py: error: {error}") from error


if __name__ == "__main__":
    run_script(main)
