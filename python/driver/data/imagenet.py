"""ImageNet-1k (Russakovsky et al., 2015), or any part of it in its layout; boxes from VOC XML or Kaggle's CSV.

``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG`` under the root, or under its Data/CLS-LOC, as Kaggle has them. Boxes
are looked for in ``--boxes``, else in LOC_val_solution.csv and Annotations/CLS-LOC/val at the root; without any the
measures that need a box are left out. They count from 0 and are taken for edges: (xmin, ymin, xmax, ymax).
"""

import csv
from pathlib import Path
from xml.etree import ElementTree

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.models import ResNet18_Weights

from .images import DataError, Images, Record, Sample, as_boxes, folder_of, read_image

CATEGORIES = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # in the order of the sorted wnids
SYNSETS = "LOC_synset_mapping.txt"


def load(root: str, split: str, boxes: str = "") -> Images:
    """``split``: "train" or "val". ``boxes``: a CSV file, or a folder searched for XML files; "" looks at the root."""
    what = "ImageNet (train/<wnid>/*.JPEG, val/<wnid>/*.JPEG)"
    folder = folder_of(root, ["Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"], split, what) / split
    wnids, numbers = find_classes(str(folder))
    files = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    if not files:
        raise DataError(f"--data-root must hold images in {folder}/<wnid>/, got none")
    source = _source(root, boxes) if split == "val" or boxes else None
    classes = _names(root, wnids)
    if source is None:
        return Images([Record(*file) for file in files], classes)
    if source.is_dir():
        annotations = {path.stem: str(path) for path in source.rglob("*.xml")}
        return AnnotatedImages([Record(*file) for file in files], classes, True, wnids=wnids, annotations=annotations)
    known = read_csv(source)
    records = [Record(path, label, tuple(known.get((Path(path).stem, wnids[label]), ()))) for path, label in files]
    return Images(records, classes, has_boxes=True)


class AnnotatedImages(Images):
    """Images whose boxes stand in an XML file each, read with the image: there are 50,000 of them."""

    def __init__(self, records, classes, has_boxes=True, *, wnids=(), annotations=None):
        super().__init__(records, classes, has_boxes)
        self.wnids, self.annotations = wnids, annotations or {}

    def __getitem__(self, index: int) -> Sample:
        """The image with the boxes of all its objects of the labelled class."""
        path, label, _ = self.records[index]
        image = read_image(path)
        # By the file's own name: <filename> lacks the extension, and in some files it is a placeholder.
        annotation = self.annotations.get(Path(path).stem)
        boxes = read_xml(annotation, self.wnids[label], image.size) if annotation and label >= 0 else ()
        return Sample(image, label, as_boxes(boxes), path)

    def subset(self, indices, labelled: bool = True) -> "AnnotatedImages":
        """As :meth:`Images.subset`."""
        records = super().subset(indices, labelled).records
        return AnnotatedImages(records, self.classes, wnids=self.wnids, annotations=self.annotations)


def read_xml(path: str, wnid: str, image_size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """The boxes of a VOC XML file's objects named ``wnid``, scaled to (width, height) if its size is another."""
    try:
        root = ElementTree.parse(path).getroot()
        size = [float(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
        corners = [
            [float(item.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for item in root.iter("object")
            if item.findtext("name") == wnid
        ]
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise DataError(f"--boxes: {path} must be a VOC XML file with size and bndbox: {error}") from error
    across, down = (real / noted if noted > 0 else 1.0 for real, noted in zip(image_size, size, strict=True))
    return [(left * across, top * down, right * across, bottom * down) for left, top, right, bottom in corners]


def read_csv(path: Path) -> dict[tuple[str, str], list[tuple[float, float, float, float]]]:
    """Kaggle's ``ImageId,PredictionString``, the string being ``wnid x1 y1 x2 y2`` repeated; by (ImageId, wnid)."""
    boxes = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
            raise DataError(f"--boxes: {path} must have the header ImageId,PredictionString, got {reader.fieldnames}")
        for row in reader:
            words = row["PredictionString"].split()
            if len(words) % 5:
                raise DataError(f"--boxes: {path}, line {reader.line_num}: fives of wnid x1 y1 x2 y2 are expected")
            for start in range(0, len(words), 5):
                wnid, *corners = words[start : start + 5]
                boxes.setdefault((row["ImageId"], wnid), []).append(tuple(map(float, corners)))
    return boxes


def _source(root: str, boxes: str) -> Path | None:
    """The CSV file or the folder of XML files."""
    if boxes:
        if not Path(boxes).exists():
            raise DataError(f"--boxes must be LOC_val_solution.csv or a folder of VOC XML files, got {boxes!r}")
        return Path(boxes)
    for name in ("LOC_val_solution.csv", "Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val"):
        if Path(root, name).exists():
            return Path(root, name)
    return None


def _names(root: str, wnids: list[str]) -> list[str]:
    """Words for the wnids: from Kaggle's list, else from torchvision if all thousand are there, else the wnids."""
    listed = Path(root, SYNSETS)
    if listed.is_file():
        words = dict(line.split(" ", 1) for line in listed.read_text(encoding="utf-8").splitlines() if " " in line)
        return [words.get(wnid, wnid).partition(",")[0] for wnid in wnids]
    return list(CATEGORIES) if len(wnids) == len(CATEGORIES) else wnids
