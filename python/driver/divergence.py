"""What is not finite any more: found at every checkpoint, before it is written, and traced to the batch that did it."""

import torch
from torch import Tensor, nn

from . import storage

FILE = "diverged.pt"


class Diverged(RuntimeError):
    """A loss, or a weight, stopped being finite; the message says when, what is kept, and how to go on."""


def not_finite(weights: dict[str, Tensor] | nn.Module | None) -> str:
    """The name of the first tensor that holds NaN or an infinity, "" where there is none."""
    weights = weights.state_dict() if isinstance(weights, nn.Module) else weights or {}
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    return next((k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()), "")


class Watch:
    """Remembers on the device the first step whose figures were not finite, so that a step waits for nothing.

    Attributes:
        first: int64 [], that step; -1 where there was none.
    """

    def __init__(self, device: torch.device):
        self.first = torch.full((), -1, device=device)

    def see(self, figures: Tensor, step: int) -> None:
        """Look at the figures [n] of a step."""
        self.first = torch.where((self.first < 0) & ~figures.isfinite().all(), step, self.first)


def check(trainer) -> None:
    """Raise :class:`Diverged`, on all ranks alike, where a loss since the start or a weight is not finite.

    The batch of that step and the one before it, whose update may have done it, are saved beside the checkpoints.
    """
    state, ranks, steps = trainer.state, trainer.ranks, trainer.steps
    own = int(trainer.watch.first), not_finite(state.model) or not_finite(state.twin)
    seen = ranks.collect(own)
    first = min((step for step, _ in seen if step >= 0), default=-1)
    broken = next((name for _, name in seen if name), "")
    if first < 0 and not broken:
        return
    step = first if first >= 0 else len(state.history) * steps + state.step - 1
    path = trainer.run.folder / FILE
    if not ranks.rank:
        batches = {number: trainer.batch_at(number) for number in (step - 1, step) if number >= 0}
        storage.save({"step": step, "not_finite": broken, "batches": batches}, path)
    what, where = ("loss", "") if first >= 0 else ("weights", f" in {broken}")
    raise Diverged(
        f"the {what} of epoch {step // steps + 1} must be finite, got NaN or an infinity{where} after step "
        f"{step % steps + 1} of {steps}. {trainer.run.last} is from before, {path} holds the batches that led there. "
        f"--resume would do the same again: start anew with a lower --lr, with --clip or with --amp off, perhaps from "
        f"--init {trainer.run.last}"
    )
