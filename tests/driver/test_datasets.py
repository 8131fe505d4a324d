"""Every data set's loader on a miniature in the true layout; subsets, unlabeled, unreadable images, missing data."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driver import data
from driver.data import CorruptImage, DataError, aircraft, cars, cub, flowers, folder, imagenet, open_data, unrel
from driver.data.demo import make_splits
from driver.settings import Settings
from PIL import Image

from tests.driver import data_sets
from tests.driver.data_sets import HEIGHT, WIDTH, WNIDS


def boxes_of(images, index=0):
    return images[index].boxes.tolist()


def check(images, count, classes):
    """Every image opens, labels agree with the attribute, the data set goes to another process."""
    assert len(images) == count
    assert len(images.classes) == classes
    samples = [images[index] for index in range(count)]
    assert [sample.label for sample in samples] == images.labels.tolist()
    assert images.labels.dtype == torch.int64
    for sample in samples:
        assert sample.image.mode == "RGB"
        assert sample.boxes.dtype == torch.float32
        assert sample.boxes.shape[1:] == (4,)
    assert pickle.loads(pickle.dumps(images)).records == images.records


# ---- The loaders.


@pytest.mark.parametrize("above", [False, True])
def test_cub(tmp_path, above):
    root = data_sets.make_cub(tmp_path) / ("" if above else "CUB_200_2011")
    train, test = cub.load(str(root), "train"), cub.load(str(root), "test")
    check(train, 12, 3)
    check(test, 6, 3)
    assert train.classes == ("Black footed Albatross", "Laysan Albatross", "Indigo Bunting")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert boxes_of(train) == [[1, 5, 31.5, 45]]
    assert boxes_of(test) == [[5, 5, 35.5, 45]]
    assert not {record.path for record in train.records} & {record.path for record in test.records}


def test_aircraft(tmp_path):
    root = str(data_sets.make_aircraft(tmp_path))
    counts = {split: len(aircraft.load(root, split)) for split in ("train", "val", "trainval", "test")}
    assert counts == {"train": 6, "val": 6, "trainval": 12, "test": 6}
    images = aircraft.load(root, "test")
    check(images, 6, 3)
    assert images.classes == ("707-320", "A340-200", "Cessna 172")
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert boxes_of(images) == [[0, 0, 80, 60]]  # 1 1 80 60 counts from 1 and includes the last pixel


@pytest.mark.parametrize("beside", [False, True])
def test_cars(tmp_path, beside):
    root = str(data_sets.make_cars(tmp_path, beside=beside))
    train, test = cars.load(root, "train"), cars.load(root, "test")
    check(train, 12, 3)
    check(test, 6, 3)
    assert train.classes[1] == "Acura RL Sedan 2012"
    assert train.labels.tolist() == [0, 1, 2] * 4
    assert boxes_of(test, 3) == [[0, 5, 80, 60]]
    assert "cars_test" in test.records[0].path


def test_cars_of_one_image(tmp_path):
    """A MATLAB array of one arrives without its dimension."""
    from scipy.io import loadmat, savemat

    root = data_sets.make_cars(tmp_path)
    path = root / "devkit" / "cars_train_annos.mat"
    savemat(path, {"annotations": loadmat(path)["annotations"][:, :1]})
    check(cars.load(str(root), "train"), 1, 3)


def test_cars_without_labels(tmp_path):
    import numpy as np
    from scipy.io import savemat

    root = data_sets.make_cars(tmp_path)
    rows = np.array([(1, 1, 5, 5, "00001.jpg")], dtype=[(n, object) for n in ("bbox_x1", "b", "c", "d", "fname")])
    savemat(root / "devkit" / "cars_test_annos_withlabels.mat", {"annotations": rows[None]})
    with pytest.raises(DataError, match="has no labels"):
        cars.load(str(root), "test")


def test_flowers(tmp_path):
    root = str(data_sets.make_flowers(tmp_path))
    train, val, test = (flowers.load(root, split) for split in ("train", "val", "test"))
    for images in (train, val, test):
        check(images, 12, 102)
        assert not images.has_boxes
        assert images[0].boxes.shape == (0, 4)
    assert train.classes[0] == "pink primrose"
    assert train.labels.tolist() == [0, 1, 2] * 4
    assert test.records[0].path.endswith("image_00001.jpg")
    assert train.records[0].path.endswith("image_00013.jpg")
    assert len(flowers.load(root, "trainval")) == 24


@pytest.mark.parametrize("annotations", ["xml", "csv"])
def test_imagenet(tmp_path, annotations):
    root = str(data_sets.make_imagenet(tmp_path, annotations=annotations))
    train, val = imagenet.load(root, "train"), imagenet.load(root, "val")
    check(train, 12, 3)
    check(val, 6, 3)
    assert not train.has_boxes
    assert val.has_boxes
    assert val.classes == WNIDS
    assert boxes_of(val) == [[10, 20, 40, 60], [11, 20, 40, 60]]  # the object of another class is left out
    assert boxes_of(val, 4) == [[10, 20, 42, 60], [11, 20, 42, 60]]
    assert boxes_of(val.subset([4])) == boxes_of(val, 4)


def test_imagenet_boxes_follow_the_image_to_another_size(tmp_path):
    """The XML file tells what size it speaks of; copies of ImageNet are often smaller."""
    images = imagenet.load(str(data_sets.make_imagenet(tmp_path)), "val")
    with Image.open(images.records[0].path) as image:
        image.resize((WIDTH // 2, HEIGHT // 4)).save(images.records[0].path)
    assert boxes_of(images) == [[5, 5, 20, 15], [5.5, 5, 20, 15]]


def test_imagenet_with_boxes_elsewhere_and_names(tmp_path):
    root = data_sets.make_imagenet(tmp_path / "imagenet", annotations="csv")
    (root / "LOC_val_solution.csv").rename(tmp_path / "boxes.csv")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert not imagenet.load(str(root), "val").has_boxes
    images = imagenet.load(str(root), "val", str(tmp_path / "boxes.csv"))
    assert len(boxes_of(images)) == 2
    assert images.classes == ("tench", "goldfish", "n02123045")


def test_unrel(tmp_path):
    images = unrel.load(str(data_sets.make_unrel(tmp_path)))
    names = [images.classes[label] for label in images.labels.tolist()]
    assert names == ["bike", "dog", "dog"]  # a person is no class of ImageNet
    check(images, 3, len(unrel.MAPPING))
    assert boxes_of(images, 0) == [[0, 20, 90, 70]]
    assert boxes_of(images, 1) == [[10, 0, 40, 50]]  # once, though an object and a relation have it
    assert boxes_of(images, 2) == [[10, 0, 40, 50], [49, 1, 60, 9]]


def test_unrel_mapping_names_classes_of_imagenet():
    groups = unrel.groups()
    assert len(groups) == len(unrel.MAPPING)
    assert all(groups)
    dogs = groups[list(unrel.MAPPING).index("dog")]
    assert dogs == list(range(151, 269))
    assert groups[list(unrel.MAPPING).index("cat")] == list(range(281, 286))


def test_folder_with_boxes(tmp_path):
    root = str(data_sets.make_folder(tmp_path))
    train, val = folder.load(root, "train", f"{root}/boxes.csv"), folder.load(root, "val", f"{root}/boxes.csv")
    check(train, 8, 2)
    check(val, 4, 2)
    assert boxes_of(val) == [[0, 0, 40.5, 30], [50, 40, 90, 70]]
    assert boxes_of(val, 1) == [[0, 0, 40.5, 30]]
    assert boxes_of(train) == []
    assert [r.path for r in folder.load(root, "test").records] == [r.path for r in val.records]


def test_boxes_need_their_header(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,x\na,1\n")
    with pytest.raises(DataError, match="must have the header path,left,top,right,bottom"):
        folder.read_boxes(tmp_path / "boxes.csv", tmp_path)


# ---- open_data.

DEMO = Settings(train_images=60, val_images=20, test_images=30)


@pytest.mark.parametrize("name", data_sets.MAKERS)
def test_open_data(tmp_path, name):
    settings = Settings(**data_sets.places(name, data_sets.MAKERS[name](tmp_path)), model="resnet18", image_size=64)
    opened = open_data(settings)
    assert opened.classes == opened.train.classes == opened.val.classes == opened.test.classes
    assert opened.mean == (0.485, 0.456, 0.406)
    assert opened.unlabeled is None
    train = {record.path for record in opened.train.records}
    assert not train & {record.path for record in opened.test.records}
    without = open_data(settings, training=False)
    assert without.train is None
    assert without.test.records == opened.test.records


def test_open_data_of_unrel(tmp_path):
    opened = open_data(Settings(data="unrel", data_root=str(data_sets.make_unrel(tmp_path)), model="resnet18"))
    assert opened.train is None
    assert len(opened.groups) == len(opened.classes)


def test_evaluation_needs_no_training_images(tmp_path):
    root = data_sets.make_imagenet(tmp_path, train=0)
    opened = open_data(Settings(data="imagenet", data_root=str(root), model="resnet18"), training=False)
    assert len(opened.test) == 6


@pytest.mark.parametrize("name", data_sets.MAKERS)
def test_missing_data_say_what_is_expected(tmp_path, name):
    with pytest.raises(DataError, match=r"--data-root .*(must be the folder of|lacks)"):
        open_data(Settings(data=name, data_root=str(tmp_path / "nowhere"), model="resnet18"))
    with pytest.raises(DataError, match="must come with --data-root"):
        open_data(Settings(data=name, model="resnet18"))


def test_a_missing_file_is_named(tmp_path):
    root = data_sets.make_cub(tmp_path)
    (root / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    with pytest.raises(DataError, match=r"lacks .*bounding_boxes.txt"):
        cub.load(str(root), "test")


def test_boxes_flag_is_refused_where_boxes_are_part_of_the_data(tmp_path):
    root = str(data_sets.make_cub(tmp_path))
    with pytest.raises(DataError, match="--boxes goes with --data imagenet or folder"):
        open_data(Settings(data="cub", data_root=root, boxes="boxes.csv", model="resnet18"))


# ---- Subsets.


@pytest.mark.parametrize("name", ["demo", "cub"])
def test_fraction_is_balanced_seeded_and_nested_in_nothing(tmp_path, name):
    settings = DEMO if name == "demo" else Settings(data="cub", data_root=str(data_sets.make_cub(tmp_path, train=8)))
    full = open_data(settings).train
    part = open_data(replace(settings, fraction=0.5)).train
    for label in full.labels.unique():
        assert (part.labels == label).sum() == round(0.5 * int((full.labels == label).sum()))
    paths = [record.path for record in part.records]
    assert set(paths) < {record.path for record in full.records}
    assert [r.path for r in open_data(replace(settings, fraction=0.5)).train.records] == paths
    if name == "cub":  # the demo's images are another seed's too
        assert [r.path for r in open_data(replace(settings, fraction=0.5, seed=1)).train.records] != paths


def test_fraction_keeps_one_of_each_class(tmp_path):
    settings = Settings(data="cub", data_root=str(data_sets.make_cub(tmp_path)), fraction=0.01)
    assert open_data(settings).train.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["demo", "cub"])
def test_rest_is_what_fraction_left_out(tmp_path, name):
    settings = DEMO if name == "demo" else Settings(data="cub", data_root=str(data_sets.make_cub(tmp_path)))
    full = open_data(settings).train
    opened = open_data(replace(settings, fraction=0.25, unlabeled="rest"))
    paths = [[record.path for record in part.records] for part in (opened.train, opened.unlabeled)]
    assert sorted(paths[0] + paths[1]) == sorted(record.path for record in full.records)
    assert (opened.unlabeled.labels == -1).all()
    assert opened.unlabeled[0].label == -1
    with pytest.raises(DataError, match="--unlabeled rest must come with a --fraction below 1"):
        open_data(replace(settings, unlabeled="rest"))


def test_unlabeled_folder(tmp_path):
    data_sets.save_image(tmp_path / "a" / "b" / "1.png", 1)
    data_sets.save_image(tmp_path / "2.JPG", 2)
    (tmp_path / "notes.txt").write_text("no image")
    opened = open_data(replace(DEMO, unlabeled=str(tmp_path)))
    assert sorted(record.path for record in opened.unlabeled.records) == sorted(
        [str(tmp_path / "a" / "b" / "1.png"), str(tmp_path / "2.JPG")]
    )
    assert opened.unlabeled[0].label == -1
    with pytest.raises(DataError, match="--unlabeled must be a folder of images"):
        open_data(replace(DEMO, unlabeled=str(tmp_path / "nowhere")))


# ---- Images.


@pytest.mark.parametrize("damage", ["text", "cut", "gone"])
def test_unreadable_images_are_named(tmp_path, damage):
    images = cub.load(str(data_sets.make_cub(tmp_path)), "train")
    path = Path(images.records[0].path)
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"no image" if damage == "text" else whole[: len(whole) // 2])
    with pytest.raises(CorruptImage) as caught:
        images[0]
    assert str(path) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_images_become_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode in ("L", "CMYK") else "image.png")
    Image.new(mode, (8, 6)).save(path)
    assert data.images.read_image(str(path)).mode == "RGB"


# ---- The demo's hard variants.


def test_distractors_lie_outside_the_box_and_change_the_rest():
    split = make_splits({"val": 60}, 0, distractors=2)["val"]
    again = make_splits({"val": 60}, 0, distractors=2)["val"]
    assert torch.equal(split.images, again.images)
    first_plain, first_hard = make_splits({"val": 60}, 0)["val"], split  # the first image shares its digit and box
    assert torch.equal(first_plain.boxes[0], first_hard.boxes[0])
    left, top, right, bottom = first_hard.boxes[0].tolist()
    changed = (first_plain.images[0] - first_hard.images[0]).abs().amax(0) > 1e-6
    assert changed.any()
    assert not changed[top:bottom, left:right].any()


def test_backgrounds_betray_the_class_in_training_only():
    splits = make_splits({"train": 600, "val": 300, "test": 300}, 0, backgrounds="class")
    share = {name: (split.regions[:, 0] == split.labels).float().mean() for name, split in splits.items()}
    assert share["train"] > 0.85
    assert share["val"] < 0.25
    assert share["test"] < 0.25
