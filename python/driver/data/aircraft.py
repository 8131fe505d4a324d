"""FGVC-Aircraft (Maji et al., 2013): 100 variants, one box each; 3334 train, 3333 val, 3333 test images."""

from .files import DataError, box, folder_of, inside, keyed, numbers, read_text
from .images import Images, Record


def load(root: str, split: str) -> Images:
    """``split``: "train", "val", "trainval" or "test". ``root``: fgvc-aircraft-2013b, or the folder above it."""
    what = "FGVC-Aircraft (data/images, data/variants.txt, data/images_box.txt)"
    folder = folder_of(root, ["fgvc-aircraft-2013b"], "data/variants.txt", what) / "data"
    text = read_text(folder / "variants.txt", "the list of variants")
    variants = [line.strip() for line in text.splitlines() if line.strip()]
    label = {name: index for index, name in enumerate(variants)}
    boxes = keyed(folder / "images_box.txt", ("id", "left", "top", "right", "bottom"), "the list of boxes")
    records = []
    # "1025794 Boeing 707-320": the name of a variant may hold spaces.
    chosen = keyed(folder / f"images_variant_{split}.txt", ("id", "variant"), f"the {split} split")
    for key, (where, (name,)) in chosen.items():
        if name not in label:
            raise DataError(f"{where}: the variant must be one of {folder / 'variants.txt'}, got {name!r}")
        where_box, corners = boxes.of(key, where)
        left, top, right, bottom = numbers(corners, where_box)
        # The file counts pixels from 1 and includes the last one.
        own = box((left - 1, top - 1, right, bottom), where_box)
        records.append(Record(inside(folder / "images", f"{key}.jpg", where), label[name], (own,)))
    return Images(records, variants, has_boxes=True)
