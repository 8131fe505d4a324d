"""What a classifier returns, the logits in it, and the class that is explained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tensors import misplaced


def find_logits(output: Any) -> Any:
    """The logits in what a classifier returned: its entry or attribute ``logits``, or the output itself."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


def check_logits(logits: Tensor, view: Tensor) -> None:
    """Refuse all but logits [B, K] of a view [B, ...]: raises TypeError or ValueError."""
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise TypeError(f"the model must return logits [B, K], got {kind} without logits in it")
    if logits.ndim != 2 or logits.shape[0] != view.shape[0]:
        raise ValueError(f"the model must return logits [{view.shape[0]}, K], got {list(logits.shape)}")


def choose_target(target: Tensor | None, logits: Tensor, repeats: int = 1) -> Tensor:
    """``target``, classes [B] or weights [B, K], checked against the logits [B, K], or their argmax; ``repeats`` times
    one after the other. Raises RuntimeError or ValueError."""
    target = logits.detach().argmax(1) if target is None else _checked(target, logits)
    return torch.cat([target] * repeats)


def _checked(target: Tensor, logits: Tensor) -> Tensor:
    if target.device != logits.device:
        raise RuntimeError(misplaced("target", target, logits.device, "the logits"))
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(f"target must be a weight for each logit, {list(logits.shape)}, got {list(target.shape)}")
        return target
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (target < 0) | (target >= logits.shape[1])
        if bad.any():
            index = int(bad.int().argmax())
            got = f"got {int(target[index])} at index {index}"
            raise ValueError(f"target must be in [0, {logits.shape[1]}), {got}")
    return target
