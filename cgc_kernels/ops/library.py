"""How the stages' operators are defined and called."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from .. import double_backward

# What torch.library itself calls an operator's kernels in. A second operator, without autograd, would need no private
# name and save half a microsecond, but modes would record it, and what they record would have lost its gradient.
_below_autograd = torch._C._AutoDispatchBelowAutograd


class StageOperators(NamedTuple):
    """A stage's two operators, described once for every namespace and for eager and traced code."""

    name: str
    schema: str
    fake: Callable
    backward_schema: str
    fake_backward: Callable
    setup_context: Callable  # (ctx, inputs, output), which saves what the backward needs
    backward: Callable  # (operator, ctx, saved tensors, *grads) -> the gradients of the first inputs
    outputs: int = 1  # the first of the outputs, which have a gradient


class Namespace:
    """Operators without kernels; these come from a compiled library or from :meth:`implement`."""

    def __init__(self, name: str):
        self._library = torch.library.Library(name, "FRAGMENT")
        self.operators = getattr(torch.ops, name)

    def define(self, stage: StageOperators) -> Callable:
        """Define a stage's operators: schemas, fake kernels, autograd.

        Returns the stage as a function of the operator's inputs, differentiable once, that gives its first outputs.
        """
        operator = self.declare(stage.name, stage.schema, stage.fake)
        backward = self.declare(f"{stage.name}_backward", stage.backward_schema, stage.fake_backward)
        _register_autograd(operator, backward, stage)
        return _function(operator, _eager(operator, backward, stage), stage)

    def declare(self, name: str, schema: str, fake: Callable | None = None) -> torch._ops.OpOverload:
        """Declare one operator, without autograd; fake: its fake kernel, None where it takes no tensor."""
        if hasattr(self.operators, name):
            raise ImportError(
                "cgc_kernels must be imported once in a process, got a second import after its modules were taken out "
                "of sys.modules, or of another copy: torch keeps its operators until the end; restart Python"
            )
        self._library.define(f"{name}{schema}")
        operator = getattr(self.operators, name).default
        if fake is not None:
            torch.library.register_fake(operator, fake)
            torch.library.register_vmap(operator, functools.partial(_one_by_one, operator))
        return operator

    def implement(self, name: str, kernel, device_type: str) -> None:
        """Make a Python function the kernel of operator `name` on one type of device."""
        self._library.impl(name, kernel, device_type.upper())


def _function(operator, eager: type[torch.autograd.Function], stage: StageOperators) -> Callable:
    """The stage: by the operator where torch traces or transforms it, by a plain autograd.Function elsewhere."""

    def run(*inputs):
        if torch.compiler.is_compiling():
            return _first(operator(*inputs), stage)
        if torch._C._are_functorch_transforms_active():
            _refuse_transforms(inputs)
            return _first(operator(*inputs), stage)
        return eager.apply(*inputs)

    return run


def _eager(operator, backward, stage: StageOperators) -> type[torch.autograd.Function]:
    """A Function around the operators' kernels: the same formulas, at a fraction of torch.library's time."""
    setup_context, formula = stage.setup_context, stage.backward

    def forward(ctx, *inputs):
        with _below_autograd():
            output = operator(*inputs)
        setup_context(ctx, inputs, output)
        return _first(output, stage)

    def differentiate(ctx, *grads):
        saved = ctx.saved_tensors
        with _below_autograd():
            gradients = formula(backward, ctx, saved, *grads)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = double_backward.refused(gradients, grads + saved)
        return *gradients, *(None,) * (len(ctx.needs_input_grad) - len(gradients))

    def jvp(ctx, *tangents):
        raise RuntimeError(_TANGENT)

    methods = {"forward": forward, "backward": differentiate, "jvp": jvp}
    # Made with its name, which is what autograd's nodes are called by.
    return type(
        stage.name.capitalize(),
        (torch.autograd.Function,),
        {name: staticmethod(method) for name, method in methods.items()},
    )


def _register_autograd(operator, backward, stage: StageOperators) -> None:
    def setup_context(ctx, inputs, output):
        stage.setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[stage.outputs :])

    def formula(ctx, *grads):
        gradients = stage.backward(backward, ctx, ctx.saved_tensors, *grads[: stage.outputs])
        others = ctx.needs_input_grad[len(gradients) :]
        return *gradients, *([None] * len(other) if isinstance(other, list) else None for other in others)

    torch.library.register_autograd(operator, formula, setup_context=setup_context)
    torch.library.register_autograd(backward, double_backward.refuse)


def _one_by_one(operator, info, dims, *inputs):
    """Rule of torch.vmap: a call for each entry of the mapped dimension."""

    def entry(value, dim, index):
        if isinstance(value, (list, tuple)):
            return [entry(*pair, index) for pair in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, index)

    calls = (
        operator(*(entry(value, dim, index) for value, dim in zip(inputs, dims, strict=True)))
        for index in range(info.batch_size)
    )
    outputs = tuple(map(torch.stack, zip(*calls, strict=True)))
    return outputs, (0,) * len(outputs)


def _first(output: tuple, stage: StageOperators):
    return output[0] if stage.outputs == 1 else output[: stage.outputs]


_TANGENT = (
    "the fused kernels must be differentiated in reverse mode, got a forward-mode tangent; use backend='reference'"
)


_TRANSFORM = (
    "the fused kernels must be differentiated by torch.autograd (backward, autograd.grad), got a transform of "
    "torch.func (grad, vjp, jacrev); use backend='torch' or backend='reference'"
)


def _refuse_transforms(inputs) -> None:
    """Operators have no formula for a forward-mode tangent, which they would drop silently, nor for torch.func.grad."""
    for value in inputs:
        if not isinstance(value, torch.Tensor):
            continue
        if forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(_TANGENT)
        if torch._C._functorch.is_gradtrackingtensor(value):
            raise RuntimeError(_TRANSFORM)
