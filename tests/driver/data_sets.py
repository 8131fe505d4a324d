"""Miniatures of the data sets, written in the true layout: text files, .mat, XML, CSV and all."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from scipy.io import savemat

WIDTH, HEIGHT = 96, 72
WNIDS = ("n01440764", "n01443537", "n02123045")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "014.Indigo_Bunting")
PLANES = ("707-320", "A340-200", "Cessna 172")


def save_image(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A smooth random colour picture; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def make_imagenet(root: Path, train: int = 4, val: int = 2, annotations: str = "xml") -> Path:
    """train/<wnid>/*.JPEG, val/<wnid>/*.JPEG; boxes as Kaggle's CSV, or as VOC XML files.

    Box k of a val image of class c: (10 + k, 20, 40 + c, 60), two of them, and one of another class.
    """
    number = 0
    for split, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(WNIDS):
            for _ in range(count):
                number += 1
                stem = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                save_image(root / split / wnid / f"{stem}.JPEG", number)
                if split == "val":
                    other = WNIDS[(label + 1) % len(WNIDS)]
                    boxes = [(wnid, 10, 20, 40 + label, 60), (wnid, 11, 20, 40 + label, 60), (other, 0, 0, 9, 9)]
                    _annotate(root, stem, boxes, annotations)
    return root


def _annotate(root: Path, stem: str, boxes: list[tuple], annotations: str) -> None:
    if annotations == "csv":
        path = root / "LOC_val_solution.csv"
        if not path.exists():
            path.write_text("ImageId,PredictionString\n")
        with path.open("a") as file:
            file.write(f"{stem},{' '.join(' '.join(map(str, box)) for box in boxes)} \n")
        return
    top = ElementTree.Element("annotation")
    ElementTree.SubElement(top, "folder").text = "val"
    ElementTree.SubElement(top, "filename").text = stem  # without the extension, as there
    size = ElementTree.SubElement(top, "size")
    for name, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for name, *corners in boxes:
        item = ElementTree.SubElement(top, "object")
        ElementTree.SubElement(item, "name").text = name
        box = ElementTree.SubElement(item, "bndbox")
        for corner, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(box, corner).text = str(value)
    path = root / "Annotations" / "CLS-LOC" / "val" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(top).write(path)


def make_cub(root: Path, train: int = 4, test: int = 2) -> Path:
    """CUB_200_2011 with three species; image ids and labels from 1; box of image i: x = i, y = 5, 30.5 x 40."""
    folder = root / "CUB_200_2011"
    rows: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    boxes, number = [], 0
    for label, name in enumerate(BIRDS):
        for index in range(train + test):
            number += 1
            path = f"{name}/{name.partition('.')[2]}_{number:04d}_{100 + number}.jpg"
            save_image(folder / "images" / path, number)
            rows["images"].append(f"{number} {path}")
            rows["image_class_labels"].append(f"{number} {label + 1}")
            rows["train_test_split"].append(f"{number} {int(index < train)}")
            boxes.append(f"{number} {number:.1f} 5.0 30.5 40.0")
    rows["classes"] = [f"{label + 1} {name}" for label, name in enumerate(BIRDS)]
    rows["bounding_boxes"] = boxes
    for name, text in rows.items():
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")
    return root


def make_aircraft(root: Path, train: int = 2, val: int = 2, test: int = 2) -> Path:
    """fgvc-aircraft-2013b with three variants, one of them with a space; box of every image: 1 1 80 60."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    boxes, number = [], 34308
    for name in PLANES:
        for split, count in (("train", train), ("val", val), ("test", test)):
            for _ in range(count):
                number += 1
                save_image(folder / "images" / f"{number:07d}.jpg", number)
                splits[split].append(f"{number:07d} {name}")
                boxes.append(f"{number:07d} 1 1 80 60")
    for split, text in {**splits, "trainval": splits["train"] + splits["val"]}.items():
        (folder / f"images_variant_{split}.txt").write_text("\n".join(text) + "\n")
    (folder / "variants.txt").write_text("\n".join(PLANES) + "\n")
    (folder / "images_box.txt").write_text("\n".join(boxes) + "\n")
    return root


def make_cars(root: Path, train: int = 4, test: int = 2, beside: bool = False) -> Path:
    """cars_train, cars_test and devkit with their .mat files; labels from 1; box of every image: 1 6 80 60."""
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "BMW M3 Coupe 2012"], dtype=object)
    devkit = root / "devkit"
    devkit.mkdir(parents=True)
    savemat(devkit / "cars_meta.mat", {"class_names": names[None]})
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, count, name in (
        ("train", train, "cars_train_annos.mat"),
        ("test", test, "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for number in range(3 * count):
            file = f"{number + 1:05d}.jpg"
            save_image(root / f"cars_{split}" / file, number + (1000 if split == "test" else 0))
            rows.append((1, 6, 80, 60, number % 3 + 1, file))
        target = root if beside and split == "test" else devkit
        savemat(target / name, {"annotations": np.array(rows, dtype=fields)[None]})
    return root


def make_flowers(root: Path, images: int = 4) -> Path:
    """jpg/, imagelabels.mat and setid.mat: three species, ``images`` of each a split; labels and ids from 1."""
    count = 9 * images
    for number in range(1, count + 1):
        save_image(root / "jpg" / f"image_{number:05d}.jpg", number)
    numbers = np.arange(1, count + 1)
    savemat(root / "imagelabels.mat", {"labels": ((numbers - 1) % 3 + 1)[None].astype(np.uint8)})
    ids = numbers.reshape(3, -1)
    # The test ids are the first in this file, so that reading the splits in order would be noticed.
    savemat(root / "setid.mat", {"tstid": ids[:1], "trnid": ids[1:2], "valid": ids[2:]})
    return root


def make_unrel(root: Path) -> Path:
    """images/ and annotations.mat, a cell a picture: a dog on a bike; two dogs and a person."""
    for name in ("1.jpg", "2.jpg"):
        save_image(root / "images" / name, int(name[0]))
    dog, bike, other, person = (
        np.array(box) for box in ([11, 1, 40, 50], [1, 21, 90, 70], [50, 2, 60, 9], [2, 2, 9, 9])
    )
    first = _picture("1.jpg", 1, [("dog", dog), ("bike", bike)], [("dog", dog, "bike", bike)])
    second = _picture(
        "2.jpg",
        2,
        [("dog", dog), ("dog", other), ("person", person)],
        [("person", person, "dog", dog), ("dog", other, "person", person)],
    )
    annotations = np.empty((2, 1), dtype=object)
    annotations[:, 0] = [first, second]
    savemat(root / "annotations.mat", {"annotations": annotations})
    return root


def _picture(filename: str, number: int, objects: list[tuple], relations: list[tuple]) -> dict:
    return {
        "filename": filename,
        "im_id": number,
        "objects": _cell([{"category": category, "box": box} for category, box in objects]),
        "relationships": _cell(
            [
                {"sub": subject, "obj": thing, "sub_box": subject_box, "obj_box": box, "rels": _cell(["on"])}
                for subject, subject_box, thing, box in relations
            ]
        ),
    }


def _cell(items: list) -> np.ndarray:
    cell = np.empty((len(items), 1), dtype=object)
    cell[:, 0] = items
    return cell


def make_folder(root: Path, train: int = 4, test: int = 2) -> Path:
    """train/ and val/ with two classes, and boxes.csv: two boxes for the first val cat, one for the others."""
    lines = ["path,left,top,right,bottom"]
    for split, count in (("train", train), ("val", test)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                path = f"{split}/{name}/{index}.png"
                save_image(root / path, 10 * label + index)
                if split == "val":
                    lines.append(f"{path},0,0,40.5,30")
    lines.append("val/cat/0.png,50,40,90,70")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


SHAPES = {  # where a shape is, of coordinates from -1 to 1
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "frame": lambda x, y: (abs(x) > 0.5) | (abs(y) > 0.5),
    "wedge": lambda x, y: (y > x) & (x > -0.9) & (y < 0.9),
}


def make_cutouts(root: Path, groups: int = 4, photographs: int = 7) -> Path:
    """objects/<shape>/: two pictures of one colour a group, RGBA, clear around the shape; photographs/: noise."""
    across, down = np.meshgrid(np.linspace(-1.1, 1.1, 60), np.linspace(-1.1, 1.1, 50))
    for number, (name, inside) in enumerate(SHAPES.items()):
        for group in range(groups):
            colour = np.random.default_rng([number, group]).integers(0, 256, 3)
            for side in ("left", "right"):
                mask = inside(across if side == "left" else -across, down)
                pixels = np.concatenate([np.broadcast_to(colour, (50, 60, 3)), 255 * mask[..., None]], 2)
                path = root / "objects" / name / f"{'abcdefgh'[group]}_{side}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    for number in range(photographs):
        save_image(root / "photographs" / f"{number}.{'jpg' if number % 2 else 'png'}", number)
    return root


# Of every data set that lies in files, by name.
MAKERS = {
    "imagenet": make_imagenet,
    "cub": make_cub,
    "aircraft": make_aircraft,
    "cars": make_cars,
    "flowers": make_flowers,
    "folder": make_folder,
    "cutouts": make_cutouts,
}


def places(name: str, root: Path) -> dict:
    """The settings that say where a miniature lies, and how many images are made of it."""
    if name == "cutouts":
        where = {"data_root": f"{root}/objects", "photographs": f"{root}/photographs"}
        return {"data": name, **where, "train_images": 12, "val_images": 10, "test_images": 10}
    return {"data": name, "data_root": str(root), "boxes": f"{root}/boxes.csv" if name == "folder" else ""}


def flags(name: str, root: Path) -> list[str]:
    """The same for the command line."""
    return [word for key, value in places(name, root).items() for word in (f"--{key.replace('_', '-')}", str(value))]
