"""What torch.compile is told about functions of ours."""

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def constant_result(function: _Function) -> _Function:
    """``torch.compiler.assume_constant_result``, which would import torch._dynamo to set the same mark: a second."""
    function._dynamo_marked_constant = True
    return function
