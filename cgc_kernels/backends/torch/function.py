"""autograd.Functions whose gradient is written out: fewer operators than autograd would record."""

import functools

import torch

from ... import double_backward


def apply_in_reverse(function: type[torch.autograd.Function], *inputs):
    """``function.apply``, of a function with a ``setup_context``, differentiated once and in reverse mode."""
    if torch.compiler.is_compiling():
        return function.apply(*inputs)
    return double_backward.apply_eagerly(_in_reverse(function), *inputs)


@functools.cache
def _in_reverse(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same function, which refuses other modes by name; Dynamo does not trace what can."""

    def backward(ctx, *grads):
        with torch.no_grad():
            gradients = function.backward(ctx, *grads)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = double_backward.refused(gradients, grads + ctx.saved_tensors)
        return gradients

    def jvp(ctx, *tangents):
        raise RuntimeError(
            "backend='torch' must be differentiated in reverse mode, got a forward-mode tangent; "
            "use backend='reference'"
        )

    methods = {"backward": staticmethod(backward), "jvp": staticmethod(jvp)}
    return type(function.__name__.lstrip("_"), (function,), methods)
