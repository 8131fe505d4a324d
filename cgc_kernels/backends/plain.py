"""What the two backends written in plain PyTorch share."""

import functools
from collections.abc import Callable

import torch

from .. import double_backward
from ..double_backward import DifferentiableOnce
from ..tensors import full_precision
from .backend import Backend


def plain_backend(name: str, *stages: Callable, **others) -> Backend:
    """A backend that serves any device, of stages in the order of Backend's that PyTorch differentiates, and others."""
    return Backend(name, *(functools.partial(_guarded, stage) for stage in stages), **others)


_BATCHED = (
    "backend must be one of fused kernels within torch.vmap, such as 'cpp' for CPU tensors, got one of plain PyTorch; "
    "or call it for each batch"
)


def _guarded(stage: Callable, *args):
    """Run a stage outside autocast, and refuse double backward through its tensors, and torch.vmap.

    Not in a compiled graph, where the compiler makes the backward: it refuses a double backward where it kept an input
    of the graph, and otherwise takes the gradient for a constant, as it does for every function that it compiles.
    """
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active() and any(map(_is_batched, args)):
            raise RuntimeError(_BATCHED)
        args = [double_backward.apply_eagerly(DifferentiableOnce, a) if _needs_grad(a) else a for a in args]
    with full_precision(args[0]):
        return stage(*args)


def _is_batched(value) -> bool:
    """Whether torch.vmap has hidden a dimension of a tensor, or of one inside it, as for torch.func.grad."""
    functorch = torch._C._functorch
    while isinstance(value, torch.Tensor) and functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return True
        value = functorch.get_unwrapped(value)
    return False


def _needs_grad(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
