"""Recognising a pooled linear head: what follows a layer is average pool, flatten, Linear, and nothing else.

Then the gradient of a logit with respect to the layer's output is a row of the weight (docs/mathematics.md, section 4).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class TailModule(NamedTuple):
    name: str
    kind: str


class _NotClosed(Exception):
    """Why there is no closed form."""


class _OneView(nn.Module):
    """The model as GradCAM calls it: one argument, so that optional ones keep their defaults while traced."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, view: Tensor) -> Tensor:
        return self.model(view)


class _TargetIsLeaf(fx.Tracer):
    # Without this, a forward that updates its buffers in place would do so while traced.
    proxy_buffer_attributes = True

    def __init__(self, target: nn.Module):
        super().__init__()
        self._target = target

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is self._target or super().is_leaf_module(m, module_qualified_name)


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
    ("logits", "output"): "end",
}


def find_tail(model: nn.Module, target: nn.Module) -> tuple[tuple[TailModule, ...], str]:
    """The modules between ``target`` and the logits if they form a pooled linear head, else (); and the reason."""
    states = {module: vars(module).copy() for module in model.modules()}
    try:
        tails = []
        for training in (True, False):
            for module in states:
                module.training = training
            tails.append(_trace_tail(model, target))
    except _NotClosed as reason:
        return (), str(reason)
    except Exception as error:
        summary = str(error).strip().partition("\n")[0]
        return (), f"the model cannot be traced symbolically ({type(error).__name__}: {summary})"
    finally:
        # Also takes back what a forward stores in its modules, which while tracing is no tensor.
        for module, state in states.items():
            vars(module).clear()
            vars(module).update(state)
    if tails[0] != tails[1]:
        return (), "what follows the target layer differs between train and eval mode"
    return tails[0]


def _trace_tail(model: nn.Module, target: nn.Module) -> tuple[tuple[TailModule, ...], str]:
    """Follow the target's output to the model's; raises _NotClosed at the first step that is not of such a head."""
    root = _OneView(model)
    nodes = _TargetIsLeaf(target).trace(root).nodes
    calls = [node for node in nodes if node.op == "call_module" and root.get_submodule(node.target) is target]
    if len(calls) != 1:
        raise _NotClosed(f"the target layer shows up {len(calls)} times in the traced model")
    node, state = calls[0], "map"
    tail, steps = [], []
    while state != "end":
        if len(node.users) != 1:
            raise _NotClosed(f"the output of {_node_name(node)} is used {len(node.users)} times")
        (node,) = node.users
        kind = _node_kind(node, root)
        if (state, kind) not in _STEPS:
            raise _NotClosed(f"{_node_name(node)} is not a step of average pool, flatten, linear")
        state = _STEPS[state, kind]
        steps.append(_node_name(node))
        if node.op == "call_module":
            tail.append(TailModule(node.target.removeprefix("model."), kind))
    return tuple(tail), " -> ".join(steps[:-1])


def _node_name(node: fx.Node) -> str:
    if node.op == "call_module":
        return node.target.removeprefix("model.")
    return "the output" if node.op == "output" else getattr(node.target, "__name__", str(node.target))


def _node_kind(node: fx.Node, root: nn.Module) -> str | None:
    if node.op == "output":
        # A node, not a tuple or dict around one.
        return "output" if isinstance(node.args[0], fx.Node) else None
    if node.op == "call_module":
        return module_kind(root.get_submodule(node.target))
    if node.target is F.adaptive_avg_pool2d:
        given = _arguments(node, "input", "output_size")
        return "pool" if _is_one(given.get("output_size")) else None
    if node.target in (torch.flatten, "flatten"):
        given = {"start_dim": 0, "end_dim": -1} | _arguments(node, "input", "start_dim", "end_dim")
        return "flatten" if (given["start_dim"], given["end_dim"]) == (1, -1) else None
    if node.target in (torch.mean, "mean"):
        return _mean_kind(_arguments(node, "input", "dim", "keepdim"))
    return None


def _mean_kind(given: dict[str, Any]) -> str | None:
    dims = given.get("dim")
    if not isinstance(dims, tuple | list) or sorted(dims) not in ([2, 3], [-2, -1]):
        return None
    if not set(given) <= {"input", "dim", "keepdim"}:
        return None
    return {True: "pool", False: "mean"}.get(given.get("keepdim", False))


def module_kind(module: nn.Module) -> str | None:
    """The kind of step an exact, unhooked standard module makes; None for anything else."""
    if "forward" in vars(module) or _has_hooks(module):
        return None
    # Exact types: a subclass, and so a parametrised module, may compute something else.
    if type(module) is nn.Linear:
        return "linear"
    if type(module) is nn.Identity or (type(module) is nn.Dropout and module.p == 0 and not module.inplace):
        return "identity"
    if type(module) is nn.AdaptiveAvgPool2d and _is_one(module.output_size):
        return "pool"
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return "flatten"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, tuple | list) and tuple(size) == (1, 1))
