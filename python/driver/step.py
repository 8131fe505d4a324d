"""The training step: named views in, losses out, one update of the weights.

Of labelled images there are "view", "aug", which is cut from it, and "extra", for the cross-entropy alone. Where there
are unlabeled images, heatmaps are compared on theirs, "free view" and "free aug". One forward makes of all of them
outputs by the same names.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cgc_kernels import CAM, GradCAM, GradCAMOutput

from . import schedules
from .methods import METHODS
from .metrics import label_ranks
from .ranks import Ranks
from .settings import Settings
from .state import State
from .views import Batch

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
JUDGED = {1: ("extra",), 3: ("view", "aug", "extra")}  # views in the cross-entropy, by --ce-views
PAIR, FREE_PAIR = ("view", "aug"), ("free view", "free aug")  # views whose heatmaps are compared


class Losses(NamedTuple):
    """Of a step's views, scalars: cross-entropy summed over its views, heatmap loss of a pair of views, accuracy."""

    ce: Tensor
    heatmap: Tensor
    accuracy: Tensor


class Forward(nn.Module):
    """All views of a step in ONE forward, as DistributedDataParallel and torch.compile want it."""

    def __init__(self, cam: GradCAM, batched: bool):
        super().__init__()
        self.cam, self.batched = cam, batched

    def forward(
        self, views: dict[str, Tensor], explained: tuple[str, ...], target: Tensor | None = None
    ) -> dict[str, GradCAMOutput]:
        """Logits of all views, and Grad-CAM of those named, for the target or the first one's prediction."""
        names = (*explained, *(name for name in views if name not in explained))
        images, count = [views[name] for name in names], len(explained)
        if explained:
            outputs = self.cam(*images[:count], target=target, extra=images[count:], batched=self.batched)
        elif self.batched:
            logits = self.cam.model(torch.cat(images)).split([len(view) for view in images])
            outputs = [GradCAMOutput(own, None) for own in logits]
        else:
            outputs = [GradCAMOutput(self.cam.model(view), None) for view in images]
        return dict(zip(names, outputs, strict=True))


class Step:
    """Moves a state by one batch; ``steps`` is how many make an epoch."""

    def __init__(self, state: State, settings: Settings, data, device: torch.device, ranks: Ranks, steps: int):
        self.state, self.settings, self.data, self.device = state, settings, data, device
        self.ranks, self.steps = ranks, steps
        method = METHODS[settings.method]
        self.heatmap_loss = method.heatmap_loss(settings, ranks.group if settings.global_negatives else None)
        self.weight = method.weight(settings)
        net = Forward(state.cam, settings.batched_views)
        if settings.compile:
            net.compile()
        self.net = ranks.parallel(net, device)

    def __call__(self, batch: Batch, free: Batch | None, done: int) -> Tensor:
        """The update after `done` others; returns (CE, heatmap loss, accuracy). Nothing is read back from the device.

        free: unlabeled images, None where heatmaps are compared on the labelled ones.
        """
        state, settings = self.state, self.settings
        factor = schedules.learning_rate(settings, (done + 1) / self.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        figures = self.backward(batch, free, self.weight_at(done))
        if settings.clip:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average_weights()
        return figures

    def weight_at(self, done: int) -> float:
        """The heatmap loss's weight after `done` steps."""
        if self.heatmap_loss is None:
            return 0.0
        return self.weight * schedules.ramp(done / (self.steps * self.settings.epochs), self.settings.ramp)

    def backward(self, batch: Batch, free: Batch | None, weight: float) -> Tensor:
        """Put the gradients of one batch, part by part, into the parameters; returns its mean losses [3]."""
        self.state.optimizer.zero_grad(set_to_none=True)
        parts, figures = list(zip(self._parts(batch), self._parts(free), strict=True)), []
        for number, part in enumerate(parts, 1):
            with contextlib.nullcontext() if number == len(parts) else self.ranks.apart(self.net):
                losses = self.losses(*part)
                self.state.scaler.scale((losses.ce + weight * losses.heatmap) / len(parts)).backward()
            figures.append(torch.stack([figure.detach() for figure in losses]))
        return torch.stack(figures).mean(0)

    def losses(self, batch: Batch, free: Batch | None) -> Losses:
        """One forward of all views, and what the method asks of its outputs."""
        views, pair, crops = batch.views, PAIR, batch.crops
        if free is not None:
            views = views | {name: free.views[own] for name, own in zip(FREE_PAIR, PAIR, strict=True)}
            pair, crops = FREE_PAIR, free.crops
        original, augmented = pair
        explained, cams = () if self.heatmap_loss is None else pair, {}
        target = batch.labels if self.settings.target == "label" else None  # None: the class predicted
        if explained and self.settings.teacher:
            cams[original], target = self._teacher(views[original], target)
            explained = (augmented,)
        judged = JUDGED[self.settings.ce_views]
        with autocast(self.device, self.settings):
            outputs = self.net({name: views[name] for name in (*explained, *judged)}, explained, target)
        logits = {name: outputs[name].logits.float() for name in judged}
        ce = sum(cross_entropy(logits[name], batch.labels) for name in judged)
        accuracy = (label_ranks(logits[judged[0]].detach(), batch.labels) == 0).float().mean()
        # The settings say how large an image is: what was looked at may be features.
        cams |= {name: outputs[name].cam._replace(image_size=None) for name in explained}
        term = self.heatmap_loss(cams[original], cams[augmented], crops) if cams else ce.new_zeros(())
        return Losses(ce, term, accuracy)

    @torch.no_grad()
    def _teacher(self, view: Tensor, target: Tensor | None) -> tuple[CAM, Tensor]:
        """The averaged weights' Grad-CAM, and the class that it is for."""
        with autocast(self.device, self.settings):
            (out,) = self.state.averaged(view, target=target)
        return out.cam._replace(image_size=None), out.logits.argmax(1) if target is None else target

    def _parts(self, batch: Batch | None) -> list[Batch | None]:
        """What --accumulate makes of a batch, on the device."""
        if batch is None:
            return [None] * self.settings.accumulate
        return batch.on(self.device, self.data, self.settings.channels_last).parts(self.settings.accumulate)


def autocast(device: torch.device, settings: Settings) -> torch.autocast:
    """The precision of --amp."""
    return torch.autocast(device.type, AMP[settings.amp], enabled=settings.amp != "off")
