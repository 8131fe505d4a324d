"""Heatmaps over images, to be looked at: :func:`overlay`, and :func:`log_heatmaps` for TensorBoard."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loss import gradcam
from .tensors import described, full_precision, is_dense

__all__ = ["log_heatmaps", "overlay"]

_LUMINANCE = (0.299, 0.587, 0.114)
_ROUNDING = 1e-3  # by which undoing a normalisation may leave [0, 1]


def overlay(images: Tensor, heatmaps: Tensor) -> Tensor:
    """The heatmaps' colours (matplotlib's inferno) over the grey images, the more opaque the hotter.

    Args:
        images: [B, 3, S_h, S_w] or [3, S_h, S_w], floating point in [0, 1], or uint8; not normalised.
        heatmaps: [B, H, W] or [H, W], >= 0, of any size, on any device: upsampled bilinearly to the images', each
            scaled to its own maximum.

    Returns:
        float32 [B, 3, S_h, S_w] or [3, S_h, S_w] in [0, 1], on the images' device; for ``SummaryWriter.add_images``,
        ``torchvision.utils.save_image``, or ``.movedim(-3, -1)`` for matplotlib.

    Raises:
        ValueError, TypeError: shapes or values are not as above. ImportError: matplotlib is missing.

    Example::

        >>> overlay(torch.rand(4, 3, 224, 224), torch.rand(4, 7, 7)).shape
        torch.Size([4, 3, 224, 224])
    """
    images, heatmaps = _checked(images, heatmaps)
    with full_precision(images):
        return _coloured(images, heatmaps)


def _coloured(images: Tensor, heatmaps: Tensor) -> Tensor:
    heat = heatmaps.to(images.device, torch.float32)
    if heat.shape[-2:] != images.shape[-2:]:
        lead = heat.shape[:-2]
        heat = F.interpolate(heat.reshape(-1, 1, *heat.shape[-2:]), images.shape[-2:], mode="bilinear")
        heat = heat.reshape(*lead, *images.shape[-2:])
    heat = heat / heat.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    grey = torch.einsum("c,...chw->...hw", images.new_tensor(_LUMINANCE), images).unsqueeze(-3)
    palette = _palette().to(heat.device)
    colours = palette[(heat * len(palette)).long().clamp(max=len(palette) - 1)].movedim(-1, -3)
    return torch.lerp(0.9 * grey, colours, 0.85 * heat.unsqueeze(-3).sqrt()).clamp(0, 1)


@torch.no_grad()
def log_heatmaps(
    writer: Any,
    cam: nn.Module,
    views: Tensor,
    step: int,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    target: Tensor | None = None,
    tag: str = "heatmaps",
) -> None:
    """Write overlays of a batch's heatmaps to TensorBoard; with the same batch after every epoch, how they change.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``; in Lightning ``self.logger.experiment``.
        cam: a GradCAM, also inside DistributedDataParallel or torch.compile. Called in evaluation mode, without
            gradients; every module's mode is put back.
        views: [B, 3, S_h, S_w] as the model takes them, on any device.
        step: the number that TensorBoard shows.
        mean, std: by which the views were normalised, for each channel.
        target: [B] int64, the classes explained; by default the predicted ones.
        tag: name of the pictures.

    Example::

        from torch.utils.tensorboard import SummaryWriter

        log_heatmaps(SummaryWriter("runs"), cam, fixed_views, epoch, mean=MEAN, std=STD)
    """
    mean, std = (_by_channel(name, values, views.device) for name, values in (("mean", mean), ("std", std)))
    device = next(cam.parameters()).device
    with _evaluation(cam):
        (out,) = cam(views.to(device), target=None if target is None else target.to(device))
    writer.add_images(tag, overlay(views * std + mean, gradcam(out.cam)), step)


def _by_channel(name: str, values: Sequence[float], device: torch.device) -> Tensor:
    numbers = torch.as_tensor(values, device=device)
    if numbers.shape != (3,):
        raise ValueError(f"{name} must hold three numbers, got {described(values)}")
    return numbers[:, None, None]


@contextlib.contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, then the mode of every module as it was: some may be kept in evaluation mode in training."""
    training = [own for own in module.modules() if own.training]
    module.eval()
    try:
        yield
    finally:
        for own in training:
            own.training = True


def _checked(images: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    for name, given in (("images", images), ("heatmaps", heatmaps)):
        if not is_dense(given) or given.is_complex():
            raise TypeError(f"{name} must be a dense tensor of real numbers, got {described(given)}")
        if given.numel() == 0:
            raise ValueError(f"{name} must have no empty dimension, got {described(given)}")
    images, heatmaps = images.detach(), heatmaps.detach()
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise ValueError(f"images must be [B, 3, S_h, S_w] or [3, S_h, S_w], got {list(images.shape)}")
    if heatmaps.ndim != images.ndim - 1 or heatmaps.shape[:-2] != images.shape[:-3]:
        wanted = "[H, W]" if images.ndim == 3 else f"[{len(images)}, H, W]"
        raise ValueError(f"heatmaps must be {wanted} like the images, got {list(heatmaps.shape)}")
    if not (heatmaps.isfinite() & (heatmaps >= 0)).all():
        raise ValueError(f"heatmaps must be finite and >= 0, got {heatmaps.min().item()} to {heatmaps.max().item()}")
    if images.dtype == torch.uint8:
        return images / 255, heatmaps
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point or uint8, got {images.dtype}")
    if not ((images >= -_ROUNDING) & (images <= 1 + _ROUNDING)).all():
        raise ValueError(
            f"images must be in [0, 1], got {images.min().item():.3g} to {images.max().item():.3g}; undo their "
            "normalisation: images * std + mean"
        )
    return images.float(), heatmaps


@functools.cache
def _palette() -> Tensor:
    """Colours from cold to hot, [256, 3]."""
    try:
        from matplotlib import colormaps
    except ImportError:
        raise ImportError("overlay must have matplotlib for its colours, got none: pip install matplotlib") from None
    return torch.tensor(colormaps["inferno"].colors)
