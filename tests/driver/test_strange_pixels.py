"""Images as people have them: 16 bits, unknown ranges, and pixels that are stored turned."""

from pathlib import Path

import numpy as np
import pytest
from driver.data import CorruptImage, cub, folder
from driver.data.images import read_image
from driver.views import original_view
from PIL import Image, ImageOps

from tests.driver import data_sets
from tests.driver.cases import opened


def gradient(kind, top):
    return np.linspace(0, top, 64, dtype=np.float64).reshape(8, 8).astype(kind)


EIGHT = np.array(Image.fromarray(gradient(np.uint8, 255)).convert("RGB"))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big-endian.tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    pixels = gradient(np.uint16, 65535)
    if name.startswith("big"):
        Image.frombytes("I;16B", (8, 8), pixels.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    image = np.array(read_image(str(tmp_path / name)))
    assert np.abs(image.astype(int) - EIGHT).max() <= 1
    assert image.max() == 255


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, kind):
    Image.fromarray(gradient(kind, 1000)).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImage, match=r"a.tif: its pixels are of mode [FI], whose range is unknown"):
        read_image(str(tmp_path / "a.tif"))


def rotated_folder(root: Path, orientation: int) -> Path:
    """A folder of JPEG files with a bright box that is stored turned, and its place in the stored pixels."""
    data_sets.make_folder(root)
    pixels = np.zeros((72, 96, 3), dtype=np.uint8)
    pixels[10:30, 20:70] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(root / "val" / "cat" / "turned.jpg", exif=exif, quality=95)
    with (root / "boxes.csv").open("a") as file:
        file.write("val/cat/turned.jpg,20,10,70,30\n")
    return root


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_boxes_included(tmp_path, orientation):
    root = rotated_folder(tmp_path, orientation)
    images = opened(root, boxes=str(root / "boxes.csv")).test
    (sample,) = (images[i] for i, record in enumerate(images.records) if record.path.endswith("turned.jpg"))
    with Image.open(sample.path) as stored:
        expected = ImageOps.exif_transpose(stored.convert("RGB"))
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    assert expected.size in ((96, 72), (72, 96))
    assert np.array_equal(np.array(sample.image), np.array(upright))
    ((left, top, right, bottom),) = sample.boxes.int().tolist()
    bright = np.array(sample.image)[..., 0] > 127
    assert bright[top:bottom, left:right].mean() > 0.95
    assert bright.sum() == pytest.approx((right - left) * (bottom - top), rel=0.05)
    assert np.array_equal(np.array(read_image(sample.path)), np.array(upright))  # as explain.py reads it


def test_boxes_of_published_data_sets_are_of_the_stored_pixels(tmp_path):
    """There the orientation is not followed, as it was not by those who drew them."""
    root = data_sets.make_cub(tmp_path)
    images = cub.load(str(root), "test")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images.records[0].path) as image:
        image.convert("RGB").save(images.records[0].path, exif=exif)
    assert images[0].image.size == (96, 72)


def test_unlabeled_images_are_upright(tmp_path):
    path = rotated_folder(tmp_path, 6) / "val" / "cat" / "turned.jpg"
    images = folder.unlabeled(str(path.parent))
    (sample,) = (images[i] for i, record in enumerate(images.records) if record.path == str(path))
    assert original_view(sample.image, 32).size == (32, 32)
    assert sample.image.size == (72, 96)
