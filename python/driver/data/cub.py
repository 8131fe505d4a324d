"""CUB-200-2011 (Wah et al., 2011): 200 species of birds, one box each, 5994 training and 5794 test images."""

from .files import Table, box, folder_of, inside, keyed, number, numbers
from .images import Images, Record

SPLITS = {"train": "1", "test": "0"}
COLUMNS = {
    "images": ("id", "path"),  # which may hold spaces
    "classes": ("id", "name"),
    "image_class_labels": ("id", "class"),
    "train_test_split": ("id", "is_training"),
    "bounding_boxes": ("id", "x", "y", "width", "height"),
}


def load(root: str, split: str) -> Images:
    """``split``: "train" or "test". ``root``: CUB_200_2011, or the folder above it."""
    folder = folder_of(root, ["CUB_200_2011"], "images.txt", "CUB-200-2011 (images/, images.txt, bounding_boxes.txt)")
    tables = {name: keyed(folder / f"{name}.txt", names, "a table of CUB-200-2011") for name, names in COLUMNS.items()}
    records = []
    for key, (where, (path,)) in tables["images"].items():
        where_split, (own,) = tables["train_test_split"].of(key, where)
        if number(own, 0, 1, where_split) == int(SPLITS[split]):
            records.append(Record(inside(folder / "images", path, where), *_annotation(tables, key, where)))
    names = [name.partition(".")[2].replace("_", " ") or name for _, (name,) in tables["classes"].values()]
    return Images(records, names, has_boxes=True)


def _annotation(tables: dict[str, Table], key: str, where: str):
    """The label, which the file counts from 1, and the boxes."""
    where_label, (label,) = tables["image_class_labels"].of(key, where)
    where_box, values = tables["bounding_boxes"].of(key, where)
    left, top, width, height = numbers(values, where_box)
    own = box((left, top, left + width, top + height), where_box)
    return number(label, 1, len(tables["classes"]), where_label) - 1, (own,)
