"""Splits without images of a class, without any image, or without one that can be read."""

from pathlib import Path

import evaluate
import pytest
import train
from driver import storage
from driver.data import DataError, open_data
from driver.settings import Settings

from tests.driver import data_sets
from tests.driver.cases import SMALL, opened, refused

# ---- What is missing.


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


def test_a_split_of_no_images_is_named(tmp_path):
    root = data_sets.make_cub(tmp_path)
    path = root / "CUB_200_2011" / "train_test_split.txt"
    path.write_text(path.read_text().replace(" 0\n", " 1\n"))
    with pytest.raises(DataError, match=f"{root} must have test images, got none in its lists"):
        opened(root, "cub")


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
