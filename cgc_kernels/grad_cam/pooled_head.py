"""Recognising a pooled linear head: what follows a layer is average pool, flatten, Linear, and nothing else.

Then the gradient of a logit with respect to the layer's output is a row of the weight (docs/mathematics.md, section 4).
The head is found by reading the source of the model's ``forward`` (:mod:`forward_reader`); nothing of it is run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from .forward_reader import Followed, Reader, Unreadable
from .head_steps import TRANSITIONS, Arguments, call_kind, is_mean, module_kind, pooled_dimensions
from .module_facts import has_forward_hooks, has_pre_hooks


class ReliedModule(NamedTuple):
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


class ReliedSetting(NamedTuple):
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
    relied: tuple[ReliedModule | ReliedSetting, ...]

    def obstacle(self, model: nn.Module) -> str:
        """Why the head is not what it was any more; empty where it is."""
        for fact in self.relied:
            if not fact.holds(model):
                what = f"{fact.name}.{fact.attribute}".lstrip(".") if isinstance(fact, ReliedSetting) else fact.name
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


class _Stepped(Followed):
    """A value behind the target layer: what it is, a key of TRANSITIONS, and what it was made of."""

    def __init__(self, source: str, state: str, previous: Followed):
        super().__init__(source)
        self.state, self.previous = state, previous


def _read(model: nn.Module, target: nn.Module, training: bool, reshaped: bool) -> Head:
    modules: dict[nn.Module, str] = {}
    pooled = (2, 3)

    def step(value: Followed, callee: Any, arguments: Arguments) -> Followed | None:
        nonlocal pooled
        kind, name = call_kind(callee, arguments, training), _callee_name(callee, reader)
        if kind is None:
            return None
        state = getattr(value, "state", "map")
        if (state, kind) not in TRANSITIONS:
            raise Unreadable(f"{name} is not a step of average pool, flatten, linear")
        value.uses += 1
        if value.uses > 1:
            raise Unreadable(f"the output of {value.source} is used {value.uses} times")
        if isinstance(callee, nn.Module):
            modules[callee] = kind
        if is_mean(callee):
            pooled = pooled_dimensions(arguments)
            if pooled != (2, 3) and not reshaped:
                raise Unreadable(f"{name} is over dimensions {pooled}, and no reshape= makes them the last two")
        return _Stepped(name, TRANSITIONS[state, kind], value)

    reader = Reader(model, target, training, step)
    value = reader.read()
    if getattr(value, "state", "") not in ("logits", "output") or value.uses:
        raise Unreadable(f"the output of {value.source} is not that of a linear layer, unused before it is returned")
    steps = []
    while isinstance(value, _Stepped):
        steps.insert(0, value.source)
        value = value.previous
    relied = [ReliedModule(reader.display_name(module), kind, True) for module, kind in modules.items()]
    linear = next(fact.name for fact in relied if fact.kind in ("linear", "convolution"))
    relied += [
        ReliedModule(reader.dotted_name(module), type(module).forward, follows)
        for module, follows in reader.forwards_read.items()
    ]
    relied += [
        ReliedSetting(reader.dotted_name(module), name, value) for (module, name), value in reader.settings.items()
    ]
    return Head(linear, " -> ".join(steps), pooled, tuple(relied))


def _callee_name(callee: Any, reader: Reader) -> str:
    if isinstance(callee, nn.Module):
        return reader.display_name(callee)
    return callee if isinstance(callee, str) else getattr(callee, "__name__", str(callee))
