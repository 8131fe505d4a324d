"""One training run: a method and a seed, its steps, its epochs, and at the end what its model explains."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import divergence, evaluation, measuring, models, records, storage
from .data import DataError
from .features import Features
from .methods import METHODS
from .ranks import Ranks
from .settings import Settings
from .state import Run, State
from .step import Step, autocast
from .views import Batch, Steps, TrainViews, loader


class Trainer:
    """A run's data, its state, and the step that moves it. Raises ValueError where the settings cannot be followed."""

    def __init__(self, run: Run, settings: Settings, data, device: torch.device, ranks: Ranks):
        self.settings = replace(settings, seed=run.seed, method=run.method, image_size=data.image_size)
        self.run, self.data, self.device, self.ranks = run, data, device, ranks
        self.steps = steps_per_epoch(settings, data)
        compares = METHODS[run.method].objective is not None
        self.free = data.unlabeled if compares else None  # images for the heatmap loss alone
        check_shares(settings, self.free, ranks.world)
        self.state = State(run, self.settings, data, device, ranks)
        if compares and not self.state.cam.closed_form:
            check_twice(self.settings, self.state.model, ranks.world)
        self.features = self._features() if self.state.keeps_features else None
        self.step = Step(self.state, self.settings, data, device, ranks, self.steps)
        self.watch = divergence.Watch(device)

    def advance(self, batch: Batch, free: Batch | None, done: int) -> None:
        """One step, the `done + 1`-th of the training; its losses are added up, and watched, on the device."""
        losses = self.step(batch, free, done)
        self.state.sums += losses
        self.watch.see(losses, done)

    def train_mode(self) -> None:
        """BatchNorm and dropout as in training, BatchNorm frozen if so set."""
        self.step.net.train()
        if self.settings.freeze_batchnorm:
            models.freeze_batchnorm(self.step.net)
        for name in self.state.frozen.modules if self.state.frozen else ():
            self.state.model.get_submodule(name).eval()

    def save(self, *paths) -> None:
        """Write a checkpoint of what is finite; raises Diverged where something is not."""
        divergence.check(self)
        self.state.save(*paths)

    def batches(self, first: int) -> Iterator[tuple[Batch, Batch | None]]:
        """Batches of this rank from step `first` of the training to its end: (labelled, unlabeled or None)."""
        span = first, self.steps * self.settings.epochs, self.ranks.rank, self.ranks.world
        workers, pin = self.settings.workers, self.device.type == "cuda"
        streams = self._streams(*span)
        if self.features:
            workers, streams = 0, [(self.features.of_training(views), steps) for views, steps in streams]
        streams = [loader(views, steps, workers, pin) for views, steps in streams]
        return zip(*streams, strict=True) if len(streams) > 1 else ((batch, None) for batch in streams[0])

    def batch_at(self, step: int) -> dict[str, dict]:
        """The batch of all ranks at a step of the training, as plain containers: images, views, crops and labels."""
        made = {}
        for views, steps in self._streams(step, step + 1):
            (keys,) = steps
            batch = views.__getitems__(keys)
            made[steps.stream] = {
                "images": [views.images.records[index].path for _, index in keys],
                **batch.views,
                "crops": batch.crops._asdict(),
                "labels": batch.labels,
                "skipped": batch.skipped,
            }
        return made

    def evaluation_batches(self, stream: str) -> list | None:
        """The batches of "val" or "test" where they are kept as features."""
        return self.features.of_evaluation(stream) if self.features else None

    def _features(self) -> Features:
        precision = partial(autocast, self.device, self.settings)
        return Features(self.state.model, self.state.frozen, self.settings, self.data, self.device, precision)

    def _streams(self, *span: int) -> list[tuple[TrainViews, Steps]]:
        """The views and the steps of the labelled images, and of the unlabeled ones if they are used."""
        sources = [(self.data.train, "train", "order"), (self.free, "unlabeled", "unlabeled order")]
        size, seed = self.settings.batch_size, self.settings.seed
        return [
            (TrainViews(images, self.settings, views), Steps(len(images), size, seed, order, *span))
            for images, views, order in sources
            if images is not None
        ]


def check_shares(settings: Settings, free, world: int) -> None:
    """Raise ValueError where a batch cannot be shared by ranks and parts, or unlabeled images do not fill one."""
    if settings.batch_size % (world * settings.accumulate):
        raise ValueError(
            f"--batch-size must be a multiple of processes * --accumulate, {world} * {settings.accumulate}, "
            f"got {settings.batch_size}"
        )
    if free is not None and len(free) < settings.batch_size:
        raise ValueError(f"--unlabeled must give at least --batch-size images, got {len(free)}")


def check_twice(settings: Settings, model: nn.Module, world: int) -> None:
    """Raise ValueError where a model cannot be differentiated twice, as Grad-CAM by autograd demands."""
    normalises = any(isinstance(module, _BatchNorm) for module in model.modules())
    if settings.freeze_batchnorm or not normalises:
        return
    if settings.sync_batchnorm and world > 1:
        raise ValueError(
            "--sync-batchnorm has no second derivative, which Grad-CAM by autograd needs: use --freeze-batchnorm in "
            "its place, or choose a --target-layer that only average pooling and a linear layer follow"
        )


def steps_per_epoch(settings: Settings, data) -> int:
    """Full batches only. Raises ValueError where not even one is full."""
    steps = len(data.train) // settings.batch_size
    if not steps:
        raise ValueError(
            f"--batch-size must be at most the {len(data.train)} training images, got {settings.batch_size}"
        )
    return steps


def train(trainer: Trainer, progress) -> None:
    """Train from the last checkpoint, if there is one, to the end; `progress` is a tqdm bar that counts images."""
    run, settings, state = trainer.run, trainer.settings, trainer.state
    records.begin(trainer, progress)
    batches = iter(trainer.batches(len(state.history) * trainer.steps + state.step))
    with records.Records(trainer, progress) as kept:
        for epoch in range(len(state.history) + 1, settings.epochs + 1):
            progress.set_description(f"{run.method} seed {run.seed} epoch {epoch}/{settings.epochs}")
            trained = train_epoch(trainer, batches, epoch, kept)
            kept.keep({"epoch": epoch, **trained, **validate(trainer)})
    if not trainer.ranks.rank:
        how = {"seed": run.seed, "faithful": settings.faithfulness, "workers": settings.workers}
        if settings.faithfulness:  # which changes pixels
            cam = state.whole()
        else:
            cam, how["source"] = state.evaluated, trainer.evaluation_batches("test")
        explained = evaluation.explain(cam, trainer.data.test, trainer.data, trainer.device, **how)
        storage.save({**explained._asdict(), "identity": state.identity}, run.results)
    trainer.ranks.wait()


def train_epoch(trainer: Trainer, batches, epoch: int, kept: records.Records) -> dict[str, float]:
    """What is left of one pass over the training images; returns its learning rate and mean losses."""
    state, settings, steps = trainer.state, trainer.settings, trainer.steps
    trainer.train_mode()
    began = time.perf_counter() - state.seconds
    for number in range(state.step, steps):
        batch, free = next(batches)
        trainer.advance(batch, free, (epoch - 1) * steps + number)
        kept.skipped(batch.skipped + (free.skipped if free else []))
        kept.progress.update(settings.batch_size)
        state.step = number + 1
        if settings.checkpoint_every and state.step % settings.checkpoint_every == 0 and state.step < steps:
            state.seconds = time.perf_counter() - began
            trainer.save(trainer.run.last)
    state.seconds = time.perf_counter() - began
    trainer.save(trainer.run.last)  # before the validation, whose images may be unreadable
    ce, term, accuracy = (trainer.ranks.average(state.sums) / steps).tolist()
    return {
        "lr": state.optimizer.param_groups[0]["lr"],
        "train_ce": ce,
        "train_heatmap_loss": term,
        "heatmap_loss_weight": trainer.step.weight_at(epoch * steps - 1),
        "train_accuracy": 100 * accuracy,
        "images_per_second": steps * settings.batch_size / state.seconds,
        "skipped": float(len({name for names in trainer.ranks.collect(state.skipped) for name in names})),
    }


def validate(trainer: Trainer) -> dict[str, float]:
    """Measures of the validation images, each rank looking at its share of them."""
    state, ranks = trainer.state, trainer.ranks
    began = time.perf_counter()
    ranks.align_buffers(state.evaluated)
    own = range(ranks.rank, len(trainer.data.val), ranks.world)
    where = {"seed": trainer.run.seed, "stream": "val", "workers": trainer.settings.workers}
    where["source"] = trainer.evaluation_batches("val")
    values = evaluation.per_image(state.evaluated, trainer.data.val, own, trainer.data, trainer.device, **where)
    shares = ranks.collect((list(own), values))
    order = torch.tensor([index for indices, _ in shares for index in indices]).argsort()
    columns = [share for _, share in shares if share]
    whole = {name: torch.cat([share[name] for share in columns])[order] for name in columns[0]}
    if whole["corrupt"].all():
        raise DataError(f"--data-root must hold val images that can be read, got none of {len(trainer.data.val)}")
    measured = {f"val_{name}": value for name, value in measuring.summarise(whole).items()}
    return {**measured, "seconds": state.seconds + time.perf_counter() - began}
