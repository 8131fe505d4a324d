"""Oxford Flowers-102 (Nilsback and Zisserman, 2008): 102 species, no boxes; 1020 train, 1020 val, 6149 test images."""

from torchvision.datasets import Flowers102

from .files import folder_of, load_mat, number
from .images import Images, Record

IDS = {"train": ("trnid",), "val": ("valid",), "trainval": ("trnid", "valid"), "test": ("tstid",)}


def load(root: str, split: str) -> Images:
    """``split``: "train", "val", "trainval" or "test". ``root``: the folder of jpg/, or the one above it."""
    what = "Flowers-102 (jpg/, imagelabels.mat, setid.mat)"
    folder = folder_of(root, ["flowers-102"], "imagelabels.mat", what)
    # Not torchvision's class: it demands the checksums of the archives beside the images.
    (labels,) = load_mat(folder / "imagelabels.mat", "the labels", "labels")
    ids = load_mat(folder / "setid.mat", "the official splits", *IDS[split])
    labels, classes = labels.reshape(-1), Flowers102.classes
    records = []
    for own in (entry for part in ids for entry in part.reshape(-1)):
        # Images and labels are numbered from 1.
        image = number(own, 1, len(labels), str(folder / "setid.mat"))
        label = number(labels[image - 1], 1, len(classes), f"{folder / 'imagelabels.mat'}, image {image}") - 1
        records.append(Record(str(folder / "jpg" / f"image_{image:05d}.jpg"), label))
    return Images(records, classes)
