"""Data as people have them: other encodings, separators, orientations, depths, clutter, links, rows that are wrong.

Each ends in a run, a named skip, or a message that names file and line.
"""

import codecs
import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import evaluate
import numpy as np
import pytest
import train
from driver import data, flags, storage
from driver.data import CorruptImage, DataError, aircraft, cars, cub, flowers, folder, imagenet, open_data, unrel
from driver.data.images import read_image
from driver.settings import Settings
from driver.views import original_view
from PIL import Image
from scipy.io import loadmat, savemat

from tests.driver import data_sets
from tests.driver.cases import SMALL, assert_same, refused, run
from tests.driver.data_sets import WNIDS
from tests.support import ROOT


def opened(root, name="folder", **more) -> data.Data:
    return open_data(Settings(data=name, data_root=str(root), model="small_resnet", image_size=32, **more))


def boxes(images) -> list:
    return [images[index].boxes.tolist() for index in range(len(images))]


# ---- ImageNet as it comes.


def flatten(root: Path, split: str = "val") -> Path:
    for path in list((root / split).rglob("*.JPEG")):
        path.rename(root / split / path.name)
    for path in list((root / split).iterdir()):
        if path.is_dir():
            path.rmdir()
    return root


@pytest.mark.parametrize("train_images", [0, 2])
def test_kaggles_flat_validation_folder(tmp_path, train_images):
    """Its labels are those of the CSV, its boxes as well."""
    nested = data_sets.make_imagenet(tmp_path / "nested", train=train_images, annotations="csv")
    flat = flatten(data_sets.make_imagenet(tmp_path / "flat", train=train_images, annotations="csv"))
    expected = imagenet.load(str(nested), "val")
    images = imagenet.load(str(flat), "val")
    by_name = {Path(record.path).name: record[1:] for record in expected.records}
    assert {Path(record.path).name: record[1:] for record in images.records} == by_name
    assert images.classes == expected.classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("ILSVRC2012_val_00000007,", "other,"), r"lacks a line for ILSVRC2012_val_00000007"),
        (
            lambda text: text.replace(f",{WNIDS[0]} ", ",n00000000 "),
            r"line \d+: n00000000 must be one of the 3 classes",
        ),
        (lambda text: text + "x\n", r"line 8: 2 cells are expected as in the header, got 1"),
        (lambda text: text + "x,\n", r"line 8: fives of wnid x1 y1 x2 y2 are expected"),
        (lambda text: text + "x,n01 1 2 3 4 5\n", r"line 8: fives of wnid"),
        (lambda text: text + "x,n01 1 2 nan 4\n", r"line 8: left, top, right and bottom must be numbers"),
        (lambda text: text + "x,n01 9 2 3 4\n", r"line 8: left < right and top < bottom must hold"),
        (lambda text: text + 'x,"n01 1 2 3 4\n', r"line 8: .*"),
        (lambda text: text.replace("PredictionString", "Boxes"), "must have the header ImageId,PredictionString"),
    ],
)
def test_kaggles_csv_is_refused_by_line(tmp_path, change, message):
    root = flatten(data_sets.make_imagenet(tmp_path, train=1, annotations="csv"))
    path = root / "LOC_val_solution.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=f"LOC_val_solution.csv,? ?{message}"):
        imagenet.load(str(root), "val")


def test_a_flat_validation_folder_without_labels_says_what_is_missing(tmp_path):
    root = flatten(data_sets.make_imagenet(tmp_path))
    with pytest.raises(DataError, match=r"must hold .*<wnid>/\*\.JPEG, or the labels in .*LOC_val_solution"):
        imagenet.load(str(root), "val")


XML = {
    "malformed": ("</bndbox>", "<bndbox>"),
    "without a number": ("<xmin>10</xmin>", "<xmin/>"),
    "of NaN": ("<xmin>10</xmin>", "<xmin>nan</xmin>"),
    "reversed": ("<xmin>10</xmin>", "<xmin>99</xmin>"),
    "of no size": ("<width>96</width>", "<width>wide</width>"),
    "truncated": ("</annotation>", ""),
}


@pytest.mark.parametrize("damage", XML)
def test_boxes_that_cannot_be_read_are_a_named_skip(tmp_path, damage):
    images = imagenet.load(str(data_sets.make_imagenet(tmp_path)), "val")
    path = Path(images.annotations[Path(images.records[0].path).stem])
    path.write_text(path.read_text().replace(*XML[damage]))
    with pytest.raises(CorruptImage, match=f"{images.records[0].path}: its boxes, {path}"):
        images[0]
    assert len(boxes(images.subset(range(1, 6)))) == 5


def test_one_bad_annotation_does_not_end_the_training(tmp_path, capsys):
    """It is counted; fatal with --strict, and then the trained epoch is kept."""
    root = data_sets.make_imagenet(tmp_path / "data")
    broken = sorted(root.rglob("*.xml"))[3]
    broken.write_text("<annotation>")
    flags = ["--data", "imagenet", "--data-root", root, "--method", "baseline", *SMALL]
    assert run(train.main, *flags, "--output", tmp_path / "run") == 0
    assert str(broken) in "".join(capsys.readouterr())
    assert storage.load(tmp_path / "run" / "test.pt")["corrupt"].sum() == 1
    said = refused(capsys, train.main, *flags, "--strict", "--output", tmp_path / "strict")
    assert str(broken) in said
    assert storage.load(tmp_path / "strict" / "last.pt")["step"] == 3
    broken.unlink()
    assert run(train.main, "--resume", "--output", tmp_path / "strict") == 0
    assert_same(
        storage.load(tmp_path / "strict" / "last.pt")["model"], storage.load(tmp_path / "run" / "last.pt")["model"]
    )


# ---- Text in any encoding.

ENCODINGS = {
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "carriage returns": lambda text: text.replace("\n", "\r\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
}
TEXTS = {
    "folder": (data_sets.make_folder, "boxes.csv", {"boxes": "{root}/boxes.csv"}),
    "cub": (data_sets.make_cub, "CUB_200_2011/bounding_boxes.txt", {}),
    "cub classes": (data_sets.make_cub, "CUB_200_2011/classes.txt", {}),
    "aircraft": (data_sets.make_aircraft, "fgvc-aircraft-2013b/data/variants.txt", {}),
    "imagenet": (lambda root: data_sets.make_imagenet(root, annotations="csv"), "LOC_val_solution.csv", {}),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_in_any_encoding_say_the_same(tmp_path, kind, encoding):
    make, name, more = TEXTS[kind]
    root = make(tmp_path)
    settings = {key: value.format(root=root) for key, value in more.items()}
    before = opened(root, kind.partition(" ")[0], **settings)
    (root / name).write_bytes(ENCODINGS[encoding]((root / name).read_text()))
    after = opened(root, kind.partition(" ")[0], **settings)
    assert after.classes == before.classes
    assert after.test.records == before.test.records


@pytest.mark.parametrize("kind", TEXTS)
def test_other_bytes_are_refused_by_line(tmp_path, kind):
    make, name, more = TEXTS[kind]
    root = make(tmp_path)
    settings = {key: value.format(root=root) for key, value in more.items()}
    lines = (root / name).read_bytes().splitlines(keepends=True)
    (root / name).write_bytes(b"".join([*lines[:2], b"caf\xe9" + lines[2], *lines[3:]]))
    with pytest.raises(DataError, match=f"{root / name}, line 3: UTF-8 is expected"):
        opened(root, kind.partition(" ")[0], **settings)


# ---- Boxes that name images otherwise, or none.


def rewritten(root: Path, change) -> data.Data:
    """The data with the paths in the CSV of boxes changed."""
    path = root / "boxes.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(change(line) for line in lines)]) + "\n")
    return opened(root, boxes=str(path))


SPELLINGS = {
    "backslashes": lambda line: line.replace("/", "\\"),
    "dot": lambda line: f"./{line}",
    "doubled": lambda line: line.replace("/", "//"),
    "blanks": lambda line: f" {line}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_path_may_be_spelt_otherwise(tmp_path, spelling):
    root = data_sets.make_folder(tmp_path)
    before = boxes(opened(root, boxes=str(root / "boxes.csv")).test)
    after = rewritten(root, SPELLINGS[spelling])
    assert boxes(after.test) == before
    assert sum(map(len, before)) == 5
    assert after.notes == ()


def test_a_path_may_be_absolute(tmp_path):
    root = data_sets.make_folder(tmp_path)
    assert sum(map(len, boxes(rewritten(root, lambda line: f"{root}/{line}").test))) == 5


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_may_be_composed_otherwise(tmp_path, here, there):
    root = data_sets.make_folder(tmp_path)
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / unicodedata.normalize(here, "caf\u00e9"))
    after = rewritten(root, lambda line: line.replace("cat", unicodedata.normalize(there, "caf\u00e9")))
    assert sum(map(len, boxes(after.test))) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.partition("/")[2],
        lambda line: line.replace("val/", "valid/"),
        lambda line: line.replace(".png", ".jpg"),
    ],
    ids=["folder missing", "other folder", "other suffix"],
)
def test_boxes_that_name_no_image_are_an_error(tmp_path, change, capsys):
    root = data_sets.make_folder(tmp_path)
    with pytest.raises(DataError, match=r"must name images of .*, such as 'val/cat/0.png'.*boxes.csv, line 2:"):
        rewritten(root, change)
    flags = ["--data", "folder", "--data-root", root, "--boxes", root / "boxes.csv", "--output", tmp_path / "run"]
    assert "boxes.csv, line 2" in refused(capsys, train.main, *flags, *SMALL)


def test_boxes_of_which_some_name_no_image_are_counted(tmp_path, capsys):
    root = data_sets.make_folder(tmp_path)
    after = rewritten(root, lambda line: line.replace("val/dog/1", "val/dog/9"))
    wrong, bare = sorted(after.notes)
    assert "1 images named there are not here, the first is" in bare + wrong
    assert "boxes.csv, line 5: 'val/dog/9.png'" in bare + wrong
    assert "1 of 4 test images have no box" in bare + wrong
    flags = ["--data", "folder", "--data-root", root, "--boxes", root / "boxes.csv", "--output", tmp_path / "run"]
    assert run(train.main, *flags, *SMALL) == 0
    assert "images named there are not here" in "".join(capsys.readouterr())


def test_boxes_of_images_of_another_split_are_no_misses(tmp_path):
    """Also where the training images are not opened."""
    root = data_sets.make_folder(tmp_path)
    with (root / "boxes.csv").open("a") as file:
        file.write("train/cat/0.png,0,0,1,1\n")
    settings = Settings(data="folder", data_root=str(root), boxes=str(root / "boxes.csv"), model="small_resnet")
    assert open_data(settings, training=False).notes == open_data(settings).notes == ()


@pytest.mark.parametrize("annotations", ["xml", "csv"])
def test_annotations_of_other_images_are_an_error(tmp_path, annotations):
    root = data_sets.make_imagenet(tmp_path, annotations=annotations)
    for path in list(root.glob("val/*/*.JPEG")):
        path.rename(path.with_stem(f"my_{path.stem}"))
    with pytest.raises(DataError, match=r"must name images of .*my_ILSVRC2012"):
        opened(root, "imagenet")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val/cat/0.png,1,2,nan,4", "line 2: left, top, right and bottom must be numbers, got 1, 2, nan, 4"),
        ("val/cat/0.png,1,2,inf,4", "line 2: left, top, right and bottom must be numbers"),
        ("val/cat/0.png,9,2,3,4", "line 2: left < right and top < bottom must hold, got 9.0, 2.0, 3.0, 4.0"),
        ("val/cat/0.png,1,2,3,4,5", "line 2: 5 cells are expected as in the header, got 6"),
        ("val/cat/0.png", "line 2: 5 cells are expected as in the header, got 1"),
        ('"val/cat/0.png,1,2,3,4', "line 2: unexpected end of data"),
    ],
)
def test_wrong_rows_are_named(tmp_path, line, message):
    path = tmp_path / "boxes.csv"
    path.write_text(f"path,left,top,right,bottom\n{line}\n")
    with pytest.raises(DataError, match=message):
        folder.read_boxes(path, tmp_path)


# ---- Pixels.


def gradient(kind, top):
    return np.linspace(0, top, 64, dtype=np.float64).reshape(8, 8).astype(kind)


EIGHT = np.array(Image.fromarray(gradient(np.uint8, 255)).convert("RGB"))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big-endian.tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    pixels = gradient(np.uint16, 65535)
    if name.startswith("big"):
        Image.frombytes("I;16B", (8, 8), pixels.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    image = np.array(read_image(str(tmp_path / name)))
    assert np.abs(image.astype(int) - EIGHT).max() <= 1
    assert image.max() == 255


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, kind):
    Image.fromarray(gradient(kind, 1000)).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImage, match=r"a.tif: its pixels are of mode [FI], whose range is unknown"):
        read_image(str(tmp_path / "a.tif"))


def rotated_folder(root: Path, orientation: int) -> Path:
    """A folder of JPEG files with a bright box that is stored turned, and its place in the stored pixels."""
    data_sets.make_folder(root)
    pixels = np.zeros((72, 96, 3), dtype=np.uint8)
    pixels[10:30, 20:70] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(root / "val" / "cat" / "turned.jpg", exif=exif, quality=95)
    with (root / "boxes.csv").open("a") as file:
        file.write("val/cat/turned.jpg,20,10,70,30\n")
    return root


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_boxes_included(tmp_path, orientation):
    root = rotated_folder(tmp_path, orientation)
    images = opened(root, boxes=str(root / "boxes.csv")).test
    (sample,) = (images[i] for i, record in enumerate(images.records) if record.path.endswith("turned.jpg"))
    with Image.open(sample.path) as stored:
        from PIL import ImageOps

        expected = ImageOps.exif_transpose(stored.convert("RGB"))
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    assert expected.size in ((96, 72), (72, 96))
    assert np.array_equal(np.array(sample.image), np.array(upright))
    ((left, top, right, bottom),) = sample.boxes.int().tolist()
    bright = np.array(sample.image)[..., 0] > 127
    assert bright[top:bottom, left:right].mean() > 0.95
    assert bright.sum() == pytest.approx((right - left) * (bottom - top), rel=0.05)
    assert np.array_equal(np.array(read_image(sample.path)), np.array(upright))  # as explain.py reads it


def test_boxes_of_published_data_sets_are_of_the_stored_pixels(tmp_path):
    """There the orientation is not followed, as it was not by those who drew them."""
    root = data_sets.make_cub(tmp_path)
    images = cub.load(str(root), "test")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images.records[0].path) as image:
        image.convert("RGB").save(images.records[0].path, exif=exif)
    assert images[0].image.size == (96, 72)


def test_unlabeled_images_are_upright(tmp_path):
    path = rotated_folder(tmp_path, 6) / "val" / "cat" / "turned.jpg"
    images = folder.unlabeled(str(path.parent))
    (sample,) = (images[i] for i, record in enumerate(images.records) if record.path == str(path))
    assert original_view(sample.image, 32).size == (32, 32)
    assert sample.image.size == (72, 96)


# ---- Folders.


@pytest.mark.parametrize("clutter", [".ipynb_checkpoints", "empty", "__MACOSX", "@eaDir", "notes"])
def test_clutter_is_no_class(tmp_path, clutter):
    root = data_sets.make_folder(tmp_path)
    before = opened(root)
    for split in ("train", "val"):
        place = root / split / clutter
        place.mkdir()
        if clutter == "notes":
            (place / "read.txt").write_text("no image")
        elif clutter != "empty":
            data_sets.save_image(place / "1.png", 1)
    after = opened(root)
    assert after.classes == before.classes == ("cat", "dog")
    assert after.train.records == before.train.records


def test_clutter_is_no_image(tmp_path):
    root = data_sets.make_folder(tmp_path)
    before = opened(root)
    (root / "train" / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    data_sets.save_image(root / "train" / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", 1)
    (root / "train" / "cat" / "folder.png").mkdir()
    assert opened(root).train.records == before.train.records


def test_imagenet_has_no_class_of_clutter(tmp_path):
    root = data_sets.make_imagenet(tmp_path)
    data_sets.save_image(root / "train" / ".thumbs" / "1.JPEG", 1)
    (root / "val" / "n00000000").mkdir()
    assert opened(root, "imagenet").classes == WNIDS


def test_a_split_without_a_class_keeps_the_numbers_of_the_others(tmp_path):
    root = data_sets.make_folder(tmp_path)
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    settings = Settings(data="folder", data_root=str(root), model="small_resnet")
    for training in (True, False):
        after = open_data(settings, training)
        assert after.classes == ("cat", "dog")
        assert after.test.labels.tolist() == [1, 1]
        assert "1 of 2 classes have no test image, the first is cat" in after.notes


def test_a_class_that_is_not_trained_on_is_named(tmp_path):
    root = data_sets.make_folder(tmp_path)
    (root / "val" / "dog").rename(root / "val" / "Dog")
    with pytest.raises(DataError, match=r"val/Dog must be a class of .*train, got none there"):
        opened(root)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cat/all", "train"),
        ("train/cat/others", "train/dog"),
        ("train/cat/itself", "train/cat"),
        ("train/fox", "train/dog"),
        ("train/fox", "train"),
        ("train/cat/root", "."),
    ],
)
def test_links_to_other_classes_are_refused(tmp_path, link, target):
    root = data_sets.make_folder(tmp_path / "data")
    (root / link).symlink_to((root / target).resolve(), target_is_directory=True)
    with pytest.raises(DataError, match=f"{root / link} must not be a link to {(root / target).resolve()}"):
        opened(root)


def test_links_to_images_kept_elsewhere_are_followed(tmp_path):
    root = data_sets.make_folder(tmp_path / "data")
    before = len(opened(root).train)
    (root / "train" / "cat").rename(tmp_path / "pool")
    (root / "train" / "cat").symlink_to(tmp_path / "pool", target_is_directory=True)
    assert len(opened(root).train) == before


# ---- Tables.


def test_a_path_of_cub_may_hold_spaces(tmp_path):
    root = data_sets.make_cub(tmp_path)
    table = root / "CUB_200_2011" / "images.txt"
    first = cub.load(str(root), "train").records[0]
    Path(first.path).rename(Path(first.path).with_name("a bird.jpg"))
    table.write_text(table.read_text().replace(Path(first.path).name, "a bird.jpg"))
    assert cub.load(str(root), "train")[0].path.endswith("a bird.jpg")


CUB = "CUB_200_2011"
PLANES = "fgvc-aircraft-2013b/data"
WRONG_LINES = [
    (
        cub,
        data_sets.make_cub,
        f"{CUB}/bounding_boxes.txt",
        3,
        None,
        "bounding_boxes.txt lacks a line for 3, .*images.txt",
    ),
    (cub, data_sets.make_cub, f"{CUB}/train_test_split.txt", 3, None, "train_test_split.txt lacks a line for 3"),
    (cub, data_sets.make_cub, f"{CUB}/image_class_labels.txt", 3, None, "image_class_labels.txt lacks a line for 3"),
    (
        cub,
        data_sets.make_cub,
        f"{CUB}/image_class_labels.txt",
        3,
        "3 9",
        "line 3: an integer from 1 to 3 is expected, got '9'",
    ),
    (
        cub,
        data_sets.make_cub,
        f"{CUB}/image_class_labels.txt",
        3,
        "3 x",
        "line 3: an integer from 1 to 3 is expected, got 'x'",
    ),
    (cub, data_sets.make_cub, f"{CUB}/train_test_split.txt", 3, "3 2", "line 3: an integer from 0 to 1 is expected"),
    (cub, data_sets.make_cub, f"{CUB}/bounding_boxes.txt", 3, "3 1 2 3", "line 3: id x y width height are expected"),
    (cub, data_sets.make_cub, f"{CUB}/bounding_boxes.txt", 3, "3 1 2 -3 4", "line 3: left < right"),
    (
        cub,
        data_sets.make_cub,
        f"{CUB}/bounding_boxes.txt",
        3,
        "3 1 2 nan 4",
        "line 3: left, top, right and bottom must be",
    ),
    (cub, data_sets.make_cub, f"{CUB}/images.txt", 3, "3", "line 3: id path are expected"),
    (cub, data_sets.make_cub, f"{CUB}/images.txt", 3, "2 x.jpg", "line 3: id 2 is there twice, first in .*line 2"),
    (aircraft, data_sets.make_aircraft, f"{PLANES}/images_box.txt", 1, None, "images_box.txt lacks a line for 0034309"),
    (aircraft, data_sets.make_aircraft, f"{PLANES}/images_box.txt", 1, "0034309 9 1 2 3", "line 1: left < right"),
    (aircraft, data_sets.make_aircraft, f"{PLANES}/variants.txt", 1, "747", "variant must be one of .*, got '707-320'"),
]


@pytest.mark.parametrize(("loader", "make", "name", "number", "line", "message"), WRONG_LINES)
def test_wrong_and_missing_lines_are_named(tmp_path, loader, make, name, number, line, message):
    root = make(tmp_path)
    lines = (root / name).read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    (root / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        loader.load(str(root), "train")


def test_a_split_of_no_images_is_named(tmp_path):
    root = data_sets.make_cub(tmp_path)
    path = root / CUB / "train_test_split.txt"
    path.write_text(path.read_text().replace(" 0\n", " 1\n"))
    with pytest.raises(DataError, match=f"{root} must have test images, got none in its lists"):
        opened(root, "cub")


MAT = [
    (cars, data_sets.make_cars, "devkit/cars_train_annos.mat"),
    (cars, data_sets.make_cars, "devkit/cars_meta.mat"),
    (flowers, data_sets.make_flowers, "imagelabels.mat"),
    (flowers, data_sets.make_flowers, "setid.mat"),
    (unrel, data_sets.make_unrel, "annotations.mat"),
]


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other variables"])
@pytest.mark.parametrize(("loader", "make", "name"), MAT)
def test_damaged_mat_files_are_named(tmp_path, loader, make, name, damage):
    root = make(tmp_path)
    path = root / name
    whole = path.read_bytes()
    if damage == "other variables":
        savemat(path, {"x": 1})
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"text", "empty": b""}[damage])
    with pytest.raises(DataError, match=str(path)):
        loader.load(*([str(root)] if loader is unrel else [str(root), "train"]))


@pytest.mark.parametrize(("field", "value"), [("class", 9), ("class", 0), ("bbox_x2", 0), ("bbox_y1", np.nan)])
def test_wrong_annotations_of_cars_are_named(tmp_path, field, value):
    path = data_sets.make_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
    rows = loadmat(path)["annotations"]
    rows[field][0, 4] = value
    savemat(path, {"annotations": rows})
    with pytest.raises(DataError, match=f"{path}, annotation 5: "):
        cars.load(str(tmp_path), "train")


# ---- What cannot be read.


def spoil(root: Path, split: str) -> None:
    for path in root.glob(f"{split}/*/*.png"):
        path.write_bytes(b"no image")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_a_readable_image_is_refused_at_the_start(tmp_path, split, capsys):
    root = data_sets.make_folder(tmp_path / "data")
    for path in list((root / "val").rglob("*.png")):
        data_sets.save_image(root / "test" / path.parent.name / path.name, 3)
    spoil(root, split)
    name = {"train": "training"}.get(split, split)
    assert f"must hold {name} images that can be read, got none of" in refused(
        capsys, train.main, "--data", "folder", "--data-root", root, "--output", tmp_path / "run", *SMALL
    )
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(("split", "checkpoint"), [("val", 0), ("test", 1)])
def test_a_split_that_becomes_unreadable_ends_in_a_message(tmp_path, split, checkpoint, capsys, monkeypatch):
    root = data_sets.make_folder(tmp_path / "data")
    for path in list((root / "val").rglob("*.png")):
        data_sets.save_image(root / "test" / path.parent.name / path.name, 3)
    monkeypatch.setattr(train.data, "check_readable", lambda _: spoil(root, split))
    flags = ["--data", "folder", "--data-root", root, "--output", tmp_path / "run", *SMALL]
    assert f"must hold {split} images that can be read, got none of 4" in refused(capsys, train.main, *flags)
    state = storage.load(tmp_path / "run" / "last.pt")
    assert (state["epoch"], state["step"]) == ((1, 0) if checkpoint else (0, 2))


@pytest.mark.parametrize("split", ["train", "val"])
def test_strict_survives_a_loaders_workers(tmp_path, split, capsys):
    root = data_sets.make_folder(tmp_path / "data")
    broken = root / split / "dog" / "1.png"
    broken.write_bytes(b"no image")
    flags = ["--data", "folder", "--data-root", root, *SMALL, "--output", tmp_path / "run", "--strict"]
    said = refused(capsys, train.main, *flags, "--workers", 2)
    assert f"cannot read the image {broken}" in said
    assert "Traceback" not in said


def test_an_evaluation_of_unreadable_images_is_refused(tmp_path, capsys):
    root = data_sets.make_folder(tmp_path / "data")
    spoil(root, "val")
    flags = ["--data", "folder", "--data-root", root, "--output", tmp_path / "out", "--workers", 2]
    said = refused(capsys, evaluate.main, "small_resnet", *flags)
    assert "images that can be read, got none of 4" in said


# ---- Terminals.


def test_what_a_terminal_cannot_show_is_written_as_an_escape(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", written)
    with pytest.raises(SystemExit) as stop:
        flags.run_script(lambda: print("54.2 ± 1.2, caf\u00e9, \udcff"))
    assert stop.value.code is None
    written.flush()
    assert written.buffer.getvalue() == b"54.2 \\xb1 1.2, caf\\xe9, \\udcff\n"


def test_a_script_without_a_docstring_has_a_parser():
    """As under python -OO."""
    assert flags.documented_parser("a.py", "FILE", None).format_help().startswith("usage: a.py FILE")


@pytest.mark.slow
def test_scripts_run_without_docstrings():
    code = "import evaluate, explain, experiments; evaluate.make_parser(), explain.make_parser(), experiments._parser()"
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
