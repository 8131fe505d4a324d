"""The views of a call and their target."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors import described, is_dense


def check_views(views: Sequence[Tensor], target: Tensor | None, extra: Sequence[Tensor]) -> None:
    """Refuse what is no batch of views with a target for each sample: raises TypeError or ValueError."""
    if not views:
        raise ValueError("views must hold at least one view, got none")
    if not isinstance(extra, tuple | list):
        raise TypeError(f"extra must be a sequence of views, got {type(extra).__name__}")
    for name, group in (("views", views), ("extra", extra)):
        for index, view in enumerate(group):
            if not isinstance(view, Tensor) or view.is_nested:
                got = "a nested tensor" if isinstance(view, Tensor) else type(view).__name__
                raise TypeError(f"{name}[{index}] must be a tensor [B, ...], got {got}")
            if view.ndim < 1:
                raise ValueError(f"{name}[{index}] must have shape [B, ...], got a scalar")
            if view.ndim == 1 and view.dtype == torch.int64:
                raise TypeError(f"{name}[{index}] must be a view [B, ...], got {described(view)}; labels go to target=")
    batch = views[0].shape[0]
    for index, view in enumerate(views):
        if view.shape[0] != batch:
            raise ValueError(f"views[{index}] must have a batch of {batch} like views[0], got {view.shape[0]}")
    if target is not None:
        _check_target(target, batch)


def check_one_shape(views: Sequence[Tensor]) -> None:
    """Refuse views that do not make one batch: raises ValueError."""
    shapes = [list(view.shape[1:]) for view in views]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"views must be of one shape to be batched, got {', '.join(f'[B, *{s}]' for s in shapes)}")


def _check_target(target: Tensor, batch: int) -> None:
    if not is_dense(target):
        raise TypeError(f"target must be a tensor [B] of int64, or [B, K] of weights, got {described(target)}")
    weights = target.is_floating_point()
    if target.dtype != torch.int64 and not weights:
        raise TypeError(f"target must be int64, or floating-point weights of the logits, got {target.dtype}")
    if target.ndim != 1 + weights or len(target) != batch:
        wanted = f"[{batch}, K]" if weights else f"[{batch}]"
        raise ValueError(f"target must have shape {wanted}, got {list(target.shape)}")


def image_size(view: Tensor) -> tuple[int, int] | None:
    """(height, width) of views [B, C, height, width]; None for others, tokens for instance."""
    return tuple(view.shape[2:]) if view.ndim == 4 else None
