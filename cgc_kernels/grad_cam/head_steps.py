"""The steps of a pooled linear head: which calls are steps, and which may follow one another."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .forward_reader import Followed, Known
from .module_facts import has_forward_hooks, has_pre_hooks, plain_type

Arguments = tuple[list, dict]  # of a call, by position and by name

# What the value is after each step: the map, the map pooled to 1x1, a vector, logits of 1x1, the logits, their holder.
TRANSITIONS = {
    ("map", "identity"): "map",
    ("map", "pool"): "pooled",
    ("map", "mean"): "vector",
    ("pooled", "identity"): "pooled",
    ("pooled", "flatten"): "vector",
    ("pooled", "convolution"): "pooled logits",
    ("pooled logits", "identity"): "pooled logits",
    ("pooled logits", "flatten"): "logits",
    ("vector", "identity"): "vector",
    ("vector", "flatten"): "vector",
    ("vector", "linear"): "logits",
    ("logits", "identity"): "logits",
    ("logits", "flatten"): "logits",
    ("logits", "output"): "output",
}
# The dimensions that a mean is taken over: of a map [B, C, H, W], of one [B, H, W, C], of tokens [B, N, C].
_POOLED_DIMENSIONS = {
    (2, 3): (2, 3),
    (-2, -1): (2, 3),
    (1, 2): (1, 2),
    (-3, -2): (1, 2),
    (1,): (1,),
    (-2,): (1,),
}


def call_kind(callee: Any, arguments: Arguments, training: bool) -> str | None:
    """The kind of step a call makes, None if it is not one."""
    if isinstance(callee, nn.Module):
        return module_kind(callee)
    if callee is F.adaptive_avg_pool2d:
        given = _known_arguments(arguments, "input", "output_size")
        return "pool" if given and _is_one(given.get("output_size")) else None
    if callee is torch.flatten or (isinstance(callee, str) and callee == "flatten"):
        given = _known_arguments(arguments, "input", "start_dim", "end_dim")
        return "flatten" if given and (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1) else None
    if is_mean(callee):
        return _mean_kind(arguments)
    if callee is F.dropout:
        given = _known_arguments(arguments, "input", "p", "training", "inplace")
        idle = given and not given.get("inplace") and (given.get("p", 0.5) == 0 or not given.get("training", True))
        return "identity" if idle else None
    return "output" if _holds_logits(callee, arguments) else None


def is_mean(callee: Any) -> bool:
    """Whether a call takes a mean: then :func:`pooled_dimensions` has its dimensions."""
    return callee is torch.mean or (isinstance(callee, str) and callee == "mean")


def _mean_kind(arguments: Arguments) -> str | None:
    given, dims = _known_arguments(arguments, "input", "dim", "keepdim"), _mean_dimensions(arguments)
    if dims not in _POOLED_DIMENSIONS or not set(given) <= {"input", "dim", "keepdim"}:
        return None
    if given.get("keepdim", False) is True:
        return "pool" if _POOLED_DIMENSIONS[dims] == (2, 3) else None
    return "mean" if given.get("keepdim", False) is False else None


def pooled_dimensions(arguments: Arguments) -> tuple[int, ...]:
    """The dimensions of the target layer's output that a mean is over, counted from the first."""
    return _POOLED_DIMENSIONS[_mean_dimensions(arguments)]


def _mean_dimensions(arguments: Arguments) -> tuple[int, ...]:
    """As given, sorted; empty where they are not known."""
    dims = (_known_arguments(arguments, "input", "dim", "keepdim") or {}).get("dim")
    if isinstance(dims, int):
        return (dims,)
    return tuple(sorted(dims)) if isinstance(dims, tuple | list) else ()


def _holds_logits(callee: Any, arguments: Arguments) -> bool:
    """Whether a call makes a plain object whose entry or attribute ``logits`` is the followed value."""
    args, kwargs = arguments
    names = _fields(callee)
    if names is None or len(args) > len(names):
        return False
    return isinstance((dict(zip(names, args, strict=False)) | kwargs).get("logits"), Followed)


def _fields(kind: Any) -> tuple[str, ...] | None:
    """The positional fields of a class that keeps what it is made of as it is; None for any other callee."""
    if kind is dict or kind is SimpleNamespace:
        return ()
    if type(kind) is not type:  # a metaclass may make anything
        return None
    if kind.__bases__ == (tuple,) and kind.__new__.__module__ == f"namedtuple_{kind.__name__}":
        return kind._fields
    # A constructor that dataclass has written, and attributes that nobody computes.
    made = kind.__bases__ == (object,) and "__init__" in vars(kind) and kind.__init__.__code__.co_filename == "<string>"
    overrides = {"__post_init__", "__new__", "__getattribute__", "__setattr__"} & vars(kind).keys()
    if not (dataclasses.is_dataclass(kind) and made) or overrides or isinstance(vars(kind).get("logits"), property):
        return None
    return tuple(field.name for field in dataclasses.fields(kind) if field.init and not field.kw_only)


def module_kind(module: nn.Module) -> str | None:
    """The kind of step an exact, unhooked standard module makes; None for anything else."""
    if "forward" in vars(module) or has_forward_hooks(module) or has_pre_hooks(module):
        return None
    # Exact types: a subclass, and so a parametrised module, may compute something else.
    kind = plain_type(module)
    if kind is nn.Linear:
        return "linear"
    if kind is nn.Conv2d and _is_pointwise(module):
        return "convolution"
    if kind is nn.Identity or (kind is nn.Dropout and module.p == 0 and not module.inplace):
        return "identity"
    if kind is nn.AdaptiveAvgPool2d and _is_one(module.output_size):
        return "pool"
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return "flatten"
    return None


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    given = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.groups)
    return given == ((1, 1), (1, 1), (0, 0), 1)


def _known_arguments(arguments: Arguments, *names: str) -> dict[str, Any] | None:
    """Known arguments by name; None where one is not known."""
    args, kwargs = arguments
    given = dict(zip(names, args, strict=False)) | kwargs
    values = {name: value for name, value in given.items() if not isinstance(value, Followed)}
    if len(args) > len(names) or not all(isinstance(value, Known) and value.known for value in values.values()):
        return None
    return {name: value.value if isinstance(value, Known) else None for name, value in given.items()}


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, tuple | list) and tuple(size) == (1, 1))
