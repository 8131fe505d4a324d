"""CUB-200-2011 (Wah et al., 2011): 200 species of birds, one box each, 5994 training and 5794 test images."""

from .images import Images, Record, folder_of, lines

SPLITS = {"train": "1", "test": "0"}


def load(root: str, split: str) -> Images:
    """``split``: "train" or "test". ``root``: CUB_200_2011, or the folder above it."""
    folder = folder_of(root, ["CUB_200_2011"], "images.txt", "CUB-200-2011 (images/, images.txt, bounding_boxes.txt)")
    table = {name: _table(folder / f"{name}.txt") for name in ("classes", "image_class_labels", "train_test_split")}
    boxes = {key: _box(values) for key, values in _table(folder / "bounding_boxes.txt").items()}
    # The file numbers images and classes from 1.
    records = [
        Record(str(folder / "images" / path), int(table["image_class_labels"][key][0]) - 1, (boxes[key],))
        for key, (path,) in _table(folder / "images.txt").items()
        if table["train_test_split"][key][0] == SPLITS[split]
    ]
    names = [name.partition(".")[2].replace("_", " ") or name for (name,) in table["classes"].values()]
    return Images(records, names, has_boxes=True)


def _table(path) -> dict[str, list[str]]:
    """The rows of a text file by their first word."""
    rows = (line.split() for line in lines(path, "a table of CUB-200-2011"))
    return {row[0]: row[1:] for row in rows}


def _box(values: list[str]):
    left, top, width, height = map(float, values)
    return left, top, left + width, top + height
