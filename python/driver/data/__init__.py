"""The data sets of the paper, folders of images or cut-out objects, the embedded demo: all as :class:`Images`."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from ..checkpoints import first_difference
from ..models import normalisation
from . import demo
from .files import CorruptImage, DataError, file_key
from .images import Images, Record, Sample, fraction

__all__ = [
    "DATASETS",
    "CorruptImage",
    "Data",
    "DataError",
    "Images",
    "Record",
    "Sample",
    "check_readable",
    "fraction",
    "open_data",
]

DATASETS = ("demo", "imagenet", "cub", "aircraft", "cars", "flowers", "unrel", "folder", "cutouts")

# What is trained on, watched, and reported. Where nothing is set apart for watching, the test images are watched, as in
# the released code: report the last epoch, not the best.
SPLITS = {
    "imagenet": ("train", "val", "val"),
    "cub": ("train", "test", "test"),
    "aircraft": ("trainval", "test", "test"),
    "cars": ("train", "test", "test"),
    "flowers": ("trainval", "test", "test"),
    "folder": ("train", "val", "test"),
}

MADE = ("demo", "cutouts")  # of what a seed draws, as many images as are asked for
WITH_BOXES_FLAG = ("imagenet", "folder")


class Data(NamedTuple):
    """All that a run reads.

    Attributes:
        name: one of :data:`DATASETS`.
        classes: the names of the classes.
        image_size: side of the square the model sees, in pixels.
        train: images to train on; None for unrel, which has none.
        val: images for the curves.
        test: images for the report.
        unlabeled: images without labels (label -1), or None.
        mean, std: per channel, what is subtracted from and what divides the image in [0, 1]; the model decides.
        strict: whether an unreadable image is fatal.
        groups: for unrel, the ImageNet classes that stand for each class; else None.
        notes: what a user should know: boxes that name no image, images without a box, classes without an image.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    train: Images | None
    val: Images
    test: Images
    unlabeled: Images | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    strict: bool = False
    groups: list[list[int]] | None = None
    notes: tuple[str, ...] = ()


def open_data(settings, training: bool = True) -> Data:
    """The data of a run, by its settings alone; nothing but lists of files is read, except for the demo.

    Args:
        settings: has data, data_root, boxes, fraction, unlabeled, strict, seed, image_size, model, pretrained, and for
            the demo and cutouts train_images, val_images, test_images, distractors, backgrounds; for cutouts
            photographs, train_objects.
        training: False leaves ``train`` and ``unlabeled`` None, and does without their files.

    Raises:
        DataError: something is missing or malformed; the message says what is expected where.
    """
    if settings.data not in DATASETS:
        raise DataError(f"--data must be one of {', '.join(DATASETS)}, got {settings.data!r}")
    if settings.data != "demo" and not settings.data_root:
        raise DataError(f"--data {settings.data} must come with --data-root FOLDER, where its images are")
    mean, std = normalisation(settings.model, settings.pretrained)
    train, val, test = _open(settings, training)
    unlabeled = None
    if train is not None:
        train, unlabeled = _limit(train, settings)
    groups = _loader("unrel").groups() if settings.data == "unrel" else None
    size = demo.IMAGE_SIZE if settings.data == "demo" else settings.image_size
    notes = tuple(_box_notes(train, val, test, settings) + ([] if groups else _class_notes(val, test)))
    strict = bool(settings.strict)
    return Data(settings.data, test.classes, size, train, val, test, unlabeled, mean, std, strict, groups, notes)


def check_readable(data: Data) -> None:
    """Raise DataError where not one image of a split can be read; CorruptImage for the first, if ``data.strict``."""
    splits = {"training": data.train, "val": data.val, "test": data.test, "unlabeled": data.unlabeled}
    for name, images in splits.items():
        if images is not None and (problem := _first_problem(images, data.strict)):
            raise DataError(
                f"--data-root must hold {name} images that can be read, got none of {len(images)}: {problem}"
            )


def _first_problem(images: Images, strict: bool) -> str:
    """Why the first image cannot be read, "" where any can."""
    first = "there are none"
    for index in range(len(images)):
        try:
            images[index]
        except CorruptImage as error:
            if strict:
                raise
            first = str(error) if index == 0 else first
        else:
            return ""
    return first


def _box_notes(train: Images | None, val: Images, test: Images, settings) -> list[str]:
    """What of a file of boxes names no image, and the other way round; raises DataError where nothing fits."""
    table = test.table
    if table is None:
        return [f"{settings.data_root}: no boxes are there, nor --boxes"] if settings.data == "imagenet" else []
    splits = {"training": train, "val": val, "test": test}
    opened = [images.table for images in splits.values() if images is not None and images.table is not None]
    unused = [
        (key, where)
        for key, where in table.unused().items()
        if all(key in other.unused() for other in opened) and not _is_there(settings.data_root, key)
    ]
    if not val.boxed() and not test.boxed():
        first = f"; the first is {unused[0][1]}: {unused[0][0]!r}" if unused else ""
        example = file_key(test.records[0].path, settings.data_root)
        raise DataError(
            f"--boxes: {table.path} must name images of {settings.data_root}, such as {example!r}, got none of "
            f"val or test{first}"
        )
    notes = [
        f"{table.path}: {len(images) - images.boxed()} of {len(images)} {name} images have no box"
        for name, images in _looked_at(val, test)
        if images.boxed() < len(images)
    ]
    if unused:
        key, where = unused[0]
        notes.append(f"{table.path}: {len(unused)} images named there are not here, the first is {where}: {key!r}")
    return notes


def _is_there(root: str, key: str) -> bool:
    """Whether a file of boxes names an image of a split that is not opened."""
    below = not key.startswith(("/", ".."))
    return below and any(Path(root, normalize(form, key)).is_file() for form in ("NFC", "NFD"))


def _looked_at(val: Images, test: Images) -> list[tuple[str, Images]]:
    """The splits that are measured, by name; one where the one stands for the other."""
    return [("test", test)] if val.records == test.records else [("val", val), ("test", test)]


def _class_notes(val: Images, test: Images) -> list[str]:
    """The classes without an image."""
    notes = []
    for name, images in _looked_at(val, test):
        present = set(images.labels.tolist())
        absent = [own for number, own in enumerate(images.classes) if number not in present]
        if absent and present:
            notes.append(
                f"{len(absent)} of {len(images.classes)} classes have no {name} image, the first is {absent[0]}"
            )
    return notes


def _limit(train: Images, settings) -> tuple[Images, Images | None]:
    """The labelled part of the training images, and the unlabeled images beside it."""
    chosen = fraction(train, settings.fraction, settings.seed) if settings.fraction < 1 else range(len(train))
    rest = sorted(set(range(len(train))) - set(chosen))
    unlabeled = None
    if settings.unlabeled == "rest":
        if not rest:
            raise DataError("--unlabeled rest must come with a --fraction below 1, which leaves some images out")
        unlabeled = train.subset(rest, labelled=False)
    elif settings.unlabeled:
        unlabeled = _loader("folder").unlabeled(settings.unlabeled)
    return (train.subset(chosen) if rest else train), unlabeled


def _open(settings, training: bool) -> tuple[Images | None, Images, Images]:
    name, root, boxes = settings.data, settings.data_root, settings.boxes
    if boxes and name not in WITH_BOXES_FLAG:
        raise DataError(f"--boxes goes with --data imagenet or folder, got it with {name}, whose boxes are its own")
    if name in MADE:
        return _made(settings, training)
    if name == "unrel":
        images = _loader(name).load(root)
        return None, images, images
    more = (boxes,) if name in WITH_BOXES_FLAG else ()
    needed = SPLITS[name] if training else SPLITS[name][1:]
    opened = {split: _loader(name).load(root, split, *more) for split in dict.fromkeys(needed)}
    for split, images in opened.items():
        if not len(images):
            raise DataError(f"--data-root: {root} must have {split} images, got none in its lists")
    train, val, test = (opened.get(split) for split in SPLITS[name])
    if not training:
        return None, val, test
    for other in (val, test):
        if difference := first_difference(train.classes, other.classes, "the training images"):
            raise DataError(
                f"--data-root must have the classes of training in every split, got others in {root}: {difference}"
            )
    return train, val, test


def _made(settings, training: bool) -> tuple[Images | None, Images, Images]:
    """The splits of a data set whose images are made by the seed."""
    sizes = {"train": settings.train_images, "val": settings.val_images, "test": settings.test_images}
    how = {"distractors": settings.distractors, "backgrounds": settings.backgrounds}
    if settings.data == "demo":
        made = demo.make_splits(sizes, settings.seed, **how)
        splits = {split: demo.DemoImages(made[split], split) for split in sizes}
    else:
        how |= {"image_size": settings.image_size, "train_objects": settings.train_objects}
        folders = settings.data_root, settings.photographs
        splits = _loader(settings.data).make_splits(*folders, sizes, settings.seed, **how)
    return (splits["train"] if training else None), splits["val"], splits["test"]


def _loader(name: str):
    """The module of a data set, imported when it is needed: most of them bring torchvision, which takes seconds."""
    return import_module(f".{name}", __package__)
