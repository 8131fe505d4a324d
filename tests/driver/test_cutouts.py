"""Objects on photographs: what the splits share, masks and boxes, distractors, tied photographs, what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import train
from driver import data, evaluation_views
from driver.data import CorruptImage, DataError, check_readable, cutouts, open_data, pasting
from driver.settings import Settings
from PIL import Image

from tests.driver import data_sets
from tests.driver.cases import assert_same, refused

SIZE = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return data_sets.make_cutouts(tmp_path_factory.mktemp("cutouts"))


def settings(root, **more):
    return Settings(**{**data_sets.places("cutouts", root), "image_size": SIZE, "model": "small_resnet", **more})


def made(root, **more) -> data.Data:
    return open_data(settings(root, **more))


def splits(opened) -> list:
    return [opened.train, opened.val, opened.test]


def test_no_object_and_no_photograph_is_in_two_splits(root):
    for seed in range(5):
        opened = made(root, seed=seed, train_images=40, val_images=40, test_images=40)
        groups = [set(images.groups) for images in splits(opened)]
        photographs = [{plan.photograph for plan in images.plans} for images in splits(opened)]
        for own in (groups, photographs):
            assert sum(map(len, own)) == len(set.union(*own))
        assert set.union(*groups) == {f"{shape}/{group}" for shape in data_sets.SHAPES for group in "abcd"}
        for images in splits(opened):
            assert images.labels.bincount().tolist() == [14, 13, 13]
            per_object = np.unique([plan.object.path for plan in images.plans], return_counts=True)[1]
            assert per_object.max() - per_object.min() <= 4  # the objects of a class take turns


def test_the_seed_decides_and_the_index_alone(root):
    first, again, other = made(root), made(root), made(root, seed=1)
    assert_same([first.train[3], first.train[3]], [again.train[3], first.train.subset([5, 3])[1]])
    assert not torch.equal(first.train[3].image, other.train[3].image)
    assert not torch.equal(first.train[3].image, first.train[4].image)
    unlabeled = first.train.subset([5, 3], labelled=False)
    assert unlabeled[1].label == -1
    assert torch.equal(unlabeled[1].image, first.train[3].image)


def test_masks_and_boxes_are_the_objects(tmp_path):
    """Red objects on black photographs: the mask is where the image is more than half as red as it gets."""
    root = data_sets.make_cutouts(tmp_path)
    for path in (root / "photographs").iterdir():
        Image.new("RGB", (80, 60)).save(path)
    for path in (root / "objects").rglob("*.png"):
        alpha = Image.open(path).getchannel("A")
        red = Image.new("RGB", alpha.size, (255, 0, 0))
        red.putalpha(alpha)
        red.save(path)
    for sample in made(root).train:
        assert sample.image.shape == (3, SIZE, SIZE)
        red = sample.image[0] > 0.5 * sample.image[0].max()
        assert (red & sample.mask).sum() >= 0.99 * (red | sample.mask).sum()
        rows, columns = sample.mask.any(1).nonzero(), sample.mask.any(0).nonzero()
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert sample.boxes.tolist() == [[float(edge) for edge in box]]
        assert sample.distractor == -1
        assert sample.distractor_mask is None


def test_distractors_are_other_objects_beside_it(root):
    opened = made(root, distractors=2, train_images=30)
    met = 0
    for sample, plan in zip(opened.train, opened.train.plans, strict=True):
        assert len(plan.distractors) == 2
        assert sample.label not in {other.label for other in plan.distractors}
        assert sample.distractor == plan.distractors[0].label
        assert not (sample.mask & sample.distractor_mask).any()
        met += bool(sample.distractor_mask.any())
    assert met == 30
    assert {other.path for plan in opened.test.plans for other in plan.distractors} <= {
        one.object.path for one in made(root, test_images=90).test.plans
    }
    (batch,) = evaluation_views.batches(opened.val, range(10), opened, seed=0, stream="val")
    assert (batch.distractors >= 0).all()
    assert batch.distractor_masks.flatten(1).any(1).all()


def test_photographs_tied_to_classes_in_training_only(tmp_path):
    opened = made(
        data_sets.make_cutouts(tmp_path, photographs=6),
        backgrounds="class",
        train_images=300,
        val_images=90,
        test_images=90,
    )
    for images, tied in zip(splits(opened), (True, False, False), strict=True):
        favourites = []
        for label in range(3):
            own = [plan.photograph for plan in images.plans if plan.object.label == label]
            name, count = max(((name, own.count(name)) for name in set(own)), key=lambda pair: pair[1])
            favourites.append(name)
            assert (count > 0.8 * len(own)) == (tied or len(set(own)) == 1)
        assert not tied or len(set(favourites)) == 3


def test_a_few_objects_to_train_on(root):
    few = made(root, train_objects=1, train_images=30)
    assert len({plan.object.path for plan in few.train.plans}) == 3
    assert [plan.object for plan in few.test.plans] == [plan.object for plan in made(root).test.plans]


def test_groups_are_folders_or_how_names_begin():
    folder = Path("objects/car")
    names = {"sedan/front.png": "sedan", "sedan/more/1.png": "sedan", "bus_2.png": "bus", "Van-red.png": "van"}
    names |= {"tram stop.png": "tram", "lorry3.png": "lorry", "0001.png": "0001", "-x.png": "-x"}
    assert {name: cutouts._group(str(folder / name), folder) for name in names} == names


# ---- What is wrong is named.


def lacks_alpha(root):
    Image.new("RGB", (9, 9)).save(root / "objects" / "disc" / "a_left.png")
    return f"--data-root: {root / 'objects' / 'disc' / 'a_left.png'} must have transparency"


def too_few_groups(root):
    for path in (root / "objects" / "disc").glob("[cd]*"):
        path.unlink()
    return f"--data-root: {root / 'objects' / 'disc'} must hold objects of at least 3 groups.*got 2: a, b"


def one_class(root):
    shutil.rmtree(root / "objects" / "disc")
    shutil.rmtree(root / "objects" / "wedge")
    return "--data-root must hold a folder of pictures for each of two classes or more, got .'frame'."


def no_objects(root):
    shutil.rmtree(root / "objects")
    return f"--data-root lacks {root / 'objects'}: a folder of class folders"


def no_photographs(root):
    shutil.rmtree(root / "photographs")
    return f"--photographs must be a folder of pictures, got '{root / 'photographs'}'"


def two_photographs(root):
    for number in range(2, 7):
        next((root / "photographs").glob(f"{number}.*")).unlink()
    return "--photographs must hold at least 3 pictures, got 2"


@pytest.mark.parametrize(
    "damage", [lacks_alpha, too_few_groups, one_class, no_objects, no_photographs, two_photographs]
)
def test_what_is_refused_before_any_work(tmp_path, damage):
    message = damage(data_sets.make_cutouts(tmp_path))
    with pytest.raises(DataError, match=message):
        made(tmp_path)


def test_too_few_photographs_to_tie(tmp_path):
    with pytest.raises(DataError, match="--backgrounds class must have a training photograph for each of 3 classes"):
        made(data_sets.make_cutouts(tmp_path, photographs=4), backgrounds="class")


def test_photographs_belong_to_cutouts(root, tmp_path, capsys):
    flags = data_sets.flags("cutouts", root)
    without = flags[: flags.index("--photographs")]
    assert "--data cutouts must come with --photographs DIR" in refused(capsys, train.main, *without)
    with pytest.raises(DataError, match="--photographs must be a folder of pictures, got ''"):
        made(root, photographs="")
    folder = ["--data", "folder", "--data-root", root, "--photographs", root]
    assert "--photographs goes with --data cutouts, got it with folder" in refused(capsys, train.main, *folder)


DAMAGES = [("objects", how) for how in ("text", "cut", "opaque", "clear")]
DAMAGES += [("photographs", how) for how in ("text", "cut")]


@pytest.mark.parametrize(("kind", "damage"), DAMAGES)
def test_unreadable_pictures_are_named(tmp_path, kind, damage):
    root = data_sets.make_cutouts(tmp_path)
    opened = made(root)
    plan = opened.train.plans[0]
    path = Path(plan.object.path if kind == "objects" else plan.photograph)
    whole = path.read_bytes()
    if damage in ("opaque", "clear"):
        Image.new("RGBA", (9, 9), (1, 2, 3, 255 if damage == "opaque" else 0)).save(path)
    else:
        path.write_bytes(b"no image" if damage == "text" else whole[: len(whole) // 2])
    pasting._cut_out.cache_clear()
    pasting._photograph.cache_clear()
    with pytest.raises(CorruptImage, match=str(path)):
        opened.train[0]
    opened = made(root)  # the others are still there
    check_readable(opened)
    with pytest.raises(CorruptImage, match=str(path)):
        check_readable(opened._replace(strict=True, val=opened.train, test=opened.train))
