"""UnRel (Peyre et al., ICCV 2017): unusual relations, such as a dog on a bicycle, for ImageNet classifiers; test only.

The categories are those of the UnRel annotations. Which ImageNet classes stand for a category is not published with the
CGC paper: :data:`MAPPING` is OURS, made from the names alone, so results on UnRel compare with each other and not with
the paper's. A sample is an image and one of its categories that have a mapping, with all boxes of that category.
"""

from collections import defaultdict

from .files import Box, DataError, box, folder_of, inside, load_mat, numbers
from .imagenet import CATEGORIES
from .images import Images, Record

# Ranges are first and last ImageNet name, in ImageNet's order.
MAPPING: dict[str, tuple[str | tuple[str, str], ...]] = {
    "backpack": ("backpack",),
    "bag": ("mailbag", "plastic bag", "purse"),
    "ball": ("basketball", "croquet ball", "golf ball", "rugby ball", "soccer ball", "tennis ball", "volleyball"),
    "basket": ("hamper", "shopping basket"),
    "bear": (("brown bear", "sloth bear"),),
    "bed": ("four-poster", "studio couch"),
    "bench": ("park bench",),
    "bike": ("bicycle-built-for-two", "mountain bike"),
    "boat": ("canoe", "catamaran", "fireboat", "gondola", "lifeboat", "schooner", "speedboat", "trimaran", "yawl"),
    "bottle": ("beer bottle", "pop bottle", "water bottle", "wine bottle"),
    "bowl": ("mixing bowl", "soup bowl"),
    "bus": ("minibus", "school bus", "trolleybus"),
    "camera": ("Polaroid camera", "reflex camera"),
    "car": (
        "ambulance",
        "beach wagon",
        "cab",
        "convertible",
        "jeep",
        "limousine",
        "minivan",
        "Model T",
        "racer",
        "sports car",
    ),
    "cart": ("horse cart", "oxcart", "shopping cart"),
    "cat": (("tabby", "Egyptian cat"),),
    "chair": ("barber chair", "folding chair", "rocking chair"),
    "clock": ("analog clock", "digital clock", "wall clock"),
    "couch": ("studio couch",),
    "cow": ("ox",),
    "cup": ("coffee mug", "cup"),
    "dog": (("Chihuahua", "Mexican hairless"),),
    "elephant": (("Indian elephant", "African elephant"),),
    "hat": ("bonnet", "cowboy hat", "sombrero"),
    "helmet": ("crash helmet", "football helmet"),
    "horse": ("sorrel",),
    "keyboard": ("computer keyboard", "typewriter keyboard"),
    "lamp": ("table lamp",),
    "laptop": ("laptop", "notebook"),
    "monitor": ("monitor", "screen"),
    "motorcycle": ("moped", "motor scooter"),
    "mouse": ("mouse",),
    "phone": ("cellular telephone", "dial telephone", "pay-phone"),
    "pillow": ("pillow",),
    "pizza": ("pizza",),
    "plane": ("airliner", "warplane"),
    "plate": ("plate",),
    "pot": ("pot",),
    "printer": ("printer",),
    "refrigerator": ("refrigerator",),
    "sheep": ("ram", "bighorn"),
    "shoe": ("Loafer", "running shoe"),
    "skis": ("ski",),
    "sofa": ("studio couch",),
    "stove": ("stove",),
    "sunglasses": ("sunglass", "sunglasses"),
    "table": ("desk", "dining table"),
    "tie": ("bolo tie", "bow tie", "Windsor tie"),
    "traffic light": ("traffic light",),
    "train": ("bullet train", "electric locomotive", "passenger car", "steam locomotive", "streetcar"),
    "trash can": ("ashcan",),
    "truck": ("fire engine", "garbage truck", "moving van", "pickup", "tow truck", "trailer truck"),
    "umbrella": ("umbrella",),
    "vase": ("vase",),
    "zebra": ("zebra",),
}


def load(root: str) -> Images:
    """``root``: the folder of images/ and annotations.mat, or the one above it. Classes: the categories of MAPPING."""
    folder = folder_of(root, ["UnRel", "unrel", "unrel-dataset"], "annotations.mat", "UnRel (images/, annotations.mat)")
    source = folder / "annotations.mat"
    (entries,) = load_mat(source, "the annotations", "annotations", simplify_cells=True)
    labels = {category: number for number, category in enumerate(MAPPING)}
    records = []
    for position, entry in enumerate(_each(entries), 1):
        where = f"{source}, picture {position}"
        try:
            path, objects = inside(folder / "images", entry["filename"], where), _objects(entry, where)
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: filename, objects with category and box are expected: {error!r}") from error
        for category, boxes in sorted(objects.items()):
            if category in labels:
                records.append(Record(path, labels[category], tuple(boxes)))
    return Images(records, tuple(MAPPING), has_boxes=True)


def groups() -> list[list[int]]:
    """The ImageNet classes that stand for each category, as indices in ImageNet's order.

    Example:
        >>> groups()[list(MAPPING).index("zebra")]
        [340]
    """
    found = []
    for names in MAPPING.values():
        own: set[int] = set()
        for name in names:
            first, last = (name, name) if isinstance(name, str) else name
            own.update(range(CATEGORIES.index(first), CATEGORIES.index(last) + 1))
        found.append(sorted(own))
    return found


def _objects(entry: dict, where: str) -> dict[str, list[Box]]:
    """The boxes of an image by category: of its objects and of its relations' two sides, each once."""
    found = defaultdict(dict)
    relations = _each(entry.get("relationships", ()))
    pairs = [(item["category"], item["box"]) for item in _each(entry.get("objects", ()))]
    pairs += [(relation[side], relation[f"{side}_box"]) for relation in relations for side in ("sub", "obj")]
    for category, corners in pairs:
        left, top, right, bottom = numbers(corners, where)
        # The file counts pixels from 1 and includes the last one.
        found[str(category).replace("_", " ")][box((left - 1, top - 1, right, bottom), where)] = True
    return {category: list(boxes) for category, boxes in found.items()}


def _each(cell) -> list:
    """The items of a MATLAB cell; a cell of one arrives as the item itself."""
    return [cell] if isinstance(cell, dict) else list(cell)
