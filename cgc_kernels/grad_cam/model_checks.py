"""Which models and layers GradCAM can explain; the messages name what is in the way and what to write instead."""

import difflib
import gc

import torch
from torch import nn

from .capture import Capture
from .module_facts import is_fully_sharded, path_to

_WRAP_FIRST = "wrap the bare network first, GradCAM(model, ...), and hand the GradCAM to"


def check_model(model: nn.Module) -> None:
    """Refuse what wraps, or has been handed to what wraps, a network; raises TypeError or RuntimeError."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(getattr(model, "_capture", None), Capture):
        raise TypeError("model must be the bare network, got a GradCAM of one; wrap it once, or give cam.model")
    _check_wrapper(model)
    if getattr(model, "_is_accelerate_prepared", False):
        raise RuntimeError(
            f"model must not be prepared yet, got one from accelerator.prepare; {_WRAP_FIRST} accelerator.prepare"
        )
    if _in_ddp(model):
        raise RuntimeError(
            "model must not be inside DistributedDataParallel already, or ranks would not exchange gradients; "
            f"{_WRAP_FIRST} DistributedDataParallel"
        )


def layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    """The dotted name of ``layer`` in ``model``."""
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer and name:
                return name
        raise ValueError(f"target_layer must be a module of the model, got a {type(layer).__name__} outside it")
    if not isinstance(layer, str):
        raise TypeError(f"target_layer must be a module or its dotted name, got {type(layer).__name__}")
    names = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in names:
        close = difflib.get_close_matches(layer, filter(None, names), n=5, cutoff=0.5)
        close = close or [name for name, _ in model.named_children()]
        near = f"; near it: {', '.join(close)}" if close else "; it has none inside"
        raise ValueError(f"target_layer must name a module of the model, got {layer!r}{near}")
    return layer


def check_ancestors(model: nn.Module, name: str) -> None:
    """Refuse modules above the target layer that do not call it, or not so that its hook runs.

    Made at construction and again before every call: models are compiled and wrapped later, too.
    """
    path = path_to(model, name)
    for module in path:
        _check_wrapper(module)
        if _is_compiled(module):
            raise RuntimeError(
                "model must not be compiled itself, got one that model.compile() was called on; leave that out and "
                "compile the GradCAM: torch.compile(cam)"
            )
    for module in path[:-1]:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be a Python module down to its target layer, got a {type(module).__name__}, whose layers "
                "run without hooks; give the model as it was before torch.jit"
            )
        if isinstance(module, torch.fx.GraphModule) and not _graph_calls(module, path):
            raise TypeError(
                f"model must call its target layer {name!r}, got a graph (torch.export, torch.fx) that runs its "
                "operations without it; give the model as it was before"
            )


def check_not_sharded(model: nn.Module) -> None:
    """Refuse ``fully_shard`` where a second backward is needed."""
    if any(map(is_fully_sharded, model.modules())):
        raise RuntimeError(
            "a model under fully_shard must have a closed form, since FSDP has no second backward; choose a target "
            "layer followed by average pool, flatten and Linear alone (see GradCAM.gradient_path), or use "
            "DistributedDataParallel"
        )


def why_not_called(model: nn.Module, name: str) -> str:
    """What to do about a target layer that the model did not call."""
    if len(path_to(model, name)[-1]._modules) and not _has_forward(path_to(model, name)[-1]):
        return "it is a container that is never called itself, choose one of its modules"
    return "choose a module that the model calls"


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _check_wrapper(module: nn.Module) -> None:
    kind = type(module).__name__
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(f"model must be the bare network, got {kind}; wrap the GradCAM in DistributedDataParallel")
    if kind == "FullyShardedDataParallel":
        raise TypeError(f"model must be the bare network, got {kind}; use fully_shard or DistributedDataParallel")
    if kind == "OptimizedModule":
        raise TypeError(
            "model must not be compiled itself, got torch.compile(model); give the model as it was before and compile "
            "the GradCAM: torch.compile(GradCAM(model, ...))"
        )


def _is_compiled(module: nn.Module) -> bool:
    compiled = module._compiled_call_impl
    return compiled is not None and not getattr(compiled, "is_ours", False)


def _graph_calls(graph: torch.fx.GraphModule, path: list[nn.Module]) -> bool:
    """Whether a graph above the last module of a path calls a module of the rest of it."""
    below = path[path.index(graph) + 1 :]
    called = (graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module")
    return any(module is other for module in called for other in below)


def _in_ddp(model: nn.Module) -> bool:
    """Whether a DistributedDataParallel of this process holds the model; nothing in the model would tell."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or not _ddp_holds(model):
        return False
    if any(isinstance(hook, Capture) for module in model.modules() for hook in module._forward_hooks.values()):
        return False  # through a GradCAM, which was first: this one explains what that one trains
    gc.collect()  # one that nobody uses any more does not count
    return _ddp_holds(model)


def _ddp_holds(model: nn.Module) -> bool:
    kind = nn.parallel.DistributedDataParallel
    wrappers = [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]
    return any(module is model for wrapper in wrappers for module in wrapper.modules())
