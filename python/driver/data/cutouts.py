"""Objects cut out of their background, pasted on photographs: images whose object is known to the pixel.

Two folders make a data set: one of class folders that hold pictures with transparency, one of photographs. An object is
turned a little, mirrored or not, made lighter or darker, resized, and pasted on a square of a photograph; its mask is
what is more than half opaque, its box the mask's. The splits share no object and no photograph. Objects are split by
groups, so that a car and the same car from behind do not meet: a folder inside the class's is a group, and of pictures
that lie in the class's own folder those whose names agree up to the first digit, hyphen, underscore or space.

Two ways to make it harder, as in the demo: distractors, objects of other classes, smaller and beside the object where
that is possible; and backgrounds that betray the class in training only, each class having photographs of its own.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .files import CorruptImage, DataError, class_names, image_files, need
from .images import Images, Record, Sample, as_boxes, opened
from .pasting import box, compose

SPLITS = ("train", "val", "test")
SHARES = (1 / 6, 1 / 3)  # of the groups and of the photographs, for val and for test; the rest is trained on
CORRELATION = 0.9  # of the training images have a photograph of their class, with backgrounds="class"
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
GROUP = re.compile(r"[^-_\s\d]+")


class Object(NamedTuple):
    """A picture of an object: its file, its class, and the group that no two splits share."""

    path: str
    label: int
    group: str


class Plan(NamedTuple):
    """What one image is made of; all else is drawn by its number."""

    number: int
    object: Object
    photograph: str
    distractors: tuple[Object, ...]


class Cutouts(Images):
    """Images of one split, each made when it is asked for: tensors [3, S, S] in [0, 1], the same every time.

    Attributes:
        plans: one :class:`Plan` an image.
        groups: of each image the class and the group of its object, for statistics over objects.
    """

    def __init__(self, plans: list[Plan], classes, size: int, seed: int, split: str, labelled: bool = True):
        records = [Record(_title(plan, split), plan.object.label if labelled else -1) for plan in plans]
        super().__init__(records, classes, has_boxes=True)
        self.plans, self.size, self.seed, self.split = plans, size, seed, split

    def __getitem__(self, index: int) -> Sample:
        plan, record = self.plans[index], self.records[index]
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), plan.number])
        others = [other.path for other in plan.distractors]
        image, mask, other = compose(plan.photograph, plan.object.path, others, self.size, rng)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        first = plan.distractors[0].label if plan.distractors else -1
        return Sample(pixels, record.label, as_boxes(box(mask)), record.path, mask, first, other)

    @property
    def groups(self) -> list[str]:
        """class/group of each image's object, which no other split has."""
        return [f"{self.classes[plan.object.label]}/{plan.object.group}" for plan in self.plans]

    def files(self) -> list[str]:
        """The pictures that the images are made of."""
        parts = (
            [plan.photograph, plan.object.path, *(other.path for other in plan.distractors)] for plan in self.plans
        )
        return sorted({path for own in parts for path in own if Path(path).is_file()})

    def boxed(self) -> int:
        """How many images have a box: all."""
        return len(self)

    def subset(self, indices, labelled: bool = True) -> "Cutouts":
        """As :meth:`Images.subset`."""
        plans = [self.plans[index] for index in indices]
        return Cutouts(plans, self.classes, self.size, self.seed, self.split, labelled)


def make_splits(
    objects: str,
    photographs: str,
    sizes: dict[str, int],
    seed: int,
    *,
    image_size: int,
    distractors: int = 0,
    backgrounds: str = "any",
    train_objects: int = 0,
) -> dict[str, Cutouts]:
    """The splits of one seed, which decides who owns which group and photograph, and every image.

    Raises :class:`DataError` where classes, groups or photographs are too few, or a picture has no transparency.

    Args:
        objects: folder of class folders of pictures with transparency.
        photographs: folder of pictures of any kind, however nested.
        sizes: number of images per split, with keys among "train", "val", "test"; classes take turns, and the objects
            of a class, in an order drawn anew each time round.
        image_size: side of the images in pixels.
        distractors: number of objects of other classes in every image.
        backgrounds: "any", or "class": nine training images in ten have a photograph of their class.
        train_objects: at most so many objects of a class are trained on; 0: all.
    """
    classes, known = _objects(Path(objects))
    rng = np.random.default_rng(seed)
    owned = [_split_groups([one for one in known if one.label == label], rng) for label in range(len(classes))]
    places = _shared_out(_photographs(photographs), rng)
    splits = {}
    for split, size in sizes.items():
        draw = np.random.default_rng([seed, SPLITS.index(split), 0, 0])
        own = [parts[split] for parts in owned]
        if split == "train" and train_objects:
            own = [[mine[i] for i in draw.permutation(len(mine))[:train_objects]] for mine in own]
        plans = _plans(size, own, places[split], distractors, split == "train" and backgrounds == "class", draw)
        splits[split] = Cutouts(plans, classes, image_size, seed, split)
    return splits


def _objects(root: Path) -> tuple[list[str], list[Object]]:
    """The classes, and all objects; raises :class:`DataError` where they cannot be split into three."""
    classes = class_names(need(root, "a folder of class folders, each of pictures with transparency,"))
    if len(classes) < 2:
        raise DataError(f"--data-root must hold a folder of pictures for each of two classes or more, got {classes}")
    objects = []
    for label, name in enumerate(classes):
        own = [Object(path, label, _group(path, root / name)) for path in image_files(root / name, root)]
        groups = sorted({one.group for one in own})
        if len(groups) < len(SPLITS):
            raise DataError(
                f"--data-root: {root / name} must hold objects of at least {len(SPLITS)} groups, which are the folders "
                f"in it, or the beginnings of its pictures' names, got {len(groups)}: {', '.join(groups)}"
            )
        objects += own
    for one in objects:
        _check_transparency(one.path)
    return classes, objects


def _group(path: str, folder: Path) -> str:
    """The first folder on the way from the class's folder, or how the name begins."""
    inside = Path(path).relative_to(folder)
    if len(inside.parts) > 1:
        return inside.parts[0]
    begins = GROUP.match(inside.stem)
    return begins[0].lower() if begins else inside.stem


def _check_transparency(path: str) -> None:
    """Raise :class:`DataError` where a picture has no alpha; one that cannot be opened is met when it is read."""
    try:
        with opened(path) as image:
            transparent = image.mode in WITH_ALPHA or "transparency" in image.info
    except CorruptImage:
        return
    if not transparent:
        raise DataError(f"--data-root: {path} must have transparency, which cuts the object out, got mode {image.mode}")


def _photographs(root: str) -> list[str]:
    if not os.path.isdir(root):
        raise DataError(f"--photographs must be a folder of pictures, got {root!r}")
    found = image_files(Path(root), Path(root))
    if len(found) < len(SPLITS):
        raise DataError(f"--photographs must hold at least {len(SPLITS)} pictures, got {len(found)} in {root}")
    return found


def _shared_out(things: list, rng) -> dict[str, list]:
    """Things by split, at least one each, in an order drawn at random."""
    order = [things[i] for i in rng.permutation(len(things))]
    val, test = (max(1, round(share * len(order))) for share in SHARES)
    return {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}


def _split_groups(objects: list[Object], rng) -> dict[str, list[Object]]:
    parts = _shared_out(sorted({one.group for one in objects}), rng)
    return {split: [one for one in objects if one.group in groups] for split, groups in parts.items()}


def _plans(
    size: int, objects: list[list[Object]], photographs: list[str], distractors: int, tied: bool, rng
) -> list[Plan]:
    """Which object comes on which photograph, with which distractors; ``objects`` are those of each class."""
    classes, rounds, plans = len(objects), [[] for _ in objects], []
    if tied and len(photographs) < classes:
        raise DataError(
            f"--backgrounds class must have a training photograph for each of {classes} classes, got {len(photographs)}"
        )
    for number in range(size):
        label = number % classes
        rounds[label] = rounds[label] or [objects[label][i] for i in rng.permutation(len(objects[label]))]
        theirs = photographs[label::classes] if tied and rng.random() < CORRELATION else photographs
        others = [(label + 1 + int(step)) % classes for step in rng.integers(0, classes - 1, distractors)]
        beside = tuple(objects[other][rng.integers(len(objects[other]))] for other in others)
        plans.append(Plan(number, rounds[label].pop(), theirs[rng.integers(len(theirs))], beside))
    return plans


def _title(plan: Plan, split: str) -> str:
    return f"{split}/{plan.number:04d} {Path(plan.object.path).stem} on {Path(plan.photograph).stem}"
