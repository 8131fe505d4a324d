"""What torch.compile is told about functions of ours."""

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def constant_result(function: _Function) -> _Function:
    """``torch.compiler.assume_constant_result``, which would import torch._dynamo to set the same mark: a second."""
    function._dynamo_marked_constant = True
    return function


def skipped_frame(reason: str) -> Callable[[_Function], _Function]:
    """``torch.compiler.disable(recursive=False, reason=reason)``, which asks Dynamo at every call anew: 0.2 ms."""
    from torch._dynamo.eval_frame import skip_code

    def mark(function: _Function) -> _Function:
        skip_code(function.__code__)
        function._torchdynamo_disable, function._torchdynamo_disable_msg = True, reason
        return function

    return mark
