"""Second derivatives of the loss are refused aloud: a formula that is merely missing would give wrong numbers."""

import functools

import torch

MESSAGE = (
    "cgc_kernels has no second derivatives: the gradient of cgc_loss, gradcam or heatmap_loss must not be "
    "differentiated again, got a double backward (a gradient penalty?); build the penalty from other terms of the loss"
)


def refuse(ctx, *grads):
    """Autograd formula of every backward operator."""
    raise RuntimeError(MESSAGE)


def refused(grads, others):
    """`grads`, None among them, which refuse to be differentiated with respect to anything that `others` depend on."""
    return tuple(None if grad is None else apply_eagerly(_Refuse, grad, *others) for grad in grads)


def apply_eagerly(function: type[torch.autograd.Function], *inputs):
    """``function.apply``, of a function with a ``setup_context``, in eager mode: torch.func needs it, and elsewhere it
    costs more than small tensors do, since torch binds the arguments by signature."""
    transforming = torch._C._are_functorch_transforms_active()
    return (function if transforming else _in_one(function)).apply(*inputs)


@functools.cache
def _in_one(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same function, whose forward sets up its context itself."""

    def forward(ctx, *inputs):
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    methods = {"forward": forward, "setup_context": torch.autograd.Function.setup_context}
    return type(function.__name__, (function,), {name: staticmethod(method) for name, method in methods.items()})


class _Identity(torch.autograd.Function):
    """Its first argument, unchanged, in every mode of differentiation; torch.func needs a context set up apart."""

    @staticmethod
    def forward(tensor, *others):
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent, *others):
        return tangent.view_as(tangent)


class DifferentiableOnce(_Identity):
    """Identity whose gradient refuses to be differentiated."""

    @staticmethod
    def backward(ctx, grad):
        return apply_eagerly(_Refuse, grad)


class _Refuse(_Identity):
    backward = staticmethod(refuse)


class DependingOn(_Identity):
    """`tensor`, unchanged, whose later use also counts as a use of `other`; first-order gradients are not affected."""

    @staticmethod
    def backward(ctx, grad):
        return grad, None
