"""Any images in folders, one folder a class, and a CSV of boxes if there is one; unlabeled images."""

from pathlib import Path

from .files import BoxTable, DataError, box, class_names, csv_rows, file_key, image_files, need
from .images import Images, Record

COLUMNS = ["path", "left", "top", "right", "bottom"]
SPLITS = {"train": ["train"], "val": ["val", "test"], "test": ["test", "val"]}  # the first that is there


def load(root: str, split: str, boxes: str = "") -> Images:
    """``root``/``split``/<class>/<image>; where there is no such split, val stands for test and test for val.

    ``boxes``: a CSV file with the header path,left,top,right,bottom; path relative to ``root``; one row a box.
    """
    folder = _split_folder(Path(root), split)
    classes = known_classes(Path(root), ("train", "val", "test"))
    table = read_boxes(Path(boxes), Path(root)) if boxes else None
    records = [
        Record(path, label, table.of(file_key(path, root)) if table else ())
        for path, label in labelled_files(folder, classes)
    ]
    return Images(records, classes, has_boxes=bool(table), table=table, upright=True)


def known_classes(root: Path, splits: tuple[str, ...]) -> list[str]:
    """The classes of all splits that are there; raises :class:`DataError` where one is not among those of train."""
    found = {split: class_names(root / split) for split in splits if (root / split).is_dir()}
    train = found.get("train")
    for split, names in found.items():
        if train and (strange := [name for name in names if name not in train]):
            raise DataError(
                f"--data-root: {root / split / strange[0]} must be a class of {root / 'train'}, got none there"
            )
    return sorted(set().union(*found.values()))


def labelled_files(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """The images of a split with the numbers of their classes; raises :class:`DataError` where there are none."""
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in image_files(folder / name, folder)
    ]
    if not files:
        raise DataError(f"--data-root must hold images in {folder}/<class>/, got none")
    return files


def unlabeled(folder: str) -> Images:
    """All images under a folder, however nested, without labels."""
    if not Path(folder).is_dir():
        raise DataError(f"--unlabeled must be a folder of images, or rest, got {folder!r}")
    files = image_files(Path(folder), Path(folder))
    if not files:
        raise DataError(f"--unlabeled must hold images, got none under {folder!r}")
    return Images([Record(path, -1) for path in files], (), upright=True)


def read_boxes(path: Path, root: Path) -> BoxTable:
    """The boxes of the CSV by the image's file."""
    what = f"a CSV file with the header {','.join(COLUMNS)}"
    if not path.is_file():
        raise DataError(f"--boxes must be {what}, got {str(path)!r}")
    table = BoxTable(path)
    for where, row in csv_rows(path, COLUMNS, what):
        table.add(file_key(row["path"], root), box([row[name] for name in COLUMNS[1:]], where), where)
    return table


def _split_folder(root: Path, split: str) -> Path:
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    return need(root / split, f"a folder of {split} images, one folder a class,")
