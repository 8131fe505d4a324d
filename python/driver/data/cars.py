"""Stanford Cars-196 (Krause et al., 2013): 196 models, one box each, 8144 training and 8041 test images."""

from pathlib import Path

from .files import DataError, box, folder_of, inside, load_mat, need, number, numbers
from .images import Images, Record

ANNOTATIONS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def load(root: str, split: str) -> Images:
    """``split``: "train" or "test". ``root``: the folder of cars_train, cars_test and devkit, or the one above it."""
    folder = folder_of(root, ["stanford_cars"], "devkit", "Cars-196 (cars_train/, cars_test/, devkit/)")
    (names,) = load_mat(folder / "devkit" / "cars_meta.mat", "the names of the classes", "class_names")
    classes = [str(name) for name in names.reshape(-1)]
    path = _annotations(folder, split)
    (rows,) = load_mat(path, f"the {split} annotations", "annotations")
    images = need(folder / f"cars_{split}", f"the {split} images")
    fields = rows.dtype.names or ()
    if "class" not in fields:
        raise DataError(f"--data-root: {ANNOTATIONS[split]} has no labels; take cars_test_annos_withlabels.mat")
    if lacking := sorted({*CORNERS, "fname"} - set(fields)):
        raise DataError(f"{path} must have the fields {', '.join([*CORNERS, 'fname'])}, got none for {lacking[0]}")
    records = []
    for position, row in enumerate(rows.reshape(-1), 1):
        where = f"{path}, annotation {position}"
        label = number(row["class"], 1, len(classes), where) - 1
        left, top, right, bottom = numbers([row[name] for name in CORNERS], where)
        # The file counts pixels from 1 and includes the last one.
        own = box((left - 1, top - 1, right, bottom), where)
        records.append(Record(inside(images, str(row["fname"]), where), label, (own,)))
    return Images(records, classes, has_boxes=True)


def _annotations(folder: Path, split: str) -> Path:
    """The labelled test annotations came as a file of their own, which some keep beside the devkit."""
    beside = folder / ANNOTATIONS[split]
    return beside if beside.is_file() else folder / "devkit" / ANNOTATIONS[split]
