"""Tables, annotations and boxes as people have them: other encodings and spellings, and lines that are wrong.

Each is read, skipped by name, or refused by a message that names file and line.
"""

import codecs
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import train
from driver import data, storage
from driver.data import CorruptImage, DataError, aircraft, cars, cub, flowers, folder, imagenet, open_data, unrel
from driver.settings import Settings
from scipy.io import loadmat, savemat

from tests.driver import data_sets
from tests.driver.cases import SMALL, assert_same, opened, refused, run


def boxes(images) -> list:
    return [images[index].boxes.tolist() for index in range(len(images))]


# ---- Annotations of ImageNet.


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
        ("val/cat/0.png,1,2,3", "line 2: 5 cells are expected as in the header, got 4"),
        ("val/cat/0.png,1,2,x,4", "line 2: left, top, right and bottom must be numbers"),
        ("val/cat/0.png,5,2,5,4", "line 2: left < right and top < bottom must hold"),
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
