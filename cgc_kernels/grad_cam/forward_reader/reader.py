"""The calls of a forward and the attributes that it reads."""

import ast
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..module_facts import has_forward_hooks, has_pre_hooks, plain_type
from .source_code import definition
from .statements import Frame
from .values import METADATA, UNKNOWN, Followed, Known, Method, Unreadable, Value, find_followed, is_plain

_ABSENT = object()
_NOT_SCRIPTED = (torch.jit.is_scripting, torch.jit.is_tracing)


class Reader:
    """Reads the forward of ``model`` for one mode, ``training`` or not.

    ``step(value, callee, arguments)`` is asked what a call does to the followed value, where ``callee`` is a module, a
    function, a class (``dict`` also of a dict's display) or the name of a tensor's method and ``arguments`` are the
    known others by position and name; it returns a new :class:`Followed`, or None where it does not know the callee.

    After :meth:`read`, ``forwards_read`` holds the modules whose ``forward`` was read, and ``settings`` the plain
    attributes of modules that were.
    """

    def __init__(self, model: nn.Module, target: nn.Module, training: bool, step: Callable[..., Followed | None]):
        self._target, self._training, self._step = target, training, step
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._ancestors = {m for m in model.modules() if any(child is target for child in m.modules())}
        self._overwritten: set[tuple[int, str]] = set()
        self._depth = 0
        self._calls = 0
        self.forwards_read: dict[nn.Module, bool] = {}  # and whether the followed value goes in
        self.settings: dict[tuple[nn.Module, str], Any] = {}

    def read(self) -> Followed:
        """What the model returns for one argument."""
        result = self._call_module(self._model, [UNKNOWN], {})
        if self._calls != 1:
            raise Unreadable(f"{self._calls} calls of the target layer are seen in the source of the model")
        if not isinstance(result, Followed):
            raise Unreadable("the model does not return what follows the target layer alone")
        return result

    def dotted_name(self, module: nn.Module) -> str:
        """Its dotted name, empty for the model."""
        if module not in self._names:
            raise Unreadable(f"a {type(module).__name__} outside the model is called")
        return self._names[module]

    def display_name(self, module: nn.Module) -> str:
        """Its dotted name for people."""
        return self.dotted_name(module) or "the model"

    # ---- Calls.

    def _call_module(self, module: nn.Module, args: list[Value], kwargs: dict[str, Value]) -> Value:
        followed = find_followed(args, kwargs)
        if module is self._target:
            if followed is not None:
                raise Unreadable("the target layer reads its own output")
            self._calls += 1
            return Followed("the target layer")
        if followed is None and module not in self._ancestors:
            self._refuse_target(*args, *kwargs.values())
            return UNKNOWN
        if followed is not None:
            result = self._step(followed, module, (args, kwargs))
            if result is not None:
                return result
            if _is_torch_function(type(module).forward) and plain_type(module) is not nn.Sequential:
                raise Unreadable(f"{self.display_name(module)} is not a step of average pool, flatten, linear")
        return self._read_forward(module, args, kwargs, followed is not None)

    def _read_forward(self, module: nn.Module, args: list[Value], kwargs: dict[str, Value], follows: bool) -> Value:
        """What the forward of the module returns."""
        name = self.display_name(module)
        if "forward" in vars(module):
            raise Unreadable(f"the forward of {name} was replaced by another")
        if type(module).__call__ is not nn.Module.__call__:
            raise Unreadable(f"{name} is called in a way of its own")
        if has_forward_hooks(module) or (follows and has_pre_hooks(module)):
            raise Unreadable(f"{name} has a hook")
        self.forwards_read[module] = self.forwards_read.get(module, False) or follows
        if plain_type(module) is nn.Sequential:
            (value,) = args
            for child in module._modules.values():
                value = self._call_module(child, [value], {})
            return value
        return self._call_function(type(module).forward, [Known(module), *args], kwargs, f"the forward of {name}")

    def _call_function(self, function: Any, args: list[Value], kwargs: dict[str, Value], label: str) -> Value:
        found = definition(function.__code__) if isinstance(function, types.FunctionType) else None
        if found is None:
            raise Unreadable(f"the source of {label} cannot be read")
        if self._depth > 40:
            raise Unreadable(f"{label} calls itself")
        self._depth += 1
        try:
            frame = Frame(self, function, _bind(function, args, kwargs, label), label)
            if isinstance(found, ast.Lambda):
                return frame.evaluate(found.body)
            return frame.run(found.body)[1]
        finally:
            self._depth -= 1

    def call(self, callee: Value, args: list[Value], kwargs: dict[str, Value], text: str) -> Value:
        """The value of a call in a forward."""
        followed = find_followed(args, kwargs)
        if isinstance(callee, Method) and isinstance(callee.owner, Followed):
            return self._call_tensor_method(callee, args, kwargs)
        if isinstance(callee, Method):
            return self._call_function(callee.function, [Known(callee.owner), *args], kwargs, text)
        value = callee.value
        if isinstance(value, nn.Module):
            return self._call_module(value, args, kwargs)
        if any(value is function for function in _NOT_SCRIPTED):
            return Known(False)
        if value is isinstance:
            return UNKNOWN
        readable = isinstance(value, types.FunctionType) and not _is_torch_function(value)
        if followed is None:
            if readable and any(map(self.reaches_target, (*args, *kwargs.values()))):
                return self._call_function(value, args, kwargs, text)
            self._refuse_target(*args, *kwargs.values())
            return UNKNOWN
        result = self._step(followed, value, (args, kwargs))
        if result is None and readable:
            return self._call_function(value, args, kwargs, text)
        if result is None:
            raise Unreadable(f"{getattr(value, '__name__', text)} is not a step of average pool, flatten, linear")
        return result

    def _call_tensor_method(self, callee: Method, args: list[Value], kwargs: dict[str, Value]) -> Value:
        if callee.function in ("size", "dim"):
            return UNKNOWN
        if find_followed(args, kwargs) is not None:
            raise Unreadable(f"{callee.function} reads the output of the target layer twice")
        result = self._step(callee.owner, callee.function, ([callee.owner, *args], kwargs))
        if result is None:
            raise Unreadable(f"{callee.function} is not a step of average pool, flatten, linear")
        return result

    # ---- Attributes.

    def attribute(self, owner: Value, name: str) -> Value:
        """``owner.name``, without running descriptors."""
        if isinstance(owner, Followed):
            return UNKNOWN if name in METADATA else Method(name, owner)
        if isinstance(owner, Method):
            return UNKNOWN
        value = owner.value
        if isinstance(value, nn.Module):
            return self._module_attribute(value, name)
        if isinstance(value, types.ModuleType):
            return Known(vars(value)[name]) if name in vars(value) else UNKNOWN
        return UNKNOWN

    def _module_attribute(self, module: nn.Module, name: str) -> Value:
        """In Python's order: a property, the instance's, the class's, and what nn.Module.__getattr__ finds."""
        if name == "training":
            return Known(self._training)
        if (id(module), name) in self._overwritten:
            return UNKNOWN
        kind = type(module)
        found = inspect.getattr_static(kind, name, _ABSENT)
        if isinstance(found, property):
            return UNKNOWN
        if name in vars(module):
            return self._setting(module, name, vars(module)[name])
        if found is not _ABSENT:
            return _class_attribute(module, found)
        if kind.__getattr__ is not nn.Module.__getattr__:
            return UNKNOWN
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                return Known(None) if tensors[name] is None else UNKNOWN
        return Known(module._modules[name]) if name in module._modules else UNKNOWN

    def _setting(self, module: nn.Module, name: str, value: Any) -> Known:
        if is_plain(value):
            self.settings[module, name] = list(value) if isinstance(value, list) else value
        return Known(value)

    def write(self, owner: Value, name: str) -> None:
        """An attribute gets a value that is not known."""
        if isinstance(owner, Known):
            self._overwritten.add((id(owner.value), name))

    def reaches_target(self, value: Value) -> bool:
        """Whether an object may call the target layer."""
        if isinstance(value, Method):
            return self.reaches_target(Known(value.owner)) or value.owner is self._target
        value = value.value if isinstance(value, Known) else None
        if isinstance(value, nn.Module):
            return value is self._target or value in self._ancestors
        if isinstance(value, tuple | list):
            return any(self.reaches_target(Known(entry)) for entry in value)
        return isinstance(value, types.MethodType | functools.partial)

    def _refuse_target(self, *values: Value) -> None:
        for value in values:
            if self.reaches_target(value):
                raise Unreadable("the target layer is called by another function, a checkpoint for instance")


def _class_attribute(module: nn.Module, found: Any) -> Value:
    if isinstance(found, types.FunctionType):
        return Method(found, module)
    if isinstance(found, staticmethod):
        return Known(found.__func__)
    return Known(found) if is_plain(found) else UNKNOWN


def _is_torch_function(function: types.FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] == "torch"


def _bind(function: types.FunctionType, args: list[Value], kwargs: dict[str, Value], label: str) -> dict[str, Value]:
    """The variables of a call by name; raises Unreadable where they do not fit."""
    signature = inspect.signature(function, follow_wrapped=False)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise Unreadable(f"{label} needs other arguments ({error})") from None
    variables = {}
    for key, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            variables[key] = bound[key] if key in bound else Known(parameter.default)
        elif bound.get(key):
            raise Unreadable(f"{label} takes its arguments as *args")
        else:
            variables[key] = UNKNOWN
    return variables
