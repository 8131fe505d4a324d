"""What of a model ``torch.compile(cam)`` compiles on the autograd path.

A compiled graph has no second derivative, so that what runs from the target layer's output to the logits must run
eagerly. All that runs before it is differentiated once: its parts are compiled one by one, with the backend that the
caller asked for. A part is a module with children that does not hold the target layer, or the target layer itself.
"""

import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .capture import Capture, Kept
from .module_facts import path_to, user_hooks

try:
    from torch._C._dynamo.eval_frame import get_eval_frame_callback
except ImportError:  # another version of torch: then nothing is compiled on the autograd path

    def get_eval_frame_callback():
        return None


class _Running(threading.local):
    kept: Kept | None = None
    backend = None


_running = _Running()


def current_backend():
    """The backend of the ``torch.compile`` this call comes from, None in eager mode."""
    callback = get_eval_frame_callback()
    if not callable(callback):
        return None
    # Where there is a callback it has been imported; importing it with this package would take a second.
    innermost_backend = getattr(sys.modules["torch._dynamo.eval_frame"], "innermost_backend", None)
    return innermost_backend(callback) if innermost_backend else None


@contextmanager
def compiled(model: nn.Module, layer: str, kept: Kept, backend) -> Iterator[None]:
    """In this block the parts of the model that run before its target layer are compiled, unless backend is None."""
    if backend is None:
        yield
        return
    for name, part in _parts(model, path_to(model, layer)):
        if part._compiled_call_impl is None:
            part._compiled_call_impl = _Part(name, part)
    before = _running.kept, _running.backend
    _running.kept, _running.backend = kept, backend
    try:
        yield
    finally:
        _running.kept, _running.backend = before


def release(model: nn.Module) -> None:
    """Take back what :func:`compiled` has put into the model."""
    for module in model.modules():
        if isinstance(module._compiled_call_impl, _Part):
            module._compiled_call_impl = None


def _parts(model: nn.Module, path: list[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    names = {module: name for name, module in model.named_modules()}
    pending = [child for module in path[:-1] for child in module.children() if child not in path] + path[-1:]
    while pending:
        module = pending.pop()
        if isinstance(module, nn.ModuleList | nn.ModuleDict):  # never called itself
            pending += module.children()
        elif module._modules:
            yield names[module], module


class _Part:
    """What a part is called by: as ever, but compiled where a GradCAM in this thread has not met its target yet."""

    is_ours = True

    def __init__(self, name: str, module: nn.Module):
        self._name, self._module = name, module
        self._compiled_for, self._compiled = None, None

    def __call__(self, *args, **kwargs):
        module, kept = self._module, _running.kept
        if torch.compiler.is_compiling() or kept is None or not kept.armed or kept.calls:
            return module._call_impl(*args, **kwargs)
        hooks = user_hooks(module._forward_hooks)
        if not any(isinstance(hook, Capture) for hook in hooks):
            return self._compile(_running.backend, "_call_impl")(*args, **kwargs)
        if len(hooks) > 1 or kwargs or module._forward_pre_hooks or module._backward_hooks:
            return module._call_impl(*args, **kwargs)
        output = self._compile(_running.backend, "forward")(*args)
        replaced = hooks[0](module, args, output)
        return output if replaced is None else replaced

    def _compile(self, backend, method: str):
        """The module's method, compiled; with another backend anew."""
        if self._compiled_for != (backend, method):
            self._compiled = torch.compile(self._as_function(method), backend=backend)
            self._compiled_for = backend, method
        return self._compiled

    def _as_function(self, method: str):
        """The module's method as a function with code of its own: Dynamo counts recompilations by code."""
        module = self._module

        def run(*args, **kwargs):
            return getattr(module, method)(*args, **kwargs)

        code = run.__code__.replace(co_name=f"run_{self._name.replace('.', '_')}")
        return types.FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)
