"""Stanford Cars-196 (Krause et al., 2013): 196 models, one box each, 8144 training and 8041 test images."""

from pathlib import Path

from scipy.io import loadmat

from .images import DataError, Images, Record, folder_of, need

ANNOTATIONS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def load(root: str, split: str) -> Images:
    """``split``: "train" or "test". ``root``: the folder of cars_train, cars_test and devkit, or the one above it."""
    folder = folder_of(root, ["stanford_cars"], "devkit", "Cars-196 (cars_train/, cars_test/, devkit/)")
    meta = loadmat(need(folder / "devkit" / "cars_meta.mat", "the names of the classes"), squeeze_me=True)
    rows = loadmat(_annotations(folder, split), squeeze_me=True)["annotations"]
    images = need(folder / f"cars_{split}", f"the {split} images")
    if "class" not in rows.dtype.names:
        raise DataError(f"--data-root: {ANNOTATIONS[split]} has no labels; take cars_test_annos_withlabels.mat")
    records = [Record(str(images / row["fname"]), int(row["class"]) - 1, (_box(row),)) for row in rows.reshape(-1)]
    return Images(records, [str(name) for name in meta["class_names"].reshape(-1)], has_boxes=True)


def _annotations(folder: Path, split: str) -> Path:
    """The labelled test annotations came as a file of their own, which some keep beside the devkit."""
    beside = folder / ANNOTATIONS[split]
    return beside if beside.is_file() else need(folder / "devkit" / ANNOTATIONS[split], f"the {split} annotations")


def _box(row):
    """The file counts pixels from 1 and includes the last one."""
    left, top, right, bottom = (float(row[f"bbox_{name}"]) for name in ("x1", "y1", "x2", "y2"))
    return left - 1, top - 1, right, bottom
