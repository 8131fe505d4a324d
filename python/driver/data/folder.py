"""Any images in folders, one folder a class, and a CSV of boxes if there is one; unlabeled images."""

import csv
from collections import defaultdict
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from .images import Box, DataError, Images, Record, need

COLUMNS = ["path", "left", "top", "right", "bottom"]


def load(root: str, split: str, boxes: str = "") -> Images:
    """``root``/``split``/<class>/<image>; where there is no such split, val stands for test and test for val.

    ``boxes``: a CSV file with the header path,left,top,right,bottom; path relative to ``root``; one row a box.
    """
    folder = _split_folder(Path(root), split)
    classes, numbers = find_classes(str(folder))
    known = read_boxes(Path(boxes), Path(root)) if boxes else {}
    files = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    if not files:
        raise DataError(f"--data-root must hold images in {folder}/<class>/, got none")
    records = [Record(path, label, tuple(known.get(path, ()))) for path, label in files]
    return Images(records, classes, has_boxes=bool(known))


def unlabeled(folder: str) -> Images:
    """All images under a folder, however nested, without labels."""
    if not Path(folder).is_dir():
        raise DataError(f"--unlabeled must be a folder of images, or rest, got {folder!r}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise DataError(f"--unlabeled must hold images, got none under {folder!r}")
    return Images([Record(str(path), -1) for path in files], ())


def read_boxes(path: Path, root: Path) -> dict[str, list[Box]]:
    """The boxes of the CSV by the image's file."""
    if not path.is_file():
        raise DataError(f"--boxes must be a CSV file with the header {','.join(COLUMNS)}, got {str(path)!r}")
    boxes = defaultdict(list)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise DataError(f"--boxes: {path} must have the header {','.join(COLUMNS)}, got {reader.fieldnames}")
        for row in reader:
            boxes[str(root / row["path"])].append(_box(row, f"{path}, line {reader.line_num}"))
    return boxes


def _box(row: dict[str, str], where: str) -> Box:
    try:
        left, top, right, bottom = (float(row[name]) for name in COLUMNS[1:])
    except (TypeError, ValueError):
        raise DataError(f"--boxes: {where}: left, top, right and bottom must be numbers, got {row}") from None
    if not (left < right and top < bottom):
        raise DataError(f"--boxes: {where}: left < right and top < bottom must hold, got {row}")
    return left, top, right, bottom


def _split_folder(root: Path, split: str) -> Path:
    for name in {"train": ["train"], "val": ["val", "test"], "test": ["test", "val"]}[split]:
        if (root / name).is_dir():
            return root / name
    return need(root / split, f"a folder of {split} images, one folder a class,")
