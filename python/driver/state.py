"""All that a training changes, and its checkpoints, from which it goes on bit by bit."""

import copy
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from cgc_kernels import GradCAM

from . import checkpoints, freezing, models, storage
from .methods import METHODS
from .ranks import Ranks
from .settings import Settings, kept


class Run(NamedTuple):
    """A method and a seed, and the folder that keeps what comes of them; a name, where settings tell runs apart."""

    method: str
    seed: int
    folder: Path
    name: str = ""

    @property
    def title(self) -> str:
        """What it is called in tables and pictures."""
        return self.name or METHODS[self.method].title

    @property
    def last(self) -> Path:
        """Newest checkpoint: after an epoch, or inside one."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the best validation accuracy."""
        return self.folder / "best.pt"

    @property
    def results(self) -> Path:
        """Logits and heatmaps of the test split; the run is finished when they exist."""
        return self.folder / "test.pt"


class State:
    """The model, its averaged copy, the optimizer, the loss scaler, what was counted, and every random state.

    Attributes:
        model: the whole model. twin: the same with averaged weights, None without --ema.
        frozen: what of the model is frozen, None without --freeze-until.
        keeps_features: whether `cam` and `averaged` take the frozen part's output in place of images.
        cam: GradCAM of the model. averaged: GradCAM of the averaged weights, None without --ema.
        history: a row per finished epoch. step: steps done in the epoch after them, over which `sums` and `seconds` go.
        best: best validation accuracy so far, percent.
        identity: what says whose checkpoint it is: the format, the settings, the run, the model and its classes.

    Raises ValueError where the model cannot be made as the settings say.
    """

    def __init__(self, run: Run, settings: Settings, data, device: torch.device, ranks: Ranks):
        _seed_all(run.seed)
        classifier = models.create(settings, len(data.classes), data.classes)
        model = classifier.model
        if settings.sync_batchnorm:
            if device.type != "cuda":
                raise ValueError("--sync-batchnorm must run on CUDA, got the CPU")
            model = models.synchronised(model)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.to(device)
        self.notes, self.classifier = classifier.notes, classifier
        self.frozen = _freeze(self.model, classifier.target_layer, settings) if settings.freeze_until else None
        self.keeps_features = bool(self.frozen and not self._note_obstacle(settings, ranks))
        self.twin = copy.deepcopy(self.model).requires_grad_(False) if settings.ema else None
        self.averaged = self._cam_of(self.twin).eval() if self.twin else None
        self.cam = self._cam_of(self.model)
        self.optimizer = _optimizer(self.model, classifier.head, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.history: list[dict[str, float]] = []
        self.best = -1.0
        self.step, self.seconds, self.sums = 0, 0.0, torch.zeros(3, device=device)
        self.skipped: list[str] = []
        self._ranks, self._ema, self._teaches = ranks, settings.ema, settings.teacher
        self.identity = {
            "format": checkpoints.FORMAT,
            "settings": kept(settings),
            "method": run.method,
            "seed": run.seed,
            "classifier": {
                "name": settings.model,
                "classes": list(data.classes),
                "image_size": settings.image_size,
                "target_layer": classifier.target_layer,
            },
        }
        if ranks.rank:
            torch.manual_seed(run.seed + (ranks.rank << 32))  # equal weights above, dropout of its own from here on

    @property
    def evaluated(self) -> GradCAM:
        """The GradCAM that is evaluated."""
        return self.cam if self.averaged is None else self.averaged

    def whole(self) -> GradCAM:
        """A GradCAM of all of the model that is evaluated, which takes images in any case."""
        return models.grad_cam(self.classifier._replace(model=self.twin or self.model))

    def _cam_of(self, model: nn.Module) -> GradCAM:
        """The GradCAM that takes features in place of images where they are kept."""
        net = freezing.rest_of(model, self.frozen) if self.keeps_features else model
        return models.grad_cam(self.classifier._replace(model=net))

    def _note_obstacle(self, settings: Settings, ranks: Ranks) -> str:
        """Why features are not kept, "" where they are; also left among the notes."""
        several = "several processes share the images" if ranks.world > 1 else ""
        anew = "" if settings.views else "the views are others in every pass, unless --views N says how many there are"
        obstacle = anew or several or self.frozen.obstacle
        if obstacle:
            self.notes.append(f"{self.frozen.layer}: what it gives is not kept, but made in every step: {obstacle}")
        return obstacle

    @torch.no_grad()
    def average_weights(self) -> None:
        """Move the averaged weights, and with them the buffers, towards the model's."""
        if self.averaged is None:
            return
        if self._teaches:  # then every rank looks through it at once, not only where the others are told its buffers
            self._ranks.align_buffers(self.model)
        pairs = zip(self.twin.state_dict().values(), self.model.state_dict().values(), strict=True)
        floats, others = [], []
        for pair in pairs:
            (floats if pair[0].is_floating_point() else others).append(pair)
        torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - self._ema)
        for old, new in others:
            old.copy_(new)

    def end_epoch(self, row: dict[str, float]) -> bool:
        """Count an epoch with its figures; returns whether its validation accuracy is the best so far."""
        self.history.append(row)
        self.step, self.seconds = 0, 0.0
        self.sums.zero_()
        better = row["val_accuracy"] > self.best
        self.best = max(self.best, row["val_accuracy"])
        return better

    def save(self, *paths: Path) -> None:
        """Write a checkpoint; called on all ranks, of which the first writes."""
        own = {"random": _random_state(), "sums": self.sums.cpu(), "skipped": self.skipped}
        ranks = self._ranks.collect(own)
        if self._ranks.rank:
            return
        state = {
            **self.identity,
            "epoch": len(self.history),
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.twin is None else self.twin.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": ranks,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
        }
        for path in paths:
            storage.save(state, path)

    def load(self, path: Path) -> None:
        """Read a checkpoint back; raises ValueError where it is not one of this training."""
        flag = "--resume: the last checkpoint"
        state = checkpoints.read_ours(path, flag)
        checkpoints.check_identity(state, self.identity, path, flag)
        checkpoints.load_whole(self.model, state["model"], path, flag)
        if self.twin is not None:
            checkpoints.load_whole(self.twin, state["ema"], path, flag)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history, self.best, self.step = state["history"], state["best"], state["step"]
        self.seconds, ranks = state["seconds"], state["ranks"]
        if len(ranks) == self._ranks.world:
            own = ranks[self._ranks.rank]
            _set_random_state(own["random"])
            self.sums.copy_(own["sums"])
            self.skipped = own["skipped"]
        else:
            self.sums.copy_(torch.stack([own["sums"] for own in ranks]).mean(0))
            self.notes.append(
                f"{path} was written by {len(ranks)} processes, now there are {self._ranks.world}: the images and "
                "views are the same, but dropout and the like start from new random states"
            )


def _freeze(model: nn.Module, target_layer: str, settings: Settings) -> freezing.Frozen:
    """Freeze what --freeze-until says; raises ValueError where that holds the layer that Grad-CAM explains."""
    frozen = freezing.freeze(model, settings.freeze_until, settings.image_size)
    if f"{target_layer}.".startswith(tuple(f"{name}." for name in frozen.modules)):
        raise ValueError(
            f"--freeze-until must come before {target_layer}, which Grad-CAM explains, got {settings.freeze_until}"
        )
    return frozen


def _optimizer(model: nn.Module, head: str, settings: Settings) -> torch.optim.Optimizer:
    """AdamW or SGD; each group remembers its highest rate as initial_lr."""
    own = {id(parameter) for parameter in model.get_submodule(head).parameters()} if settings.head_lr else set()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in own], "lr": settings.lr},
        {"params": [p for p in trainable if id(p) in own], "lr": settings.head_lr},
    ]
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _random_state() -> dict:
    """The random states of torch, numpy and Python, as tensors, numbers and strings."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def _set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
