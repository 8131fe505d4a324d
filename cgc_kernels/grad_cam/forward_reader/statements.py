"""The statements of a forward."""

import ast
from collections.abc import Sequence

import torch
from torch import nn

from .expressions import Expressions
from .values import UNKNOWN, Followed, Known, Unreadable, Value, known_truth

# Blocks that change how their statements compute, not what.
_MODES = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.autocast, torch.amp.autocast)


class Frame(Expressions):
    """One function being read: its variables and how its statements change them."""

    def run(self, statements: Sequence[ast.stmt]) -> tuple[bool, Value]:
        """Whether a return was reached, and its value."""
        for statement in statements:
            returned, value = self._run(statement)
            if returned:
                return True, value
        return False, Known(None)

    def _run(self, statement: ast.stmt) -> tuple[bool, Value]:
        if isinstance(statement, ast.Return):
            return True, self.evaluate(statement.value) if statement.value else Known(None)
        if isinstance(statement, ast.If):
            return self._branch(statement)
        if isinstance(statement, ast.With) and self._is_mode(statement):
            return self.run(statement.body)
        if isinstance(statement, ast.Raise):
            raise Unreadable(f"{self._label} raises")
        if isinstance(statement, ast.For) and self._iterated_modules(statement.iter) is not None:
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
            self.pass_over(statement)
        return False, None

    def _assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._variables[target.id] = value
            return
        if isinstance(value, Followed):
            raise Unreadable(f"{self._label} keeps the output of {value.source}")
        self.pass_over(target)

    def _branch(self, statement: ast.If) -> tuple[bool, Value]:
        chosen = known_truth(self.evaluate(statement.test))
        if chosen is not None:
            return self.run(statement.body if chosen else statement.orelse)
        if all(isinstance(inner, ast.Raise) for inner in statement.body):  # a check
            return self.run(statement.orelse)
        self.pass_over(statement)
        return False, None

    def _is_mode(self, statement: ast.With) -> bool:
        """Whether a block is one of _MODES alone."""
        calls = [item.context_expr for item in statement.items]
        if not all(isinstance(call, ast.Call) and self.evaluate(call) is UNKNOWN for call in calls):
            return False
        return all(self.evaluate(call.func) in [Known(mode) for mode in _MODES] for call in calls)

    def _iterated_modules(self, expression: ast.expr) -> list[nn.Module] | None:
        """The modules that a loop runs over, where they are known."""
        if not isinstance(expression, ast.Name | ast.Attribute):
            return None
        value = self.evaluate(expression)
        value = value.value if isinstance(value, Known) else None
        return list(value._modules.values()) if isinstance(value, nn.Sequential | nn.ModuleList) else None

    def _unroll(self, statement: ast.For) -> tuple[bool, Value]:
        for module in self._iterated_modules(statement.iter):
            self._assign(statement.target, Known(module))
            returned, value = self.run(statement.body)
            if returned:
                return True, value
        return self.run(statement.orelse)
