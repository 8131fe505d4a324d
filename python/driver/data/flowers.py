"""Oxford Flowers-102 (Nilsback and Zisserman, 2008): 102 species, no boxes; 1020 train, 1020 val, 6149 test images."""

from scipy.io import loadmat
from torchvision.datasets import Flowers102

from .images import Images, Record, folder_of, need

IDS = {"train": ("trnid",), "val": ("valid",), "trainval": ("trnid", "valid"), "test": ("tstid",)}


def load(root: str, split: str) -> Images:
    """``split``: "train", "val", "trainval" or "test". ``root``: the folder of jpg/, or the one above it."""
    what = "Flowers-102 (jpg/, imagelabels.mat, setid.mat)"
    folder = folder_of(root, ["flowers-102"], "imagelabels.mat", what)
    # Not torchvision's class: it demands the checksums of the archives beside the images.
    labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"].reshape(-1)
    ids = loadmat(need(folder / "setid.mat", "the official splits"), squeeze_me=True)
    chosen = [int(number) for name in IDS[split] for number in ids[name].reshape(-1)]
    # Images and labels are numbered from 1.
    records = [
        Record(str(folder / "jpg" / f"image_{number:05d}.jpg"), int(labels[number - 1]) - 1) for number in chosen
    ]
    return Images(records, Flowers102.classes)
