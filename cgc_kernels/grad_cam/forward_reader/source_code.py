"""Source code of functions as syntax trees."""

import ast
import functools
import linecache
import types
from typing import NamedTuple


@functools.lru_cache(maxsize=512)
def definition(code: types.CodeType) -> ast.FunctionDef | ast.Lambda | None:
    """The syntax tree of an undecorated function, if its file still holds the code that would run."""
    source = _Source.parse(code.co_filename, "".join(linecache.getlines(code.co_filename)))
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    found = source.functions.get((code.co_name, code.co_firstlineno, names), [])
    return found[0] if len(found) == 1 and code in source.codes else None


class _Source(NamedTuple):
    """A file: its functions without decorators by name, line and arguments, and all it compiles to."""

    functions: dict[tuple[str, int, tuple[str, ...]], list[ast.FunctionDef | ast.Lambda]]
    codes: set[types.CodeType]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def parse(filename: str, source: str) -> "_Source":
        functions, codes = {}, set()
        try:
            tree = ast.parse(source, filename)
            pending = [compile(source, filename, "exec", dont_inherit=True)]
        except (SyntaxError, ValueError):
            return _Source(functions, codes)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda) and not getattr(node, "decorator_list", []):
                given = node.args
                names = tuple(arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs))
                functions.setdefault((getattr(node, "name", "<lambda>"), node.lineno, names), []).append(node)
        while pending:
            code = pending.pop()
            codes.add(code)
            pending += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
        return _Source(functions, codes)


def largest_chains(node: ast.AST) -> list[ast.expr]:
    """The names and dotted names read in a node, each as long as it is written."""
    if isinstance(node, ast.Name):
        return [node] if isinstance(node.ctx, ast.Load) else []
    if isinstance(node, ast.Attribute):
        inner = node
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        if isinstance(inner, ast.Name):
            return [node] if isinstance(node.ctx, ast.Load) else []
    return [chain for child in ast.iter_child_nodes(node) for chain in largest_chains(child)]


def names_in(node: ast.AST, but_for: set[str]) -> list[str]:
    """The names in a node, but for those of which only such attributes are read."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in but_for:
        return []
    if isinstance(node, ast.Name):
        return [node.id]
    return [name for child in ast.iter_child_nodes(node) for name in names_in(child, but_for)]
