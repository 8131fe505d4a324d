"""The expressions of a forward."""

import ast
import builtins
import types

from torch import nn

from .source_code import largest_chains, names_in
from .values import METADATA, UNKNOWN, Followed, Known, Method, Unreadable, Value, find_followed, is_plain, known_truth

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


class Expressions(ast.NodeVisitor):
    """Evaluates the expressions of ``function``, whose ``variables`` are known by name.

    ``reader`` answers what calls and attributes give; ``label`` names the function for people.
    """

    def __init__(self, reader, function: types.FunctionType, variables: dict[str, Value], label: str):
        self._reader, self._function, self._variables, self._label = reader, function, variables, label

    def evaluate(self, node: ast.expr) -> Value:
        """The value of an expression; UNKNOWN where it does not concern the target layer."""
        return self.visit(node)

    def generic_visit(self, node: ast.expr) -> Value:
        """Any other expression."""
        self.pass_over(node)
        return UNKNOWN

    def visit_Constant(self, node: ast.Constant) -> Value:
        return Known(node.value)

    def visit_Name(self, node: ast.Name) -> Value:
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
    def _outer(value) -> Value:
        """Modules and functions outside the function; a plain value there may be another when the code runs."""
        return UNKNOWN if is_plain(value) else Known(value)

    def visit_Attribute(self, node: ast.Attribute) -> Value:
        if _is_super(node.value):
            return self._from_super(node.attr)
        return self._reader.attribute(self.evaluate(node.value), node.attr)

    def _from_super(self, name: str) -> Value:
        owner = next(iter(self._variables.values()))
        defined_in = self._enclosing_class()
        if not isinstance(owner, Known) or defined_in is None:
            return UNKNOWN
        classes = type(owner.value).__mro__
        for parent in classes[classes.index(defined_in) + 1 :]:
            if name in vars(parent):
                return Method(vars(parent)[name], owner.value)
        return UNKNOWN

    def _enclosing_class(self) -> type | None:
        value = self.visit_Name(ast.Name("__class__", ast.Load()))
        return value.value if isinstance(value.value, type) else None

    def visit_Call(self, node: ast.Call) -> Value:
        if any(isinstance(arg, ast.Starred) for arg in node.args) or any(k.arg is None for k in node.keywords):
            self.pass_over(node)
            return UNKNOWN
        callee = self.evaluate(node.func)
        args = [self.evaluate(arg) for arg in node.args]
        kwargs = {keyword.arg: self.evaluate(keyword.value) for keyword in node.keywords}
        if isinstance(callee, Followed):
            raise Unreadable(f"the output of {callee.source} is called")
        if isinstance(callee, Method) and not isinstance(callee.owner, Followed):
            involved = self._reader.reaches_target(callee) or find_followed(args, kwargs) is not None
            if not involved:
                return UNKNOWN
        return self._reader.call(callee, args, kwargs, ast.unparse(node.func))

    def visit_Tuple(self, node: ast.Tuple | ast.List) -> Value:
        values = [self.evaluate(element) for element in node.elts]
        for value in values:
            if isinstance(value, Followed):
                raise Unreadable(f"{self._label} puts the output of {value.source} in a tuple or list")
        if all(isinstance(value, Known) and value.known for value in values):
            return Known(tuple(value.value for value in values))
        self.pass_over(node)
        return UNKNOWN

    visit_List = visit_Tuple

    def visit_Dict(self, node: ast.Dict) -> Value:
        names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        if not all(isinstance(name, str) for name in names):
            self.pass_over(node)
            return UNKNOWN
        values = [self.evaluate(value) for value in node.values]
        if find_followed(values, {}) is not None:
            return self._reader.call(Known(dict), [], dict(zip(names, values, strict=True)), "a dict")
        self.pass_over(node)
        return UNKNOWN

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Value:
        value = self.evaluate(node.operand)
        if isinstance(node.op, ast.Not):
            truth = known_truth(value)
            return UNKNOWN if truth is None else Known(not truth)
        if isinstance(value, Known) and isinstance(node.op, ast.USub) and isinstance(value.value, int | float):
            return Known(-value.value)
        self.pass_over(node)
        return UNKNOWN

    def visit_BoolOp(self, node: ast.BoolOp) -> Value:
        stop = isinstance(node.op, ast.Or)
        value, certain = UNKNOWN, True
        for operand in node.values:
            value = self.evaluate(operand)
            truth = known_truth(value)
            if truth is stop:
                return Known(stop)
            certain = certain and truth is not None
        return value if certain else UNKNOWN

    def visit_Compare(self, node: ast.Compare) -> Value:
        left, right = self.evaluate(node.left), self.evaluate(node.comparators[0])
        if len(node.ops) > 1:
            self.pass_over(node)
            return UNKNOWN
        compare = _COMPARE[type(node.ops[0])]
        if isinstance(node.ops[0], ast.Is | ast.IsNot) and Known(None) in (left, right):
            known = left is not UNKNOWN and right is not UNKNOWN
            values = [v.value if isinstance(v, Known) else v for v in (left, right)]
            return Known(compare(*values)) if known else UNKNOWN
        if all(isinstance(value, Known) and is_plain(value.value) for value in (left, right)):
            try:
                return Known(compare(left.value, right.value))
            except TypeError:
                return UNKNOWN
        return UNKNOWN

    def visit_IfExp(self, node: ast.IfExp) -> Value:
        chosen = known_truth(self.evaluate(node.test))
        if chosen is None:
            self.pass_over(node)
            return UNKNOWN
        return self.evaluate(node.body if chosen else node.orelse)

    def visit_Subscript(self, node: ast.Subscript) -> Value:
        owner, index = self.evaluate(node.value), self.evaluate(node.slice)
        modules = owner.value if isinstance(owner, Known) else None
        if isinstance(modules, nn.Sequential | nn.ModuleList) and isinstance(index, Known) and type(index.value) is int:
            return Known(list(modules._modules.values())[index.value])
        if isinstance(modules, nn.ModuleDict) and isinstance(index, Known) and index.value in modules._modules:
            return Known(modules._modules[index.value])
        self.pass_over(node)
        return UNKNOWN

    def pass_over(self, node: ast.AST) -> None:
        """Pass over code that is not understood: it must not touch the followed value nor reach the target layer."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return | ast.Break | ast.Continue | ast.Yield | ast.Await | ast.Lambda):
                raise Unreadable(f"{self._label} has control flow that only running it can follow")
        for name in names_in(node, METADATA):
            if isinstance(self._variables.get(name), Followed):
                line = ast.unparse(node).splitlines()[0]
                raise Unreadable(f"the output of {self._variables[name].source} is used in {line!r}")
        for part in largest_chains(node):
            if self._reader.reaches_target(self.evaluate(part)):
                raise Unreadable(f"{self._label} reaches the target layer in a way that is not readable")
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
                self._variables[inner.id] = UNKNOWN
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store | ast.Del):
                self._reader.write(self.evaluate(inner.value), inner.attr)


def _is_super(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return called and node.func.id == "super" and not node.args
