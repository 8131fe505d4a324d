"""train.py --check: what is wrong with the data and what a training would cost, without a training."""

import pytest
import train

from tests.driver import data_sets
from tests.driver.cases import SMALL, refused, run


@pytest.fixture
def flags(tmp_path):
    root = data_sets.make_folder(tmp_path / "data")
    return ["--data", "folder", "--data-root", root, "--boxes", root / "boxes.csv", "--check", *SMALL]


def test_what_would_be_trained(flags, tmp_path, capsys):
    assert run(train.main, *flags, "--output", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "train: 8 images, 8 of them without a problem" in out
    assert "      4       2  dog" in out
    assert "small_resnet on cpu: Grad-CAM explains stages, its gradients by closed form" in out
    assert "a step of 4 images:" in out
    assert "1 epochs of 2 steps" in out
    assert "Nothing is wrong" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_is_wrong_is_listed(flags, tmp_path, capsys, workers):
    root = tmp_path / "data"
    broken = [root / "train" / "cat" / "1.png", root / "val" / "dog" / "0.png"]
    for path in broken:
        path.write_bytes(b"no image")
    with (root / "boxes.csv").open("a") as file:
        file.write("val/dog/1.png,200,5,300,10\nval/none.png,1,2,3,4\n")
    assert run(train.main, *flags, "--workers", workers, "--strict") == 1
    out = capsys.readouterr().out
    assert all(f"wrong: cannot read the image {path}" in out for path in broken)
    where = f"{root / 'boxes.csv'}, line 5: {root / 'val' / 'dog' / '1.png'}"
    assert f"wrong: {where}: the box 200, 5, 300, 10 lies outside its 96 x 72 pixels" in out
    assert "note: " in out
    assert "boxes.csv, line 8: 'val/none.png'" in out
    assert "3 of the images have a problem" in out


def test_what_cannot_be_trained_is_refused(flags, capsys):
    assert "--batch-size must be at most the 8 training images" in refused(
        capsys, train.main, *flags, "--batch-size", 64
    )
    assert "--target-layer must name a module" in refused(capsys, train.main, *flags, "--target-layer", "layer9")


def test_many_classes_are_shortened(tmp_path, capsys):
    for split in ("train", "val"):
        for number in range(25):
            for index in range(1 + (number != 7)):
                data_sets.save_image(tmp_path / "data" / split / f"class{number:02d}" / f"{index}.png", number)
    assert run(train.main, "--data", "folder", "--data-root", tmp_path / "data", "--check", *SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "25 classes, training and test images, the smallest:" in lines
    assert "        1       1  class07" in lines
    assert sum(" class" in line for line in lines) < 25
