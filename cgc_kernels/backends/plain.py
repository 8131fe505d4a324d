"""What the two backends written in plain PyTorch share."""

import functools
from collections.abc import Callable

import torch

from .. import double_backward
from ..double_backward import DifferentiableOnce
from .backend import Backend


def plain_backend(name: str, *stages: Callable, **others) -> Backend:
    """A backend that serves any device, of stages in the order of Backend's that PyTorch differentiates, and others."""
    return Backend(name, *(functools.partial(_guarded, stage) for stage in stages), **others)


def _guarded(stage: Callable, *args):
    """Run a stage outside autocast, and refuse double backward through its tensors.

    Not in a compiled graph, where the compiler makes the backward: it refuses a double backward where it kept an input
    of the graph, and otherwise takes the gradient for a constant, as it does for every function that it compiles.
    """
    if not torch.compiler.is_compiling():
        args = [double_backward.apply_eagerly(DifferentiableOnce, a) if _needs_grad(a) else a for a in args]
    with torch.autocast(args[0].device.type, enabled=False):
        return stage(*args)


def _needs_grad(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
