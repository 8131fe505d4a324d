"""The size of the views: given, or carried by what GradCAM made of them."""

from dataclasses import replace

import pytest
import torch

from cgc_kernels import CAM, CGCLoss, backends, cgc_loss
from tests.loss.arguments import AUG_FEATURES, AUG_GRADIENTS, CROP, FEATURES, GRADIENTS, SIZE, call

pytestmark = pytest.mark.usefixtures("no_work")


def carried(size=SIZE, aug_size=SIZE):
    return {"cam": CAM(FEATURES, GRADIENTS, size), "aug_cam": CAM(AUG_FEATURES, AUG_GRADIENTS, aug_size)}


@pytest.mark.parametrize("cams", [carried(), carried(aug_size=None), carried(size=None), carried(size=list(SIZE))])
@pytest.mark.parametrize("given", [{}, {"image_size": None}, {"image_size": SIZE}, {"image_size": list(SIZE)}])
def test_the_size_that_the_views_had_need_not_be_given(cams, given):
    if isinstance(cams["cam"].image_size, list):
        cams = {**cams, "aug_cam": cams["aug_cam"]._replace(image_size=None)}
    used = []

    def cgc(*arguments):
        used.append(arguments[-1].image_size)
        return torch.zeros(())

    with backends.serving(replace(backends.named("torch"), cgc=cgc)):
        cgc_loss(**cams, transform=CROP, backend="torch", **given)
        CGCLoss(backend="torch", **given)(cams["cam"], cams["aug_cam"], CROP)
    assert used == [SIZE, SIZE]


@pytest.mark.parametrize("given", [18, (11, 9), 9])
def test_another_size_than_the_views_had_is_refused(given):
    """Views of 224 pixels and image_size=448 gave another loss without a word."""
    message = r"image_size must be the size of the views that GradCAM saw, \(9, 11\), or be left out, got \("
    for cams in (carried(), carried(aug_size=None), carried(size=None)):
        with pytest.raises(ValueError, match=message):
            call(**cams, image_size=given)
        with pytest.raises(ValueError, match=message):
            CGCLoss(image_size=given)(cams["cam"], cams["aug_cam"], CROP)


def test_views_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"aug_cam must be of views as large as cam's, \(9, 11\), got \(9, 12\)"):
        call(**carried(aug_size=(9, 12)))


def test_a_wrong_size_carried_is_checked():
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel each way"):
        call(**carried((0, 11), None), image_size=None)
