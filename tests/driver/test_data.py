"""The driver's data and views: the splits are disjoint, the boxes are right, the seed decides, the crops are exact."""

import math
import random

import pytest
import torch
from driver.data.demo import BACKGROUND_SIZES, DIGIT_SIZES, IMAGE_SIZE, make_splits
from driver.views import SCALE, drawn, random_crops
from torch.nn.functional import interpolate

from cgc_kernels import CropFlip, RandomCropFlip

RATIO = RandomCropFlip(IMAGE_SIZE).ratio
SIZES = {"train": 300, "val": 150, "test": 150}


@pytest.fixture(scope="module")
def splits():
    return make_splits(SIZES, seed=3)


def overlaps(regions, others):
    """Which of regions [N, 5] overlap which of others [M, 5]: bool [N, M]."""
    a, b = regions[:, None], others[None]
    across = torch.maximum(a[..., 1], b[..., 1]) < torch.minimum(a[..., 3], b[..., 3])
    down = torch.maximum(a[..., 2], b[..., 2]) < torch.minimum(a[..., 4], b[..., 4])
    return (a[..., 0] == b[..., 0]) & across & down


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_splits_share_no_digit_and_no_photograph_region(splits, first, second):
    assert not set(splits[first].digits.tolist()) & set(splits[second].digits.tolist())
    assert not overlaps(splits[first].regions, splits[second].regions).any()


def test_regions_overlap_within_a_split(splits):
    """So the check above can fail."""
    regions = splits["train"].regions
    assert overlaps(regions, regions).sum() > len(regions)


@pytest.mark.parametrize("split", SIZES)
def test_images_and_boxes_are_in_range(splits, split):
    images, labels, boxes, digits, regions = splits[split]
    assert images.shape == (SIZES[split], 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(labels.tolist()) == set(range(10))
    assert digits.shape == labels.shape
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert longer.min() >= DIGIT_SIZES[0]
    assert longer.max() <= DIGIT_SIZES[1]
    assert boxes.min() >= 0
    assert boxes.max() <= IMAGE_SIZE
    sides = regions[:, 3] - regions[:, 1]
    assert (sides == regions[:, 4] - regions[:, 2]).all()
    assert sides.min() >= BACKGROUND_SIZES[0]


def test_digits_change_their_box_and_touch_its_four_sides(splits, monkeypatch):
    """The same random draws without the paste give the backgrounds; they differ inside the boxes only."""
    import driver.data.demo as data

    paste = data._paste

    def without_paste(image, digit, rng):
        _, box = paste(image, digit, rng)
        return image, box

    monkeypatch.setattr(data, "_paste", without_paste)
    bare = make_splits({"val": SIZES["val"]}, seed=3)["val"]
    pasted = splits["val"]
    assert torch.equal(bare.boxes, pasted.boxes)
    changed = (bare.images - pasted.images).abs().amax(1) > 1e-6
    touching = 0
    for mask, (left, top, right, bottom) in zip(changed, pasted.boxes.tolist(), strict=True):
        inside = mask[top:bottom, left:right]
        assert mask.sum() == inside.sum()
        touching += all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert touching >= 0.9 * len(changed)  # faint edge pixels may meet a background of the digit's own colour


def test_seed_decides_everything(splits):
    again, other = make_splits({"val": 20}, seed=3)["val"], make_splits({"val": 20}, seed=4)["val"]
    alike = make_splits({"train": 7, "val": 20}, seed=3)["val"]
    for first, second in zip(again, alike, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(again.images, other.images)
    assert not torch.equal(again.digits, other.digits)


def literal_mean_area(number) -> float:
    """Mean area of the crops drawn one by one: area and ratio uniform and log-uniform, again until the crop fits."""
    source, areas = random.Random(0), []
    while len(areas) < number:
        area = source.uniform(*SCALE) * IMAGE_SIZE**2
        ratio = math.exp(source.uniform(*map(math.log, RATIO)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= IMAGE_SIZE and height <= IMAGE_SIZE:
            areas.append(width * height / IMAGE_SIZE**2)
    return sum(areas) / number


def test_random_crops_follow_the_rule():
    crops = random_crops(4000, IMAGE_SIZE, torch.Generator().manual_seed(0))
    crops.check(IMAGE_SIZE)
    area = (crops.height * crops.width).double() / IMAGE_SIZE**2
    ratio = crops.width / crops.height
    assert area.min() > SCALE[0] - 0.02
    assert area.mean() == pytest.approx(literal_mean_area(4000), abs=0.01)
    assert ratio.min() > RATIO[0] - 0.03
    assert ratio.max() < RATIO[1] + 0.03
    assert not crops.flip.any()
    assert crops.top.min() == 0
    assert (crops.top + crops.height).max() == IMAGE_SIZE


def test_random_crops_repeat_with_the_seed():
    first, second = (random_crops(5, IMAGE_SIZE, torch.Generator().manual_seed(1)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_where_no_box_fits_the_crop_is_the_largest_centred_one():
    rule = RandomCropFlip(IMAGE_SIZE, scale=SCALE, p=0)
    numbers = torch.full((4, 2, rule.tries), 0.999, dtype=torch.float64)
    sizes = torch.tensor([200, 50]), torch.tensor([50, 200])
    assert drawn(rule, numbers, torch.zeros(2), sizes).rows().tolist() == [[66, 0, 67, 50, 0], [0, 66, 50, 67, 0]]


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_apply_crops_is_crop_resize_flip(size):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(40, 3, *size, generator=generator, dtype=torch.float64)
    height = torch.randint(1, size[0] + 1, (40,), generator=generator)
    width = torch.randint(1, size[1] + 1, (40,), generator=generator)
    top = (torch.rand(40, generator=generator) * (size[0] - height + 1)).long()
    left = (torch.rand(40, generator=generator) * (size[1] - width + 1)).long()
    flip = torch.rand(40, generator=generator) < 0.5
    views = CropFlip(top, left, height, width, flip).apply(images)
    for image, view, i, j, h, w, mirrored in zip(images, views, top, left, height, width, flip, strict=True):
        expected = interpolate(image[None, :, i : i + h, j : j + w], size, mode="bilinear", align_corners=False)[0]
        expected = expected.flip(-1) if mirrored else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-12)
