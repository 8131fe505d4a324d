"""What a model does with a layer's output, read from the source of its ``forward`` methods; nothing of it is run.

The reader follows one value, the target layer's output, from the call of that layer to what the model returns. All
that happens before, and beside it, may be unknown to it. Whatever touches that value, or may call the target layer,
must be understood, or the reading ends with :class:`Unreadable`, which says why.
"""

import ast
import builtins
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..module_facts import has_forward_hooks, has_pre_hooks, plain_type
from .source_code import definition, largest_chains, names_in


class Unreadable(Exception):
    """Why the way from the target layer to the logits is not known."""


class Flow:
    """The target layer's output, or what a step made of it."""

    def __init__(self, source: str):
        self.source, self.uses = source, 0


class Known(NamedTuple):
    """A Python object, read without running anything; ``known`` is False of :data:`UNKNOWN` alone."""

    value: Any
    known: bool = True


class Method(NamedTuple):
    """A function bound to an object."""

    function: Any
    owner: Any


UNKNOWN = Known(object(), False)
_ABSENT = object()
_METADATA = {"shape", "ndim", "dtype", "device"}
_PLAIN = (bool, int, float, str, tuple, list, type(None))
_NOT_SCRIPTED = (torch.jit.is_scripting, torch.jit.is_tracing)
# Blocks that change how their statements compute, not what.
_MODES = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.autocast, torch.amp.autocast)
_COMPARE = {
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
}


class Reader:
    """Reads the forward of ``model`` for one mode, ``training`` or not.

    ``step(value, callee, arguments)`` is asked what a call does to the followed value, where ``callee`` is a module, a
    function, a class (``dict`` also of a dict's display) or the name of a tensor's method and ``arguments`` are the
    known others by position and name; it returns a new :class:`Flow`, or None where it does not know the callee.

    After :meth:`read`, ``entered`` holds the modules whose own ``forward`` was read, and ``settings`` the plain
    attributes of modules that were.
    """

    def __init__(self, model: nn.Module, target: nn.Module, training: bool, step: Callable[..., Flow | None]):
        self._target, self._training, self._step = target, training, step
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._above = {m for m in model.modules() if any(child is target for child in m.modules())}
        self._written: set[tuple[int, str]] = set()
        self._depth = 0
        self._calls = 0
        self.entered: dict[nn.Module, bool] = {}  # whether the followed value goes in
        self.settings: dict[tuple[nn.Module, str], Any] = {}

    def read(self) -> Flow:
        """What the model returns for one argument."""
        result = self._call_module(self._model, [UNKNOWN], {})
        if self._calls != 1:
            raise Unreadable(f"{self._calls} calls of the target layer are seen in the source of the model")
        if not isinstance(result, Flow):
            raise Unreadable("the model does not return what follows the target layer alone")
        return result

    def path(self, module: nn.Module) -> str:
        """Its dotted name, empty for the model."""
        if module not in self._names:
            raise Unreadable(f"a {type(module).__name__} outside the model is called")
        return self._names[module]

    def name(self, module: nn.Module) -> str:
        """Its dotted name for people."""
        return self.path(module) or "the model"

    # ---- Calls.

    def _call_module(self, module: nn.Module, args: list, kwargs: dict):
        flow = _only_flow(args, kwargs)
        if module is self._target:
            if flow is not None:
                raise Unreadable("the target layer reads its own output")
            self._calls += 1
            return Flow("the target layer")
        if flow is None and module not in self._above:
            self._refuse_target(*args, *kwargs.values())
            return UNKNOWN
        if flow is not None:
            result = self._step(flow, module, (args, kwargs))
            if result is not None:
                return result
            if _of_torch(type(module).forward) and plain_type(module) is not nn.Sequential:
                raise Unreadable(f"{self.name(module)} is not a step of average pool, flatten, linear")
        return self._enter(module, args, kwargs, flow is not None)

    def _enter(self, module: nn.Module, args: list, kwargs: dict, follows: bool):
        """What the module's own forward returns."""
        name = self.name(module)
        if "forward" in vars(module):
            raise Unreadable(f"the forward of {name} was replaced by another")
        if type(module).__call__ is not nn.Module.__call__:
            raise Unreadable(f"{name} is called in a way of its own")
        if has_forward_hooks(module) or (follows and has_pre_hooks(module)):
            raise Unreadable(f"{name} has a hook")
        self.entered[module] = self.entered.get(module, False) or follows
        if plain_type(module) is nn.Sequential:
            (value,) = args
            for child in module._modules.values():
                value = self._call_module(child, [value], {})
            return value
        return self._call_function(type(module).forward, [Known(module), *args], kwargs, f"the forward of {name}")

    def _call_function(self, function, args: list, kwargs: dict, what: str):
        found = definition(function.__code__) if isinstance(function, types.FunctionType) else None
        if found is None:
            raise Unreadable(f"the source of {what} cannot be read")
        if self._depth > 40:
            raise Unreadable(f"{what} calls itself")
        self._depth += 1
        try:
            frame = _Frame(self, function, _bind(function, args, kwargs, what), what)
            if isinstance(found, ast.Lambda):
                return frame.evaluate(found.body)
            return frame.run(found.body)[1]
        finally:
            self._depth -= 1

    def call(self, callee, args: list, kwargs: dict, text: str):
        """The value of a call in a forward."""
        flow = _only_flow(args, kwargs)
        if isinstance(callee, Method) and isinstance(callee.owner, Flow):
            return self._call_on_flow(callee, args, kwargs)
        if isinstance(callee, Method):
            return self._call_function(callee.function, [Known(callee.owner), *args], kwargs, text)
        value = callee.value
        if isinstance(value, nn.Module):
            return self._call_module(value, args, kwargs)
        if any(value is function for function in _NOT_SCRIPTED):
            return Known(False)
        if value is isinstance:
            return UNKNOWN
        readable = isinstance(value, types.FunctionType) and not _of_torch(value)
        if flow is None:
            if readable and any(map(self.reaches_target, (*args, *kwargs.values()))):
                return self._call_function(value, args, kwargs, text)
            self._refuse_target(*args, *kwargs.values())
            return UNKNOWN
        result = self._step(flow, value, (args, kwargs))
        if result is None and readable:
            return self._call_function(value, args, kwargs, text)
        if result is None:
            raise Unreadable(f"{getattr(value, '__name__', text)} is not a step of average pool, flatten, linear")
        return result

    def _call_on_flow(self, callee: Method, args: list, kwargs: dict):
        if callee.function in ("size", "dim"):
            return UNKNOWN
        if _only_flow(args, kwargs) is not None:
            raise Unreadable(f"{callee.function} reads the output of the target layer twice")
        result = self._step(callee.owner, callee.function, ([callee.owner, *args], kwargs))
        if result is None:
            raise Unreadable(f"{callee.function} is not a step of average pool, flatten, linear")
        return result

    # ---- Attributes.

    def attribute(self, owner, name: str):
        """``owner.name``, without running descriptors."""
        if isinstance(owner, Flow):
            return UNKNOWN if name in _METADATA else Method(name, owner)
        if isinstance(owner, Method):
            return UNKNOWN
        value = owner.value
        if isinstance(value, nn.Module):
            return self._module_attribute(value, name)
        if isinstance(value, types.ModuleType):
            return Known(vars(value)[name]) if name in vars(value) else UNKNOWN
        return UNKNOWN

    def _module_attribute(self, module: nn.Module, name: str):
        """In Python's order: a property, the instance's own, the class's, and what nn.Module.__getattr__ finds."""
        if name == "training":
            return Known(self._training)
        if (id(module), name) in self._written:
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

    def _setting(self, module: nn.Module, name: str, value):
        if _is_plain(value):
            self.settings[module, name] = list(value) if isinstance(value, list) else value
        return Known(value)

    def write(self, owner, name: str) -> None:
        """An attribute gets a value that is not known."""
        if isinstance(owner, Known):
            self._written.add((id(owner.value), name))

    def reaches_target(self, value) -> bool:
        """Whether an object may call the target layer."""
        if isinstance(value, Method):
            return self.reaches_target(Known(value.owner)) or value.owner is self._target
        value = value.value if isinstance(value, Known) else None
        if isinstance(value, nn.Module):
            return value is self._target or value in self._above
        if isinstance(value, tuple | list):
            return any(self.reaches_target(Known(entry)) for entry in value)
        return isinstance(value, types.MethodType | functools.partial)

    def _refuse_target(self, *values) -> None:
        for value in values:
            if self.reaches_target(value):
                raise Unreadable("the target layer is called by another function, a checkpoint for instance")


class _Frame:
    """One function being read: its variables and how its statements change them."""

    def __init__(self, reader: Reader, function: types.FunctionType, variables: dict[str, Any], what: str):
        self._reader, self._function, self._variables, self._what = reader, function, variables, what

    def run(self, statements: Sequence[ast.stmt]) -> tuple[bool, Any]:
        """Whether a return was reached, and its value."""
        for statement in statements:
            returned, value = self._run(statement)
            if returned:
                return True, value
        return False, Known(None)

    def _run(self, statement: ast.stmt) -> tuple[bool, Any]:
        if isinstance(statement, ast.Return):
            return True, self.evaluate(statement.value) if statement.value else Known(None)
        if isinstance(statement, ast.If):
            return self._branch(statement)
        if isinstance(statement, ast.With) and self._is_mode(statement):
            return self.run(statement.body)
        if isinstance(statement, ast.Raise):
            raise Unreadable(f"{self._what} raises")
        if isinstance(statement, ast.For) and self._modules_of(statement.iter) is not None:
            return self._unroll(statement)
        if isinstance(statement, ast.Assign):
            value = self.evaluate(statement.value)
            for target in statement.targets:
                self._assign(target, value)
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            self._assign(statement.target, self.evaluate(statement.value))
        elif isinstance(statement, ast.Expr):
            self.evaluate(statement.value)
        elif isinstance(statement, ast.Assert):
            self.evaluate(statement.test)
        elif not isinstance(statement, ast.Pass):
            self._forget(statement)
        return False, None

    def _assign(self, target: ast.expr, value) -> None:
        if isinstance(target, ast.Name):
            self._variables[target.id] = value
            return
        if isinstance(value, Flow):
            raise Unreadable(f"{self._what} keeps the output of {value.source}")
        self._forget(target)

    def _branch(self, statement: ast.If) -> tuple[bool, Any]:
        chosen = _truth(self.evaluate(statement.test))
        if chosen is not None:
            return self.run(statement.body if chosen else statement.orelse)
        if all(isinstance(inner, ast.Raise) for inner in statement.body):  # a check
            return self.run(statement.orelse)
        self._forget(statement)
        return False, None

    def _is_mode(self, statement: ast.With) -> bool:
        """Whether a block is one of _MODES alone."""
        calls = [item.context_expr for item in statement.items]
        if not all(isinstance(call, ast.Call) and self.evaluate(call) is UNKNOWN for call in calls):
            return False
        return all(self.evaluate(call.func) in [Known(mode) for mode in _MODES] for call in calls)

    def _modules_of(self, expression: ast.expr) -> list[nn.Module] | None:
        """The modules that a loop runs over, where they are known."""
        if not isinstance(expression, ast.Name | ast.Attribute):
            return None
        value = self.evaluate(expression)
        value = value.value if isinstance(value, Known) else None
        return list(value._modules.values()) if isinstance(value, nn.Sequential | nn.ModuleList) else None

    def _unroll(self, statement: ast.For) -> tuple[bool, Any]:
        for module in self._modules_of(statement.iter):
            self._assign(statement.target, Known(module))
            returned, value = self.run(statement.body)
            if returned:
                return True, value
        return self.run(statement.orelse)

    def _forget(self, node: ast.AST) -> None:
        """Pass over code that is not understood: it must not touch the followed value nor reach the target layer."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return | ast.Break | ast.Continue | ast.Yield | ast.Await | ast.Lambda):
                raise Unreadable(f"{self._what} has control flow that only running it can follow")
        for name in names_in(node, _METADATA):
            if isinstance(self._variables.get(name), Flow):
                line = ast.unparse(node).splitlines()[0]
                raise Unreadable(f"the output of {self._variables[name].source} is used in {line!r}")
        for part in largest_chains(node):
            if self._reader.reaches_target(self.evaluate(part)):
                raise Unreadable(f"{self._what} reaches the target layer in a way that is not readable")
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
                self._variables[inner.id] = UNKNOWN
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store | ast.Del):
                self._reader.write(self.evaluate(inner.value), inner.attr)

    # ---- Expressions.

    def evaluate(self, node: ast.expr):
        """The value of an expression: Flow, Known, Method; UNKNOWN where it does not concern the target layer."""
        method = getattr(self, f"_on_{type(node).__name__.lower()}", None)
        if method is None:
            self._forget(node)
            return UNKNOWN
        return method(node)

    def _on_constant(self, node: ast.Constant):
        return Known(node.value)

    def _on_name(self, node: ast.Name):
        if node.id in self._variables:
            return self._variables[node.id]
        code = self._function.__code__
        if node.id in code.co_freevars:
            cell = self._function.__closure__[code.co_freevars.index(node.id)]
            try:
                return self._outer(cell.cell_contents)
            except ValueError:  # an empty cell
                return UNKNOWN
        for names in (self._function.__globals__, vars(builtins)):
            if node.id in names:
                return self._outer(names[node.id])
        return UNKNOWN

    @staticmethod
    def _outer(value):
        """Modules and functions outside the function; a plain value there may be another when the code runs."""
        return UNKNOWN if _is_plain(value) else Known(value)

    def _on_attribute(self, node: ast.Attribute):
        if _is_super(node.value):
            return self._from_super(node.attr)
        return self._reader.attribute(self.evaluate(node.value), node.attr)

    def _from_super(self, name: str):
        owner = next(iter(self._variables.values()))
        defined_in = self._name_of_class()
        if not isinstance(owner, Known) or defined_in is None:
            return UNKNOWN
        classes = type(owner.value).__mro__
        for parent in classes[classes.index(defined_in) + 1 :]:
            if name in vars(parent):
                return Method(vars(parent)[name], owner.value)
        return UNKNOWN

    def _name_of_class(self) -> type | None:
        value = self._on_name(ast.Name("__class__", ast.Load()))
        return value.value if isinstance(value.value, type) else None

    def _on_call(self, node: ast.Call):
        if any(isinstance(arg, ast.Starred) for arg in node.args) or any(k.arg is None for k in node.keywords):
            self._forget(node)
            return UNKNOWN
        callee = self.evaluate(node.func)
        args = [self.evaluate(arg) for arg in node.args]
        kwargs = {keyword.arg: self.evaluate(keyword.value) for keyword in node.keywords}
        if isinstance(callee, Flow):
            raise Unreadable(f"the output of {callee.source} is called")
        if isinstance(callee, Method) and not isinstance(callee.owner, Flow):
            involved = self._reader.reaches_target(callee) or _only_flow(args, kwargs) is not None
            if not involved:
                return UNKNOWN
        return self._reader.call(callee, args, kwargs, ast.unparse(node.func))

    def _on_tuple(self, node: ast.Tuple | ast.List):
        values = [self.evaluate(element) for element in node.elts]
        for value in values:
            if isinstance(value, Flow):
                raise Unreadable(f"{self._what} puts the output of {value.source} in a tuple or list")
        if all(isinstance(value, Known) and value.known for value in values):
            return Known(tuple(value.value for value in values))
        self._forget(node)
        return UNKNOWN

    _on_list = _on_tuple

    def _on_dict(self, node: ast.Dict):
        names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        if not all(isinstance(name, str) for name in names):
            self._forget(node)
            return UNKNOWN
        values = [self.evaluate(value) for value in node.values]
        if _only_flow(values, {}) is not None:
            return self._reader.call(Known(dict), [], dict(zip(names, values, strict=True)), "a dict")
        self._forget(node)
        return UNKNOWN

    def _on_unaryop(self, node: ast.UnaryOp):
        value = self.evaluate(node.operand)
        if isinstance(node.op, ast.Not):
            truth = _truth(value)
            return UNKNOWN if truth is None else Known(not truth)
        if isinstance(value, Known) and isinstance(node.op, ast.USub) and isinstance(value.value, int | float):
            return Known(-value.value)
        self._forget(node)
        return UNKNOWN

    def _on_boolop(self, node: ast.BoolOp):
        stop = isinstance(node.op, ast.Or)
        value, certain = UNKNOWN, True
        for operand in node.values:
            value = self.evaluate(operand)
            truth = _truth(value)
            if truth is stop:
                return Known(stop)
            certain = certain and truth is not None
        return value if certain else UNKNOWN

    def _on_compare(self, node: ast.Compare):
        left, right = self.evaluate(node.left), self.evaluate(node.comparators[0])
        if len(node.ops) > 1:
            self._forget(node)
            return UNKNOWN
        compare = _COMPARE[type(node.ops[0])]
        if isinstance(node.ops[0], ast.Is | ast.IsNot) and Known(None) in (left, right):
            known = left is not UNKNOWN and right is not UNKNOWN
            values = [v.value if isinstance(v, Known) else v for v in (left, right)]
            return Known(compare(*values)) if known else UNKNOWN
        if all(isinstance(value, Known) and _is_plain(value.value) for value in (left, right)):
            try:
                return Known(compare(left.value, right.value))
            except TypeError:
                return UNKNOWN
        return UNKNOWN

    def _on_ifexp(self, node: ast.IfExp):
        chosen = _truth(self.evaluate(node.test))
        if chosen is None:
            self._forget(node)
            return UNKNOWN
        return self.evaluate(node.body if chosen else node.orelse)

    def _on_subscript(self, node: ast.Subscript):
        owner, index = self.evaluate(node.value), self.evaluate(node.slice)
        modules = owner.value if isinstance(owner, Known) else None
        if isinstance(modules, nn.Sequential | nn.ModuleList) and isinstance(index, Known) and type(index.value) is int:
            return Known(list(modules._modules.values())[index.value])
        if isinstance(modules, nn.ModuleDict) and isinstance(index, Known) and index.value in modules._modules:
            return Known(modules._modules[index.value])
        self._forget(node)
        return UNKNOWN


def _class_attribute(module: nn.Module, found):
    if isinstance(found, types.FunctionType):
        return Method(found, module)
    if isinstance(found, staticmethod):
        return Known(found.__func__)
    return Known(found) if _is_plain(found) else UNKNOWN


def _is_plain(value) -> bool:
    """Numbers, strings and None, and tuples and lists of them."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _only_flow(args: list, kwargs: dict) -> Flow | None:
    """The followed value among the arguments of a call."""
    flows = [value for value in (*args, *kwargs.values()) if isinstance(value, Flow)]
    if len(flows) > 1:
        raise Unreadable(f"the output of {flows[0].source} is used twice in one call")
    return flows[0] if flows else None


def _truth(value) -> bool | None:
    """Of a plain known value."""
    return bool(value.value) if isinstance(value, Known) and _is_plain(value.value) else None


def _of_torch(function: types.FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] == "torch"


def _is_super(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return called and node.func.id == "super" and not node.args


def _bind(function: types.FunctionType, args: list, kwargs: dict, what: str) -> dict[str, Any]:
    """The variables of a call by name; raises Unreadable where they do not fit."""
    signature = inspect.signature(function, follow_wrapped=False)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise Unreadable(f"{what} needs other arguments ({error})") from None
    variables = {}
    for key, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            variables[key] = bound[key] if key in bound else Known(parameter.default)
        elif bound.get(key):
            raise Unreadable(f"{what} takes its arguments as *args")
        else:
            variables[key] = UNKNOWN
    return variables
