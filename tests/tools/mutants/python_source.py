"""Mutants of Triton kernels: of the bodies of functions decorated with `triton.jit`, and of nothing else."""

import ast
import re
from collections.abc import Iterator

from .common import Edit, Mutant, other_floats, other_integers, siblings, strides_like, to_mutant

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
OPERATORS = {
    ast.Add: ("+", "-", "sign"),
    ast.Sub: ("-", "+", "sign"),
    ast.Mult: ("*", "+", "product"),
    ast.Div: ("/", "*", "product"),
    ast.FloorDiv: ("//", "%", "index"),
    ast.Mod: ("%", "//", "index"),
    ast.BitAnd: ("&", "|", "logic"),
    ast.BitOr: ("|", "&", "logic"),
}
EXTREMA = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}
REDUCTIONS = ("sum", "max", "min", "argmax", "argmin", "cumsum", "expand_dims")
WRAPPERS = ("abs", "sqrt", "rsqrt", "exp", "exp2", "log", "log2", "floor", "ceil", "trans")
# Neither checks nor hints to the compiler change what is computed; a range that is no power of two only fails to run.
LEFT_ALONE = ("static_assert", "static_print", "device_assert", "device_print", "arange", "multiple_of")
LEFT_ALONE += ("max_contiguous", "max_constancy", "assume")
HINTS = ("num_stages", "num_warps", "eviction_policy", "cache_modifier", "loop_unroll_factor", "sem", "scope", "dtype")


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of one file, but those that parse to the same program."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and any(_is_jit(d) for d in function.decorator_list):
            kernel = _Function(source, function)
            same = kernel.meaning()
            edits = [edit for edit in kernel.edits() if kernel.meaning(edit) != same]
            found += [to_mutant(file, function.name, source, edit) for edit in edits]
    return found


def _is_jit(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return _last_name(called) == "jit"


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _callee(node: ast.AST) -> str:
    return _last_name(node.func) if isinstance(node, ast.Call) else ""


class _Function:
    """Edits of one function."""

    def __init__(self, source: str, function: ast.FunctionDef):
        self.source, self.function = source, function
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.text_lines = source.splitlines(keepends=True)
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        self.known = {a.arg: self.start(function) for a in arguments}  # names, and where they appear first
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and self.start(node) < self.known.get(node.id, len(source)):
                self.known[node.id] = self.start(node)

    def edits(self) -> Iterator[Edit]:
        documented = ast.get_docstring(self.function) is not None
        for statement in self.function.body[documented:]:
            yield from self.visit(statement, self.function)

    def visit(self, node: ast.AST, parent: ast.AST) -> Iterator[Edit]:
        if _callee(node) in LEFT_ALONE or (isinstance(node, ast.keyword) and node.arg in HINTS):
            return
        if method := getattr(self, f"of_{type(node).__name__}", None):
            yield from method(node, parent)
        for child in ast.iter_child_nodes(node):
            if child is not getattr(node, "annotation", None):
                yield from self.visit(child, node)

    def meaning(self, edit: Edit | None = None) -> str:
        """What the function, with an edit, parses to."""
        first, last = self.start(self.function), self.stop(self.function)
        text = self.source[first:last]
        if edit:
            text = text[: edit.start - first] + edit.text + text[edit.stop - first :]
        return ast.dump(ast.parse("if True:\n" + " " * (self.function.col_offset or 1) + text))

    # Positions: the tree's columns count bytes of UTF-8.

    def place(self, line: int, column: int) -> int:
        return self.lines[line - 1] + len(self.text_lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.AST) -> int:
        return self.place(node.lineno, node.col_offset)

    def stop(self, node: ast.AST) -> int:
        return self.place(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        return self.source[self.start(node) : self.stop(node)]

    def replace(self, kind: str, node: ast.AST, text: str) -> Edit:
        return Edit(kind, self.start(node), self.stop(node), text)

    def between(self, kind: str, left: ast.AST, right: ast.AST, old: str, new: str) -> Edit:
        """Replace the operator between two nodes."""
        gap = self.source[self.stop(left) : self.start(right)]
        gap = re.sub(r"#[^\n]*", lambda comment: " " * len(comment[0]), gap)
        at = self.stop(left) + gap.index(old)
        return Edit(kind, at, at + len(old), new)

    # Edits, by type of node.

    def of_Compare(self, node, parent):
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            text = {"Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">=", "Eq": "==", "NotEq": "!="}.get(
                type(operator).__name__
            )
            if text:
                yield self.between("comparison", left, right, text, COMPARISONS[text])
            left = right

    def of_BinOp(self, node, parent):
        if type(node.op) not in OPERATORS:
            return
        old, new, kind = OPERATORS[type(node.op)]
        yield self.between(kind, node.left, node.right, old, new)
        if old == "&" and not isinstance(node.right, ast.Constant):
            yield self.replace("mask", node, f"({self.text(node.left)})")
            yield self.replace("mask", node, f"({self.text(node.right)})")

    def of_BoolOp(self, node, parent):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield self.between("logic", node.values[0], node.values[1], old, new)

    def of_UnaryOp(self, node, parent):
        kind = "sign" if isinstance(node.op, ast.USub) else "logic"
        yield self.replace(kind, node, f"({self.text(node.operand)})")

    def of_AugAssign(self, node, parent):
        old, new, _ = OPERATORS.get(type(node.op), ("", "", ""))
        if old:
            yield self.between("accumulation", node.target, node.value, f"{old}=", "=")
            yield self.between("sign", node.target, node.value, f"{old}=", f"{new}=")
        yield self.replace("statement", node, "pass")

    def of_Assign(self, node, parent):
        target = node.targets[0]
        if isinstance(target, ast.Name) and self.known[target.id] < self.start(target):
            yield self.replace("statement", node, "pass")

    def of_Expr(self, node, parent):
        if isinstance(node.value, ast.Call) and _callee(node.value) not in LEFT_ALONE:
            yield self.replace("statement", node, "pass")

    def of_If(self, node, parent):
        yield self.replace("branch", node.test, f"not ({self.text(node.test)})")

    def of_IfExp(self, node, parent):
        text = f"{self.text(node.orelse)} if {self.text(node.test)} else {self.text(node.body)}"
        yield self.replace("branch", node, text)

    def of_Constant(self, node, parent):
        kind = "constant"
        if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add | ast.Sub):
            kind = "offset"
        elif isinstance(parent, ast.Compare | ast.Call) and (
            isinstance(parent, ast.Compare) or "range" in _callee(parent)
        ):
            kind = "bound"
        elif isinstance(parent, ast.keyword):
            kind = {"axis": "axis", "other": "other"}.get(parent.arg, "constant")
        elif _callee(parent) in REDUCTIONS and node in parent.args[1:]:
            kind = "axis"
        elif _callee(parent) in ("program_id", "num_programs"):
            kind = "index"
        if node.value == "ieee":
            yield self.replace("precision", node, '"tf32"')
        elif type(node.value) is int:
            others = [1 - node.value] if kind == "axis" and node.value in (0, 1) else other_integers(node.value)
            if kind == "index":
                others = [n for n in others if n < 3]
            for other in others:
                yield self.replace(kind, node, str(other))
        elif type(node.value) is float:
            for other in other_floats(node.value):
                yield self.replace(kind, node, repr(other))

    def of_Call(self, node, parent):
        name = _callee(node)
        if name in EXTREMA:
            at = self.stop(node.func) - len(name)
            yield Edit("extremum", at, at + len(name), EXTREMA[name])
        elif name == "where" and len(node.args) == 3:
            condition, yes, no = (self.text(argument) for argument in node.args)
            yield self.replace("branch", node, f"{self.text(node.func)}({condition}, {no}, {yes})")
        elif name in WRAPPERS and len(node.args) == 1:
            yield self.replace("function", node, f"({self.text(node.args[0])})")

    def of_keyword(self, node, parent):
        if node.arg == "mask" and _callee(parent) in ("load", "store") and not isinstance(node.value, ast.Constant):
            yield self.replace("mask", node.value, f"({self.text(node.value)}) | True")

    def of_Subscript(self, node, parent):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
        if len(parts) == 2 and any(isinstance(p, ast.Constant) and p.value is None for p in parts):
            yield self.replace("index", node.slice, ", ".join(self.text(part) for part in reversed(parts)))

    def of_Name(self, node, parent):
        if not isinstance(node.ctx, ast.Load):
            return
        position = self.start(node)
        for other in siblings(node.id):
            if self.known.get(other, position) < position:
                yield self.replace("sibling", node, other)
        for other in strides_like(node.id, self.known):
            yield self.replace("stride", node, other)
