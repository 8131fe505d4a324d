"""Recognising a pooled linear head: what follows a layer is average pool, flatten, Linear, and nothing else.

Then the gradient of a logit with respect to the layer's output is a row of the weight (docs/mathematics.md, section 4).
The head is found by reading the source of the model's ``forward`` (:mod:`forward_reader`); nothing of it is run.
"""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forward_reader.reader import Flow, Known, Reader, Unreadable
from .module_facts import has_forward_hooks, has_pre_hooks, plain_type

# What the value is after each step: the map, the map pooled to 1x1, a vector, logits of 1x1, the logits, their holder.
_STEPS = {
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
_POOLED = {
    (2, 3): (2, 3),
    (-2, -1): (2, 3),
    (1, 2): (1, 2),
    (-3, -2): (1, 2),
    (1,): (1,),
    (-2,): (1,),
}


class Relied(NamedTuple):
    """A module whose behaviour the closed form rests on: ``kind`` is a step's, or the ``forward`` that was read."""

    name: str
    kind: str | Callable
    follows: bool  # whether it is behind the target layer

    def holds(self, model: nn.Module) -> bool:
        """Whether the module is still what it was."""
        module = model.get_submodule(self.name)
        if isinstance(self.kind, str):
            return module_kind(module) == self.kind
        if "forward" in vars(module) or type(module).forward is not self.kind:
            return False
        return not (has_forward_hooks(module) or (self.follows and has_pre_hooks(module)))


class Setting(NamedTuple):
    """A plain attribute of a module that decides what its ``forward`` does."""

    name: str
    attribute: str
    value: Any

    def holds(self, model: nn.Module) -> bool:
        """Whether the attribute is still what it was."""
        return vars(model.get_submodule(self.name)).get(self.attribute) == self.value


class Head(NamedTuple):
    """A pooled linear head.

    ``linear``: the name of its linear layer or 1x1 convolution; ``steps``: in words; ``pooled``: the dimensions of the
    target layer's output that the pool averages over; ``relied``: what must stay as it is.
    """

    linear: str
    steps: str
    pooled: tuple[int, ...]
    relied: tuple[Relied | Setting, ...]

    def obstacle(self, model: nn.Module) -> str:
        """Why the head is not what it was any more; empty where it is."""
        for fact in self.relied:
            if not fact.holds(model):
                what = f"{fact.name}.{fact.attribute}".lstrip(".") if isinstance(fact, Setting) else fact.name
                return f"{what or 'the model'} was changed or got a hook"
        return ""


def find_head(model: nn.Module, target: nn.Module, reshaped: bool = False) -> tuple[Head | None, str]:
    """The pooled linear head behind ``target``, or None and the reason why there is none.

    It pools the last two dimensions, unless ``reshaped``: then the target's output need not be [B, C, H, W].
    """
    try:
        heads = [_read(model, target, training, reshaped) for training in (True, False)]
    except Unreadable as reason:
        return None, str(reason)
    except Exception as error:  # anything may stand in a user's source; autograd needs no reading
        return None, f"the source of the model is not understood ({type(error).__name__}: {error})"
    if heads[0][:3] != heads[1][:3]:
        return None, "what follows the target layer differs between train and eval mode"
    relied = heads[0].relied + tuple(fact for fact in heads[1].relied if fact not in heads[0].relied)
    return heads[0]._replace(relied=relied), ""


def row_gradients(
    rows: Tensor, features: Tensor, pooled: tuple[int, ...], reshape: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """The gradients of logits whose rows of the weight are ``rows`` [B, C], as ``reshape`` gives them: [B, C] or, where
    reshape copies, [B, C, H, W]. ``features``: the target's output, averaged over the dimensions ``pooled``.
    Raises ValueError where it has others than those, the batch and the channels.
    """
    if features.ndim != 2 + len(pooled):
        raise ValueError(
            f"the output of the target layer must have {2 + len(pooled)} dimensions, of which {pooled} are averaged, "
            f"got {list(features.shape)}; give closed_form=False"
        )
    size = 1
    for dim in pooled:
        size = size * features.shape[dim]
    rows = rows.flatten(1) / size
    if reshape is None:
        return rows
    for dim in pooled:
        rows = rows.unsqueeze(dim)
    gradients = reshape(rows.expand(len(rows), *features.shape[1:]))
    return gradients[:, :, 0, 0] if gradients.stride()[2:] == (0, 0) else gradients


class _Value(Flow):
    """A value behind the target layer: what it is, a key of _STEPS, and what it was made of."""

    def __init__(self, source: str, state: str, previous: Flow):
        super().__init__(source)
        self.state, self.previous = state, previous


def _read(model: nn.Module, target: nn.Module, training: bool, reshaped: bool) -> Head:
    modules: dict[nn.Module, str] = {}
    pooled = (2, 3)

    def step(value: Flow, callee: Any, arguments: tuple[list, dict]) -> Flow | None:
        nonlocal pooled
        kind, name = _kind(callee, arguments, training), _called(callee, reader)
        if kind is None:
            return None
        state = getattr(value, "state", "map")
        if (state, kind) not in _STEPS:
            raise Unreadable(f"{name} is not a step of average pool, flatten, linear")
        value.uses += 1
        if value.uses > 1:
            raise Unreadable(f"the output of {value.source} is used {value.uses} times")
        if isinstance(callee, nn.Module):
            modules[callee] = kind
        if _is_mean(callee):
            pooled = _POOLED[_mean_dimensions(arguments)]
            if pooled != (2, 3) and not reshaped:
                raise Unreadable(f"{name} is over dimensions {pooled}, and no reshape= makes them the last two")
        return _Value(name, _STEPS[state, kind], value)

    reader = Reader(model, target, training, step)
    value = reader.read()
    if getattr(value, "state", "") not in ("logits", "output") or value.uses:
        raise Unreadable(f"the output of {value.source} is not that of a linear layer, unused before it is returned")
    steps = []
    while isinstance(value, _Value):
        steps.insert(0, value.source)
        value = value.previous
    relied = [Relied(reader.name(module), kind, True) for module, kind in modules.items()]
    linear = next(fact.name for fact in relied if fact.kind in ("linear", "convolution"))
    relied += [Relied(reader.path(module), type(module).forward, follows) for module, follows in reader.entered.items()]
    relied += [Setting(reader.path(module), name, value) for (module, name), value in reader.settings.items()]
    return Head(linear, " -> ".join(steps), pooled, tuple(relied))


def _called(callee: Any, reader: Reader) -> str:
    if isinstance(callee, nn.Module):
        return reader.name(callee)
    return callee if isinstance(callee, str) else getattr(callee, "__name__", str(callee))


def _kind(callee: Any, arguments: tuple[list, dict], training: bool) -> str | None:
    """The kind of step a call makes, None if it is not one."""
    if isinstance(callee, nn.Module):
        return module_kind(callee)
    if callee is F.adaptive_avg_pool2d:
        given = _given(arguments, "input", "output_size")
        return "pool" if given and _is_one(given.get("output_size")) else None
    if callee is torch.flatten or (isinstance(callee, str) and callee == "flatten"):
        given = _given(arguments, "input", "start_dim", "end_dim")
        return "flatten" if given and (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1) else None
    if _is_mean(callee):
        return _mean_kind(arguments)
    if callee is F.dropout:
        given = _given(arguments, "input", "p", "training", "inplace")
        idle = given and not given.get("inplace") and (given.get("p", 0.5) == 0 or not given.get("training", True))
        return "identity" if idle else None
    return "output" if _holds_logits(callee, arguments) else None


def _is_mean(callee: Any) -> bool:
    return callee is torch.mean or (isinstance(callee, str) and callee == "mean")


def _mean_kind(arguments: tuple[list, dict]) -> str | None:
    given, dims = _given(arguments, "input", "dim", "keepdim"), _mean_dimensions(arguments)
    if dims not in _POOLED or not set(given) <= {"input", "dim", "keepdim"}:
        return None
    if given.get("keepdim", False) is True:
        return "pool" if _POOLED[dims] == (2, 3) else None
    return "mean" if given.get("keepdim", False) is False else None


def _mean_dimensions(arguments: tuple[list, dict]) -> tuple[int, ...]:
    """Sorted; empty where they are not known."""
    dims = (_given(arguments, "input", "dim", "keepdim") or {}).get("dim")
    if isinstance(dims, int):
        return (dims,)
    return tuple(sorted(dims)) if isinstance(dims, tuple | list) else ()


def _holds_logits(callee: Any, arguments: tuple[list, dict]) -> bool:
    """Whether a call makes a plain object whose entry or attribute ``logits`` is the followed value."""
    args, kwargs = arguments
    names = _fields(callee)
    if names is None or len(args) > len(names):
        return False
    return isinstance((dict(zip(names, args, strict=False)) | kwargs).get("logits"), Flow)


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
    own = {"__post_init__", "__new__", "__getattribute__", "__setattr__"} & vars(kind).keys()
    if not (dataclasses.is_dataclass(kind) and made) or own or isinstance(vars(kind).get("logits"), property):
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


def _given(arguments: tuple[list, dict], *names: str) -> dict[str, Any] | None:
    """Known arguments by name; None where one is not known."""
    args, kwargs = arguments
    given = dict(zip(names, args, strict=False)) | kwargs
    values = {name: value for name, value in given.items() if not isinstance(value, Flow)}
    if len(args) > len(names) or not all(isinstance(value, Known) and value.known for value in values.values()):
        return None
    return {name: value.value if isinstance(value, Known) else None for name, value in given.items()}


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, tuple | list) and tuple(size) == (1, 1))
