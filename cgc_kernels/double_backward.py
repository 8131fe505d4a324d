"""Second derivatives of the loss are refused aloud: a formula that is merely missing would give wrong numbers."""

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
    return tuple(None if grad is None else _Refuse.apply(grad, *others) for grad in grads)


class DifferentiableOnce(torch.autograd.Function):
    """Identity whose gradient refuses to be differentiated."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad):
        return _Refuse.apply(grad)


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, *others):
        return grad.view_as(grad)

    backward = staticmethod(refuse)


class DependingOn(torch.autograd.Function):
    """`tensor`, unchanged, whose later use also counts as a use of `other`; first-order gradients are not affected."""

    @staticmethod
    def forward(ctx, tensor, other):
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad):
        return grad, None
