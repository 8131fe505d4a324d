"""Folders as people have them: flat ones, clutter, and links."""

from pathlib import Path

import pytest
from driver.data import DataError, imagenet

from tests.driver import data_sets
from tests.driver.cases import opened
from tests.driver.data_sets import WNIDS

# ---- ImageNet's validation images in one folder, as Kaggle has them.


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


# ---- Clutter and links.


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
