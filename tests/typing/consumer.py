"""A user's script, of every public name; nothing runs it: `make lint` has mypy read it strictly."""

from collections.abc import Callable
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import cgc_kernels
from cgc_kernels import (
    CAM,
    CGCLoss,
    CropFlip,
    GradCAM,
    GradCAMOutput,
    RandomCropFlip,
    cgc_loss,
    gradcam,
    heatmap_loss,
    homography,
    info,
    log_heatmaps,
    metrics,
    overlay,
    record,
    tokens_to_map,
)


def losses(first: CAM, second: CAM, crop: CropFlip) -> Tensor:
    """The functions and their module."""
    pair = (torch.rand(2, 3, 4, 4), torch.rand(2, 3))
    loss = cgc_loss(first, second, crop, temperature=0.1, weighting="elementwise", objective="paper", consistency=1.0)
    assert_type(loss, Tensor)
    assert_type(cgc_loss(pair, list(pair), crop.rows(), image_size=(32, 48), backend="torch"), Tensor)
    heatmaps = gradcam(first.features, first.gradients)
    assert_type(heatmaps, Tensor)
    assert_type(heatmap_loss(heatmaps, heatmaps, crop.matrix(32), image_size=32), Tensor)
    assert_type(CGCLoss(image_size=32).forward(first, second, crop), Tensor)
    return loss


def models(net: nn.Module, image: Tensor) -> None:
    """What wraps a model, and what it returns."""
    to_map = tokens_to_map(14, 14)
    assert_type(to_map, Callable[[Tensor], Tensor])
    with GradCAM(net, "layer4", reshape=to_map), GradCAM.auto(net) as cam:
        assert_type(cam.gradient_path, str)
        assert_type(cam.closed_form, bool)
    output = GradCAMOutput(image, CAM(image, image))
    assert_type(output.logits, Tensor)
    assert_type(output.cam, CAM | None)
    assert_type(CAM(image, image).image_size, tuple[int, int] | None)


def transforms(image: Tensor) -> None:
    """What records how a view was moved."""
    view, crop = RandomCropFlip(224, scale=(0.2, 1.0))(image)
    assert_type(crop, CropFlip)
    assert_type(crop.to("cpu").apply(image), Tensor)
    assert_type(crop.top, Tensor)
    assert_type(CropFlip.identity(4, 224), CropFlip)
    assert_type(CropFlip.from_rows(crop.rows()), CropFlip)
    crop.check((224, 224))
    view, matrix = record(nn.Identity())(view)
    assert_type(matrix, Tensor)
    assert_type(homography(image, image), Tensor)


def pictures(writer: Any, cam: GradCAM, images: Tensor) -> None:
    """What shows heatmaps."""
    assert_type(overlay(images, images[:, 0]), Tensor)
    log_heatmaps(writer, cam, images, 7)
    assert_type(cgc_kernels.__version__, str)
    assert_type(info(), dict[str, Any])


def measures(heatmaps: Tensor, boxes: Tensor) -> None:
    """What is measured of heatmaps."""
    fine = metrics.upsample(heatmaps, 224)
    assert_type(metrics.content_heatmap(fine, metrics.box_masks(boxes, 224)), Tensor)
    assert_type(metrics.sharpen(fine, metrics.matching_power(fine, 40.0)), Tensor)
