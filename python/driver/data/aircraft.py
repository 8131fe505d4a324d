"""FGVC-Aircraft (Maji et al., 2013): 100 variants, one box each; 3334 train, 3333 val, 3333 test images."""

from .images import Images, Record, folder_of, lines


def load(root: str, split: str) -> Images:
    """``split``: "train", "val", "trainval" or "test". ``root``: fgvc-aircraft-2013b, or the folder above it."""
    what = "FGVC-Aircraft (data/images, data/variants.txt, data/images_box.txt)"
    folder = folder_of(root, ["fgvc-aircraft-2013b"], "data/variants.txt", what) / "data"
    variants = lines(folder / "variants.txt", "the list of variants")
    label = {name: index for index, name in enumerate(variants)}
    boxes = dict(map(_box, lines(folder / "images_box.txt", "the list of boxes")))
    # "1025794 Boeing 707-320": the name of a variant may hold spaces.
    rows = [line.split(" ", 1) for line in lines(folder / f"images_variant_{split}.txt", f"the {split} split")]
    records = [Record(str(folder / "images" / f"{key}.jpg"), label[name.strip()], (boxes[key],)) for key, name in rows]
    return Images(records, variants, has_boxes=True)


def _box(line: str):
    """The file counts pixels from 1 and includes the last one."""
    key, *corners = line.split()
    left, top, right, bottom = map(float, corners)
    return key, (left - 1, top - 1, right, bottom)
