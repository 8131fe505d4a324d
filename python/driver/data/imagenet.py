"""ImageNet-1k (Russakovsky et al., 2015), or any part of it in its layout; boxes from VOC XML or Kaggle's CSV.

``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG`` under the root, or under its Data/CLS-LOC, as Kaggle has them, whose
val/ is flat: its labels are then those of LOC_val_solution.csv. Boxes are looked for in ``--boxes``, else in
LOC_val_solution.csv and Annotations/CLS-LOC/val at the root; without any the measures that need a box are left out.
They count from 0 and are taken for edges: (xmin, ymin, xmax, ymax).
"""

from pathlib import Path
from xml.etree import ElementTree

from torchvision.models import ResNet18_Weights

from .files import Box, BoxTable, CorruptImage, DataError, box, csv_rows, folder_of, numbers, own_images, read_text
from .folder import known_classes, labelled_files
from .images import Images, Record, Sample, as_boxes, read_boxed

CATEGORIES = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # in the order of the sorted wnids
SYNSETS = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"
ANNOTATIONS = ("Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val")


def load(root: str, split: str, boxes: str = "") -> Images:
    """``split``: "train" or "val". ``boxes``: a CSV file, or a folder searched for XML files; "" looks at the root."""
    what = "ImageNet (train/<wnid>/*.JPEG, val/<wnid>/*.JPEG)"
    folder = folder_of(root, ["Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"], split, what)
    source = _source(root, boxes) if split == "val" or boxes else None
    wnids, words = known_classes(folder, ("train", "val")), _words(root)
    flat = own_images(folder / split)
    if flat:
        if source is None or source.is_dir():
            source = _solution(root, folder / split)
        table, labels = read_csv(source)
        wnids = wnids or sorted(words) or sorted({wnid for _, wnid in labels.values()})
        files = [(path, _label(path, labels, wnids, source)) for path in flat]
    else:
        files = labelled_files(folder / split, wnids)
        table = read_csv(source)[0] if source and not source.is_dir() else None
    classes = list(CATEGORIES) if len(wnids) == len(CATEGORIES) else [words.get(wnid, wnid) for wnid in wnids]
    if source is None:
        return Images([Record(*file) for file in files], classes)
    if table is None:
        annotations = {path.stem: str(path) for path in source.rglob("*.xml")}
        records = [Record(*file) for file in files]
        table = BoxTable(source)
        return AnnotatedImages(records, classes, True, table=table, wnids=wnids, annotations=annotations)
    records = [Record(path, label, _boxes_of(table, Path(path).stem, wnids[label])) for path, label in files]
    return Images(records, classes, has_boxes=True, table=table)


class AnnotatedImages(Images):
    """Images whose boxes stand in an XML file each, read with the image: there are 50,000 of them."""

    def __init__(self, *args, wnids=(), annotations=None, **more):
        super().__init__(*args, **more)
        self.wnids, self.annotations = wnids, annotations or {}

    def __getitem__(self, index: int) -> Sample:
        """The image with the boxes of all its objects of the labelled class."""
        path, label, _ = self.records[index]
        image, _ = read_boxed(path, (), self.upright)
        # By the file's own name: <filename> lacks the extension, and in some files it is a placeholder.
        annotation = self.annotations.get(Path(path).stem)
        try:
            boxes = read_xml(annotation, self.wnids[label], image.size) if annotation and label >= 0 else ()
        except DataError as error:
            raise CorruptImage(path, f"its boxes, {error}") from error
        return Sample(image, label, as_boxes(boxes), path)

    def boxed(self) -> int:
        """How many images have an XML file."""
        return sum(Path(record.path).stem in self.annotations for record in self.records)

    def subset(self, indices, labelled: bool = True) -> "AnnotatedImages":
        """As :meth:`Images.subset`."""
        records = super().subset(indices, labelled).records
        more = {"table": self.table, "wnids": self.wnids, "annotations": self.annotations}
        return AnnotatedImages(records, self.classes, self.has_boxes, **more)


class _Boxes(ElementTree.TreeBuilder):
    """Builds a tree of elements alone; what declares entities, which can be other files or grow huge, is refused."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """What the parser calls where a document type begins."""
        raise ElementTree.ParseError("it must not declare a document type")


def read_xml(path: str, wnid: str, image_size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """The boxes of a VOC XML file's objects named ``wnid``, scaled to (width, height) if its size is another."""
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_Boxes())).getroot()
        size = [float(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
        corners = [
            [item.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
            for item in root.iter("object")
            if item.findtext("name") == wnid
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:  # a ParseError says in which line
        raise DataError(f"{path} must be a VOC XML file with size and bndbox: {error}") from error
    across, down = (real / noted if noted > 0 else 1.0 for real, noted in zip(image_size, size, strict=True))
    boxes = [box(numbers(own, path), path, thin=True) for own in corners]
    return [(left * across, top * down, right * across, bottom * down) for left, top, right, bottom in boxes]


def read_csv(path: Path) -> tuple[BoxTable, dict[str, tuple[str, str]]]:
    """Kaggle's ``ImageId,PredictionString``, the string being ``wnid x1 y1 x2 y2`` repeated.

    Returns by ImageId the boxes, each with its wnid, and the line and the wnid of the first box, which is the label.
    """
    table, labels = BoxTable(path), {}
    for where, row in csv_rows(path, ("ImageId", "PredictionString"), "LOC_val_solution.csv"):
        words = row["PredictionString"].split()
        if not words or len(words) % 5:
            raise DataError(f"{where}: fives of wnid x1 y1 x2 y2 are expected, got {row['PredictionString']!r}")
        labels[row["ImageId"]] = where, words[0]
        for start in range(0, len(words), 5):
            wnid, *corners = words[start : start + 5]
            table.add(row["ImageId"], (wnid, box(corners, where, thin=True)), where)
    return table, labels


def _boxes_of(table: BoxTable, stem: str, wnid: str) -> tuple[Box, ...]:
    """The boxes of an image's labelled class."""
    return tuple(own for name, own in table.of(stem) if name == wnid)


def _label(path: str, labels: dict[str, tuple[str, str]], wnids: list[str], source: Path) -> int:
    """The label of an image in a flat folder."""
    if Path(path).stem not in labels:
        raise DataError(f"{source} lacks a line for {Path(path).stem}, whose image is {path}")
    where, wnid = labels[Path(path).stem]
    if wnid not in wnids:
        raise DataError(f"{where}: {wnid} must be one of the {len(wnids)} classes, got none of that name")
    return wnids.index(wnid)


def _solution(root: str, folder: Path) -> Path:
    """The file that has the labels of a flat folder."""
    if not Path(root, SOLUTION).is_file():
        raise DataError(
            f"--data-root must hold {folder}/<wnid>/*.JPEG, or the labels in {Path(root, SOLUTION)}, got neither"
        )
    return Path(root, SOLUTION)


def _source(root: str, boxes: str) -> Path | None:
    """The CSV file or the folder of XML files."""
    if boxes:
        if not Path(boxes).exists():
            raise DataError(f"--boxes must be LOC_val_solution.csv or a folder of VOC XML files, got {boxes!r}")
        return Path(boxes)
    return next((Path(root, name) for name in (SOLUTION, *ANNOTATIONS) if Path(root, name).exists()), None)


def _words(root: str) -> dict[str, str]:
    """The first word for each wnid, from Kaggle's list where it is there."""
    if not Path(root, SYNSETS).is_file():
        return {}
    text = read_text(Path(root, SYNSETS), "words for the wnids")
    pairs = (line.split(" ", 1) for line in text.splitlines() if " " in line)
    return {wnid: words.partition(",")[0].strip() for wnid, words in pairs}
