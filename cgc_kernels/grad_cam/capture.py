"""Keeping a layer's output while a model runs."""

import sys
import threading

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from .attention import unfused


class Kept:
    """What one thread's run of the model has captured so far."""

    def __init__(self) -> None:
        self.unfuses = False
        self.disarm()

    def arm(self, differentiate: bool) -> None:
        """Capture from now on; with ``differentiate`` the model is differentiable from the layer on, in any mode."""
        self.armed, self.differentiate, self.attached = True, differentiate, torch.is_grad_enabled()

    def disarm(self) -> None:
        """Capture no more, and hold nothing."""
        self.armed = self.differentiate = self.attached = False
        self.output, self.calls, self.version = None, 0, 0
        if self.unfuses:
            self.unfuses = False
            unfused.release()

    def take(self, name: str, why_not_called) -> Tensor:
        """The output kept; raises RuntimeError unless the layer ran once and its output is still what it was."""
        if self.calls != 1:
            raise RuntimeError(
                f"target layer {name!r} must be called once in the model's forward, got {self.calls} calls; "
                + ("choose a module that runs exactly once" if self.calls else why_not_called())
            )
        if _has_version(self.output) and self.output._version != self.version:
            raise RuntimeError(
                f"the output of target layer {name!r} must stay as it is, got an in-place operation on it later in the "
                "model (an in-place ReLU, +=); take the in-place module as the target layer, or set inplace=False"
            )
        return self.output


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.kept = Kept()


class Capture:
    """Forward hook that keeps a layer's output while armed; knows nothing of the GradCAM, so that one can be freed.

    Every thread arms and takes its own: a model may run in several threads at once.
    """

    def __init__(self) -> None:
        self._threads, self._traced = _PerThread(), Kept()

    def __reduce__(self):
        return Capture, ()

    @property
    def kept(self) -> Kept:
        """This thread's; a compiled graph, which cannot ask for its thread, leaves nothing in its own."""
        return self._traced if torch.compiler.is_compiling() else self._threads.kept

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        kept = self.kept
        if not kept.armed:
            return None
        kept.calls += 1
        if kept.calls > 1:
            return None
        if not isinstance(output, Tensor):
            raise TypeError(f"the output of the target layer must be a tensor, got {type(output).__name__}")
        wanted = kept.attached or kept.differentiate
        if wanted and not torch.is_grad_enabled() and _in_reentrant_checkpoint():
            raise RuntimeError(
                "the target layer must not run inside a reentrant checkpoint, which gives it no gradient; use "
                "use_reentrant=False, or take a layer outside the checkpoint"
            )
        return _keep_differentiable(kept, output) if kept.differentiate else _keep(kept, output)


def _keep(kept: Kept, output: Tensor) -> None:
    kept.output = output
    if _has_version(output):
        kept.version = output._version


def _keep_differentiable(kept: Kept, output: Tensor) -> Tensor | None:
    if kept.attached:
        kept.unfuses = True
        unfused.ask()
    torch.set_grad_enabled(True)
    if output.requires_grad:
        return _keep(kept, output)
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "GradCAM without a closed form takes a gradient of its own, for which the target layer's output must have "
            "one, got a transform of torch.func that gives it none (jvp, vmap); use torch.autograd or torch.func.grad, "
            "or a target layer with a closed form (see GradCAM.gradient_path)"
        )
    _keep(kept, output.detach().requires_grad_())
    # A leaf that requires grad refuses in-place operations, so the model goes on with a copy.
    return kept.output.clone()


def _in_reentrant_checkpoint() -> bool:
    """Whether such a checkpoint, and not the model's own no_grad, switched gradients off."""
    if torch.compiler.is_compiling():
        return False
    frame = sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def _has_version(tensor: Tensor) -> bool:
    """Whether in-place operations on ``tensor`` can be counted: not in a compiled graph nor in inference mode."""
    return not torch.compiler.is_compiling() and not tensor.is_inference()
