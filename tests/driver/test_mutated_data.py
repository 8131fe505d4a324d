"""Four hundred damaged data sets: each is read, or skipped in part by name, or refused by file; none silently misread.

A mutation says how many images and boxes it takes away by itself, as a removed file does; nothing else may be missing
unless it is said.
"""

import random
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from driver.data import CorruptImage, DataError, check_readable, open_data
from driver.settings import Settings
from PIL import Image

from tests.driver import data_sets

EACH = 50  # mutations of each data set
IMAGES = (".png", ".jpg", ".JPEG")
TEXTS = (".txt", ".csv", ".xml")


def imagenet_xml(root):
    return data_sets.make_imagenet(root, train=2, val=2)


def imagenet_csv(root):
    return data_sets.make_imagenet(root, train=2, val=2, annotations="csv")


KINDS = {
    "imagenet": imagenet_xml,
    "imagenet csv": imagenet_csv,
    "cub": lambda root: data_sets.make_cub(root, 2, 2),
    "aircraft": lambda root: data_sets.make_aircraft(root, 1, 1, 1),
    "cars": lambda root: data_sets.make_cars(root, 2, 1),
    "flowers": lambda root: data_sets.make_flowers(root, 1),
    "unrel": data_sets.make_unrel,
    "folder": lambda root: data_sets.make_folder(root, 2, 2),
    "cutouts": lambda root: data_sets.make_cutouts(root, 3, 3),
}


class Loss(NamedTuple):
    """How many images and boxes may be missing without a word; of a row, those that it held."""

    images: int = 0
    boxes: int = 0


def mutate(root: Path, rng: random.Random) -> tuple[str, Loss]:
    """Damage one file; returns what was done, and what is gone by that alone."""
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    kind = TEXT if path.suffix in TEXTS else IMAGE if path.suffix in IMAGES else BINARY
    mutation = rng.choice([*ANY, *kind])
    return f"{mutation.__name__} {path.relative_to(root)}", mutation(path, rng) or Loss()


# ---- Of any file.


def truncate(path, rng):
    whole = path.read_bytes()
    path.write_bytes(whole[: rng.randrange(len(whole))])
    return Loss(0, 9) if path.suffix in TEXTS else None  # rows at its end


def empty(path, rng):
    path.write_bytes(b"")


def noise(path, rng):
    whole = bytearray(path.read_bytes())
    start = rng.randrange(len(whole))
    whole[start : start + 40] = rng.randbytes(40)
    path.write_bytes(bytes(whole))
    return Loss(0, 9) if path.suffix in TEXTS else None


def remove(path, rng):
    path.unlink()
    return Loss(1, 9)


def rename(path, rng):
    path.rename(path.with_name(rng.choice(["x" + path.name, path.name.upper() + "X", path.name + ".bak", ".x.jpg"])))
    return Loss(1, 9)


def folder_in_its_place(path, rng):
    path.unlink()
    path.mkdir()
    return Loss(1, 9)


def dangling_link(path, rng):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))
    return Loss(1, 9)


# ---- Of texts.


def _unseen(path):
    """Boxes that may have become those of another object, or another image."""
    return Loss(0, {".xml": 2, ".csv": 2}.get(path.suffix, 0))


def _lines(path, change):
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def drop_a_row(path, rng):
    _lines(path, lambda lines: lines.pop(rng.randrange(len(lines))))
    return Loss(1, 9)


def swap_rows(path, rng):
    _lines(path, lambda lines: rng.shuffle(lines))


def double_a_row(path, rng):
    _lines(path, lambda lines: lines.append(rng.choice(lines)))


def cut_a_row(path, rng):
    def cut(lines):
        number = rng.randrange(len(lines))
        lines[number] = lines[number][: rng.randrange(1, len(lines[number]))] + "\n"

    _lines(path, cut)
    return _unseen(path)


def spoil_a_number(path, rng):
    text = path.read_text()
    digits = [position for position, letter in enumerate(text) if letter.isdigit()]
    position = rng.choice(digits) if digits else 0
    path.write_text(text[:position] + rng.choice(["nan", "-", "x", "999999", "1e400", ""]) + text[position + 1 :])
    return _unseen(path)


def with_a_mark(path, rng):
    path.write_bytes(path.read_text().encode("utf-8-sig"))


def utf_16(path, rng):
    if path.suffix != ".xml":
        path.write_bytes(path.read_text().encode("utf-16"))


def other_bytes(path, rng):
    path.write_bytes(path.read_bytes() + b"\xe9\xff\n")


def carriage_returns(path, rng):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


# ---- Of images.


def another_mode(path, rng):
    with Image.open(path) as image:
        mode = rng.choice(["L", "1", "CMYK"])
        image.convert(mode).save(path, format="TIFF")


def sixteen_bits(path, rng):
    Image.fromarray(np.full((72, 96), 40000, dtype=np.uint16)).save(path, format="PNG")


def floats(path, rng):
    Image.fromarray(np.full((72, 96), 0.5, dtype=np.float32)).save(path, format="TIFF")


def turned(path, rng):
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 9)
    with Image.open(path) as image:
        image.convert("RGB").save(path, format="JPEG", exif=exif)


def copied_aside(path, rng):
    shutil.copy(path, path.with_name(f"._{path.name}"))


def link_to_the_parent(path, rng):
    path.with_name("link").symlink_to(path.parent.parent, target_is_directory=True)


ANY = [truncate, empty, noise, remove, rename, folder_in_its_place, dangling_link]
TEXT = [drop_a_row, swap_rows, double_a_row, cut_a_row, spoil_a_number, with_a_mark, utf_16, other_bytes]
TEXT += [carriage_returns]
IMAGE = [another_mode, sixteen_bits, floats, turned, copied_aside, link_to_the_parent]
BINARY = []
BY_LINE = {mutation.__name__ for mutation in TEXT}


def count(root: Path, name: str) -> tuple[int, int, list[str]]:
    """Readable images, their boxes, and all that was said; raises DataError where the data are refused."""
    settings = Settings(**data_sets.places(name, root), model="small_resnet", image_size=32)
    opened = open_data(settings)
    check_readable(opened)
    said, images, boxes = list(opened.notes), 0, 0
    for split in (opened.train, opened.test):
        for index in range(len(split) if split else 0):
            try:
                sample = split[index]
            except CorruptImage as error:
                said.append(str(error))
            else:
                assert isinstance(sample.image, torch.Tensor) or sample.image.mode == "RGB"
                assert sample.boxes.isfinite().all()
                images, boxes = images + 1, boxes + len(sample.boxes)
    return images, boxes, said


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_data(tmp_path, kind):
    whole = KINDS[kind](tmp_path / "whole")
    images, boxes, said = count(whole, kind.partition(" ")[0])
    assert kind == "flowers" or not said
    refusals = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and SciPy's, of files that are damaged
        for seed in range(EACH):
            root = tmp_path / str(seed)
            shutil.copytree(whole, root)
            done, loss = mutate(root, random.Random(f"{kind} {seed}"))
            try:
                now, here, words = count(root, kind.partition(" ")[0])
            except (DataError, CorruptImage) as error:
                refusals.append((seed, done, root, str(error)))
                continue
            except Exception as error:
                raise AssertionError(f"seed {seed}, {done}") from error
            told = len(words) > len(said) and any(str(root) in word for word in words)
            assert now >= images - loss.images or told, f"seed {seed}, {done}: {images - now} images are lost"
            assert here >= boxes - loss.boxes or told, f"seed {seed}, {done}: {boxes - here} boxes are lost"
            assert now <= images, f"seed {seed}, {done}: images are there twice"
    for seed, done, root, message in refusals:
        assert str(root) in message, f"seed {seed}, {done}: {message}"
        assert done.split()[0] not in BY_LINE or "line " in message or "header" in message, f"{seed}, {done}: {message}"
