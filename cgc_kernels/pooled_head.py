"""Recognising a pooled linear head: what follows a layer is average pool, flatten, Linear, and nothing else.

Then the gradient of a logit with respect to the layer's output is a row of the weight (docs/mathematics.md, section 4).
The head is found by reading the source of the model's ``forward`` (:mod:`forward_reader`); nothing of it is run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .forward_reader import Flow, Known, Reader, Unreadable
from .module_facts import has_forward_hooks, has_pre_hooks, plain_type

# What the value is after each step: the map, the map pooled to 1x1, a vector, the logits.
_STEPS = {
    ("map", "identity"): "map",
    ("map", "pool"): "pooled",
    ("map", "mean"): "vector",
    ("pooled", "identity"): "pooled",
    ("pooled", "flatten"): "vector",
    ("vector", "identity"): "vector",
    ("vector", "flatten"): "vector",
    ("vector", "linear"): "logits",
    ("logits", "identity"): "logits",
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
    """A pooled linear head: the name of its linear layer, its steps in words, and what must stay as it is."""

    linear: str
    steps: str
    relied: tuple[Relied | Setting, ...]

    def obstacle(self, model: nn.Module) -> str:
        """Why the head is not what it was any more; empty where it is."""
        for fact in self.relied:
            if not fact.holds(model):
                what = f"{fact.name}.{fact.attribute}".lstrip(".") if isinstance(fact, Setting) else fact.name
                return f"{what or 'the model'} was changed or got a hook"
        return ""


def find_head(model: nn.Module, target: nn.Module) -> tuple[Head | None, str]:
    """The pooled linear head behind ``target``, or None and the reason why there is none."""
    try:
        heads = [_read(model, target, training) for training in (True, False)]
    except Unreadable as reason:
        return None, str(reason)
    except Exception as error:  # anything may stand in a user's source; autograd needs no reading
        return None, f"the source of the model is not understood ({type(error).__name__}: {error})"
    if heads[0].steps != heads[1].steps:
        return None, "what follows the target layer differs between train and eval mode"
    relied = heads[0].relied + tuple(fact for fact in heads[1].relied if fact not in heads[0].relied)
    return heads[0]._replace(relied=relied), ""


class _Value(Flow):
    """A value behind the target layer: what it is, a key of _STEPS, and what it was made of."""

    def __init__(self, source: str, state: str, previous: Flow):
        super().__init__(source)
        self.state, self.previous = state, previous


def _read(model: nn.Module, target: nn.Module, training: bool) -> Head:
    modules: dict[nn.Module, str] = {}

    def step(value: Flow, callee: Any, arguments: tuple[list, dict]) -> Flow | None:
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
        return _Value(name, _STEPS[state, kind], value)

    reader = Reader(model, target, training, step)
    value = reader.read()
    if getattr(value, "state", "") != "logits" or value.uses:
        raise Unreadable(f"the output of {value.source} is not that of a linear layer, unused before it is returned")
    steps = []
    while isinstance(value, _Value):
        steps.insert(0, value.source)
        value = value.previous
    relied = [Relied(reader.name(module), kind, True) for module, kind in modules.items()]
    linear = next(fact.name for fact in relied if fact.kind == "linear")
    relied += [Relied(reader.path(module), type(module).forward, follows) for module, follows in reader.entered.items()]
    relied += [Setting(reader.path(module), name, value) for (module, name), value in reader.settings.items()]
    return Head(linear, " -> ".join(steps), tuple(relied))


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
    if callee is torch.mean or (isinstance(callee, str) and callee == "mean"):
        return _mean_kind(_given(arguments, "input", "dim", "keepdim"))
    if callee is F.dropout:
        given = _given(arguments, "input", "p", "training", "inplace")
        idle = given and not given.get("inplace") and (given.get("p", 0.5) == 0 or not given.get("training", True))
        return "identity" if idle else None
    return None


def _mean_kind(given: dict[str, Any] | None) -> str | None:
    if given is None or not set(given) <= {"input", "dim", "keepdim"}:
        return None
    dims = given.get("dim")
    if not isinstance(dims, tuple | list) or sorted(dims) not in ([2, 3], [-2, -1]):
        return None
    return {True: "pool", False: "mean"}.get(given.get("keepdim", False))


def module_kind(module: nn.Module) -> str | None:
    """The kind of step an exact, unhooked standard module makes; None for anything else."""
    if "forward" in vars(module) or has_forward_hooks(module) or has_pre_hooks(module):
        return None
    # Exact types: a subclass, and so a parametrised module, may compute something else.
    kind = plain_type(module)
    if kind is nn.Linear:
        return "linear"
    if kind is nn.Identity or (kind is nn.Dropout and module.p == 0 and not module.inplace):
        return "identity"
    if kind is nn.AdaptiveAvgPool2d and _is_one(module.output_size):
        return "pool"
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return "flatten"
    return None


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
