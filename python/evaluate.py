"""Measure where classifiers look: accuracy, and every measure of their heatmaps, on any data set, by any explainer.

    python python/evaluate.py runs/a-run                                    its own test split, again
    python python/evaluate.py runs/baseline runs/cgc                        two runs side by side
    python python/evaluate.py resnet50 --pretrained --data imagenet --data-root ILSVRC
    python python/evaluate.py runs/imagenet --data unrel --data-root unrel  a model of ImageNet on UnRel
    python python/evaluate.py runs/cgc --explainer ours --explainer LayerCAM --faithfulness 200

Writes summary.json, report.html and gallery.png into --output, and prints the table.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from driver import checkpoints, evaluation, explainers, loading, models, report, storage, workers
from driver.data import DATASETS, Data, check_readable, open_data
from driver.data.imagenet import CATEGORIES
from driver.flags import documented_parser, integer, run_script
from driver.loading import Loaded
from driver.report import Entry
from driver.settings import Settings, default_output, kept


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; returns the exit status."""
    parser = make_parser()
    flags = parser.parse_args(arguments)
    flags.explainer = flags.explainer or [explainers.OURS]
    try:
        with workers.watched():
            evaluate(flags)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def evaluate(flags) -> dict[str, dict]:
    """Ask every model by every explainer; returns the summary. Raises ValueError naming what is wrong."""
    for name in flags.explainer:
        if name not in explainers.names():
            raise ValueError(f"--explainer must be one of {', '.join(explainers.names())}, got {name!r}")
    for name, given in (("MODEL", flags.models), ("--explainer", flags.explainer)):
        if twice := [one for one in given if given.count(one) > 1]:
            raise ValueError(f"{name} must name each one once, got {twice[0]} {len(twice)} times")
    folder = Path(flags.output) if flags.output else storage.numbered(default_output("evaluation"))
    with storage.claimed(folder, new=True):
        return evaluate_into(folder, flags)


def evaluate_into(folder: Path, flags) -> dict[str, dict]:
    """The same, into a folder that is ours."""
    device = chosen_device(flags.device)
    data = data_for(loading.settings_of(flags.models[0]), flags)
    check_readable(data)
    for note in data.notes:
        print(note, file=sys.stderr)
    entries: list[Entry] = []
    for source in flags.models:
        loaded = open_model(source, data, flags)
        for note in loaded.classifier.notes:
            print(note, file=sys.stderr)
        mean, std = models.normalisation(loaded.settings.model, loaded.settings.pretrained)
        for name in flags.explainer:
            entries.append(ask(source, loaded, name, data._replace(mean=mean, std=std), flags, device))
    entries = distinguish(entries, flags)
    settings = {**shown(flags), **({} if len(flags.models) > 1 else kept(loaded.settings))}
    summary = report.write(folder, entries, data, flags.seed, entries[0].key, settings)
    print(f"{report.table(summary)}\n\nSee {folder / 'report.html'}.")
    return summary


def data_for(settings: Settings | None, flags) -> Data:
    """The data set of the flags, with the settings of the first model's training for what they leave open."""
    names = ("data", "data_root", "boxes", "photographs", "distractors", "image_size", "test_images", "seed")
    given = {name: getattr(flags, name) for name in names}
    given = {name: value for name, value in given.items() if value not in ("", 0, None)}
    if settings is None:
        if not flags.data:
            raise ValueError("--data must be given for a model that is not one of train.py's")
        settings = Settings(image_size=224)
    elif flags.data and flags.data != settings.data:
        settings = replace(settings, data_root="", boxes="", photographs="")
    settings = replace(settings, **given, strict=flags.strict)
    data = open_data(settings, training=False)
    flags.seed, flags.image_size = settings.seed, data.image_size
    if flags.images and flags.images < len(data.test):
        count = len(data.test)
        data = data._replace(test=data.test.subset([number * count // flags.images for number in range(flags.images)]))
    return data


def open_model(source: str, data: Data, flags) -> Loaded:
    """A model for the data; for UnRel one of ImageNet, its classes grouped."""
    wanted = CATEGORIES if data.groups else data.classes
    loaded = loading.load(source, flags, len(wanted))
    if data.groups and loaded.outputs != len(wanted):
        raise ValueError(
            f"--data unrel needs a classifier of the {len(wanted)} classes of ImageNet, got one of {loaded.outputs}"
        )
    if loaded.classes:
        checkpoints.check_classes(loaded.classes, wanted, source, f"--data {data.name}")
    elif loaded.outputs != len(wanted):
        raise ValueError(f"--data {data.name} has {len(wanted)} classes, got {source} with {loaded.outputs}")
    if not data.groups:
        return loaded
    model = models.GroupedClasses(loaded.classifier.model, data.groups, len(wanted)).eval()
    layer = f"model.{loaded.classifier.target_layer}"
    return loaded._replace(classifier=loaded.classifier._replace(model=model, target_layer=layer))


def ask(source: str, loaded: Loaded, explainer: str, data: Data, flags, device: torch.device) -> Entry:
    """One model by one explainer."""
    classifier = loaded.classifier._replace(model=loaded.classifier.model.to(device))
    cam = explainers.build(explainer, classifier)
    options = {"seed": flags.seed, "faithful": flags.faithfulness, "workers": flags.workers}
    explained = evaluation.explain(cam, data.test, data, device, **options)
    if isinstance(cam, models.GradCAM):
        cam.close()
    return Entry(f"{source} {explainer}", loaded.title, flags.seed, explained, loaded.history)


def distinguish(entries: list[Entry], flags) -> list[Entry]:
    """Titles that tell the entries apart: with the explainer where there are several, with the source where needed."""
    sources = [source for source in flags.models for _ in flags.explainer]
    names = flags.explainer * len(flags.models)
    titles = [entry.title for entry in entries]
    if len(set(titles[:: len(flags.explainer)])) < len(flags.models):
        titles = [f"{title}, {Path(source).name}" for title, source in zip(titles, sources, strict=True)]
    if len(flags.explainer) > 1:
        titles = [f"{title}, {name}" for title, name in zip(titles, names, strict=True)]
    return [entry._replace(title=title) for entry, title in zip(entries, titles, strict=True)]


def chosen_device(name: str) -> torch.device:
    """The device of --device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device must be cpu or auto where PyTorch finds no CUDA device, got cuda")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def shown(flags) -> dict:
    """The flags as the report lists them."""
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in vars(flags).items()}


def make_parser() -> argparse.ArgumentParser:
    """Every flag, with its documentation."""
    parser = documented_parser("evaluate.py", "MODEL [MODEL ...] [--data NAME --data-root DIR] [flags]", __doc__)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run folder (its last.pt), a checkpoint, or a name of torchvision or timm (timm/NAME); "
        "the first is the baseline of the controls",
    )
    group = parser.add_argument_group("model")
    add_model_flags(group)
    group.add_argument("--pretrained", action="store_true", help="for a name: with the library's weights (downloaded)")
    group = parser.add_argument_group("data: the run's own unless given")
    group.add_argument("--data", choices=DATASETS, default="", help="data set")
    group.add_argument("--data-root", metavar="DIR", default="", help="its folder, as its makers lay it out")
    group.add_argument(
        "--boxes", metavar="PATH", default="", help="object boxes: a CSV (folder, imagenet) or XML files (imagenet)"
    )
    group.add_argument("--photographs", metavar="DIR", default="", help="cutouts: what objects are pasted on")
    group.add_argument("--images", type=integer(1), metavar="N", default=0, help="at most N test images, evenly chosen")
    group.add_argument("--test-images", type=integer(10), metavar="N", default=0, help="demo, cutouts: how many")
    group.add_argument(
        "--distractors", type=integer(0), metavar="N", default=0, help="the same: how many are beside it"
    )
    group.add_argument("--strict", action="store_true", help="an unreadable image is fatal; otherwise it is skipped")
    add_measure_flags(parser.add_argument_group("measures"))
    group = parser.add_argument_group("run")
    group.add_argument("--output", metavar="FOLDER", default="", help="default: runs/<date>-<time>-evaluation")
    group.add_argument("--workers", type=integer(0), metavar="N", default=0, help="processes that load images")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA if present")
    return parser


def add_measure_flags(group) -> None:
    """Flags that say what is measured."""
    group.add_argument(
        "--explainer",
        metavar="NAME",
        action="append",
        default=None,
        help=f"{', '.join(explainers.names())}; may be given several times (default: ours)",
    )
    group.add_argument(
        "--faithfulness",
        type=integer(0),
        metavar="N",
        default=0,
        help="insertion and deletion of the first N images, 58 forwards each at 224 px (default: 0)",
    )
    group.add_argument("--seed", type=integer(0), metavar="N", help="of the augmented views (default: the run's, or 0)")


def add_model_flags(group) -> None:
    """Flags that say what a source is, where it does not say so itself."""
    group.add_argument("--model", metavar="NAME", default="", help="for another's checkpoint: what network it is of")
    group.add_argument("--target-layer", metavar="LAYER", default="", help="layer to explain (default: the run's)")
    group.add_argument("--image-size", type=integer(1), metavar="N", default=0, help="side of the views in pixels")


if __name__ == "__main__":
    run_script(main)
