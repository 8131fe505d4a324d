"""One training run: a method and a seed, its steps, its epochs, its records, and at the end what its model explains."""

import contextlib
import csv
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from cgc_kernels import GradCAM, GradCAMOutput

from . import divergence, evaluation, metrics, schedules, storage
from .data import DataError
from .methods import METHODS
from .ranks import Ranks
from .settings import Settings
from .state import Run, State
from .views import Batch, Steps, TrainViews, loader

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Views(nn.Module):
    """All views of a step in ONE forward, as DistributedDataParallel and torch.compile want it."""

    def __init__(self, cam: GradCAM, batched: bool):
        super().__init__()
        self.cam, self.batched = cam, batched

    def forward(
        self, explained: list[Tensor], plain: list[Tensor], target: Tensor | None = None
    ) -> tuple[GradCAMOutput, ...]:
        """Logits of all views, and Grad-CAM of those to be explained, for the target or the first one's prediction."""
        if explained:
            return self.cam(*explained, target=target, extra=plain, batched=self.batched)
        if self.batched:
            logits = self.cam.model(torch.cat(plain)).split([len(view) for view in plain])
        else:
            logits = [self.cam.model(view) for view in plain]
        return tuple(GradCAMOutput(own, None) for own in logits)


class Trainer:
    """A state, and the step that moves it. Raises ValueError where the settings cannot be followed."""

    def __init__(self, run: Run, settings: Settings, data, device: torch.device, ranks: Ranks):
        self.settings = replace(settings, seed=run.seed, method=run.method, image_size=data.image_size)
        self.run, self.data, self.device, self.ranks = run, data, device, ranks
        self.steps = steps_per_epoch(settings, data)
        if settings.batch_size % (ranks.world * settings.accumulate):
            raise ValueError(
                f"--batch-size must be a multiple of processes * --accumulate, {ranks.world} * {settings.accumulate}, "
                f"got {settings.batch_size}"
            )
        self.state = State(run, self.settings, data, device, ranks)
        method = METHODS[run.method]
        self.weight = method.weight(settings)
        self.heatmap_loss = method.heatmap_loss(self.settings, ranks.group if settings.global_negatives else None)
        self.free = data.unlabeled if method.objective else None  # images for the heatmap loss alone
        if self.free is not None and len(self.free) < settings.batch_size:
            raise ValueError(f"--unlabeled must give at least --batch-size images, got {len(self.free)}")
        if self.heatmap_loss is not None and not self.state.cam.closed_form:
            check_twice(self.settings, self.state.model, ranks.world)
        self.net = self._wrapped(Views(self.state.cam, settings.batched_views))
        self.watch = divergence.Watch(device)

    def _wrapped(self, views: Views) -> nn.Module:
        if self.settings.compile:
            views.compile()
        if self.ranks.world == 1:
            return views
        return DistributedDataParallel(views, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def batches(self, first: int):
        """Batches of this rank from step `first` of the training to its end: (labelled, unlabeled or None)."""
        span = first, self.steps * self.settings.epochs, self.ranks.rank, self.ranks.world
        workers, pin = self.settings.workers, self.device.type == "cuda"
        streams = [loader(views, steps, workers, pin) for views, steps in self._streams(*span)]
        return zip(*streams, strict=True) if len(streams) > 1 else ((batch, None) for batch in streams[0])

    def batch_at(self, step: int) -> dict[str, dict]:
        """The batch of all ranks at a step of the training, as plain containers: images, views, crops and labels."""
        made = {}
        for views, steps in self._streams(step, step + 1):
            (keys,) = steps
            batch = views.__getitems__(keys)
            paths = [views.images.records[index].path for _, index in keys]
            made[steps.stream] = {"images": paths, **batch._asdict(), "crops": batch.crops._asdict()}
        return made

    def _streams(self, *span: int) -> list[tuple[TrainViews, Steps]]:
        """The views and the steps of the labelled images, and of the unlabeled ones if they are used."""
        sources = [(self.data.train, "train", "order"), (self.free, "unlabeled", "unlabeled order")]
        size, seed = self.settings.batch_size, self.settings.seed
        return [
            (TrainViews(images, self.settings, views), Steps(len(images), size, seed, order, *span))
            for images, views, order in sources
            if images is not None
        ]

    def save(self, *paths) -> None:
        """Write a checkpoint of what is finite; raises Diverged where something is not."""
        divergence.check(self)
        self.state.save(*paths)

    def train_mode(self) -> None:
        """BatchNorm and dropout as in training, BatchNorm frozen if so set."""
        self.net.train()
        if self.settings.freeze_batchnorm:
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def step(self, batch: Batch, free: Batch | None, done: int) -> None:
        """One update, the `done + 1`-th of the training. Nothing is read back from the device."""
        state, settings = self.state, self.settings
        factor = schedules.learning_rate(settings, (done + 1) / self.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        figures = self.backward(batch, free, self.weight_at(done))
        state.sums += figures
        self.watch.see(figures, done)
        if settings.clip:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average_weights()

    def weight_at(self, done: int) -> float:
        """The heatmap loss's weight after `done` steps."""
        if self.heatmap_loss is None:
            return 0.0
        return self.weight * schedules.ramp(done / (self.steps * self.settings.epochs), self.settings.ramp)

    def backward(self, batch: Batch, free: Batch | None, weight: float) -> Tensor:
        """Put the gradients of one batch into the parameters; returns (CE, heatmap loss, accuracy) on the device."""
        self.state.optimizer.zero_grad(set_to_none=True)
        parts, figures = self.settings.accumulate, []
        place = partial(Batch.on, device=self.device, data=self.data, channels_last=self.settings.channels_last)
        own, others = place(batch).parts(parts), [None] * parts if free is None else place(free).parts(parts)
        for number, (part, other) in enumerate(zip(own, others, strict=True), 1):
            synchronise = number == parts or self.ranks.world == 1
            with contextlib.nullcontext() if synchronise else self.net.no_sync():
                ce, term, accuracy = self._losses(part, other)
                self.state.scaler.scale((ce + weight * term) / parts).backward()
            figures.append(torch.stack([ce.detach(), term.detach(), accuracy]))
        return torch.stack(figures).mean(0)

    def _losses(self, batch: Batch, free: Batch | None) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy summed over its views, the heatmap loss of a pair of views, and the accuracy.

        The pair is the labelled images' own, or that of unlabeled ones, which the cross-entropy does not see.
        """
        judged = [batch.view, batch.aug, batch.extra] if self.settings.ce_views == 3 else [batch.extra]
        pair = batch if free is None else free
        explained, target, teacher = self._explained(pair)
        plain = [view for view in judged if all(view is not other for other in explained)]
        with torch.autocast(self.device.type, AMP[self.settings.amp], enabled=self.settings.amp != "off"):
            outputs = self.net(explained, plain, target)
        logits = [out.logits.float() for view in judged for out in self._of(view, explained + plain, outputs)]
        ce = sum(cross_entropy(own, batch.labels) for own in logits)
        accuracy = (metrics.label_ranks(logits[0].detach(), batch.labels) == 0).float().mean()
        if self.heatmap_loss is None:
            return ce, ce.new_zeros(()), accuracy
        cams = [out.cam for out in outputs[: len(explained)]]
        return ce, self.heatmap_loss(teacher or cams[0], cams[-1], pair.crops), accuracy

    @staticmethod
    def _of(view: Tensor, views: list[Tensor], outputs) -> list[GradCAMOutput]:
        return [out for other, out in zip(views, outputs, strict=True) if other is view]

    def _explained(self, pair: Batch):
        """The views whose heatmaps are trained, the class they are for (None: predicted), and the teacher's CAM."""
        if self.heatmap_loss is None:
            return [], None, None
        target = pair.labels if self.settings.target == "label" else None
        if not self.settings.teacher:
            return [pair.view, pair.aug], target, None
        with torch.no_grad(), torch.autocast(self.device.type, AMP[self.settings.amp], self.settings.amp != "off"):
            (out,) = self.state.averaged(pair.view, target=target)
        return [pair.aug], out.logits.argmax(1) if target is None else target, out.cam


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
    run, settings, data, ranks, state = trainer.run, trainer.settings, trainer.data, trainer.ranks, trainer.state
    if ranks.share(run.last.exists()):
        state.load(run.last)
    else:
        trainer.save(run.best, run.last)
    if not ranks.rank:
        for note in (*data.notes, *state.notes):
            progress.write(note)
    batches = iter(trainer.batches(len(state.history) * trainer.steps + state.step))
    board = SummaryWriter(run.folder, purge_step=len(state.history) + 1) if not ranks.rank else None
    with board or contextlib.nullcontext():
        for epoch in range(len(state.history) + 1, settings.epochs + 1):
            progress.set_description(f"{run.method} seed {run.seed} epoch {epoch}/{settings.epochs}")
            row = {"epoch": epoch, **_train_epoch(trainer, batches, epoch, progress), **_validate(trainer)}
            _record(row, trainer, board)
            if not ranks.rank:
                progress.write(_line(row, run, settings))
    if not ranks.rank:
        how = {"seed": run.seed, "faithful": settings.faithfulness, "workers": settings.workers}
        explained = evaluation.explain(state.evaluated, data.test, data, trainer.device, **how)
        storage.save({**explained._asdict(), "identity": state.identity}, run.results)
    ranks.wait()


def _train_epoch(trainer: Trainer, batches, epoch: int, progress) -> dict[str, float]:
    """What is left of one pass over the training images; returns its learning rate and mean losses."""
    state, settings, steps = trainer.state, trainer.settings, trainer.steps
    trainer.train_mode()
    began = time.perf_counter() - state.seconds
    for step in range(state.step, steps):
        batch, free = next(batches)
        trainer.step(batch, free, (epoch - 1) * steps + step)
        _note_skipped(state, batch.skipped + (free.skipped if free else []), progress)
        progress.update(settings.batch_size)
        state.step = step + 1
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
        "heatmap_loss_weight": trainer.weight_at(epoch * steps - 1),
        "train_accuracy": 100 * accuracy,
        "images_per_second": steps * settings.batch_size / state.seconds,
        "skipped": float(len({name for names in trainer.ranks.collect(state.skipped) for name in names})),
    }


def _note_skipped(state: State, names: list[str], progress) -> None:
    """Name each unreadable image once, and keep count."""
    for name in names:
        if name not in state.skipped:
            state.skipped.append(name)
            progress.write(f"skipped: {name}")


def _validate(trainer: Trainer) -> dict[str, float]:
    """Measures of the validation images, each rank looking at its share of them."""
    state, ranks = trainer.state, trainer.ranks
    began = time.perf_counter()
    ranks.align_buffers(state.evaluated)
    own = range(ranks.rank, len(trainer.data.val), ranks.world)
    where = {"seed": trainer.run.seed, "stream": "val", "workers": trainer.settings.workers}
    values = evaluation.per_image(state.evaluated, trainer.data.val, own, trainer.data, trainer.device, **where)
    shares = ranks.collect((list(own), values))
    order = torch.tensor([index for indices, _ in shares for index in indices]).argsort()
    columns = [share for _, share in shares if share]
    whole = {name: torch.cat([share[name] for share in columns])[order] for name in columns[0]}
    if whole["corrupt"].all():
        raise DataError(f"--data-root must hold val images that can be read, got none of {len(trainer.data.val)}")
    measured = {f"val_{name}": value for name, value in evaluation.summarise(whole).items()}
    return {**measured, "seconds": state.seconds + time.perf_counter() - began}


def _line(row: dict[str, float], run: Run, settings: Settings) -> str:
    heatmaps = f"CH {row['val_content_heatmap']:.1f} %, " if "val_content_heatmap" in row else ""
    return (
        f"{run.method} seed {run.seed} epoch {row['epoch']:2d}/{settings.epochs}: "
        f"cross-entropy {row['train_ce']:.2f}, validation accuracy {row['val_accuracy']:.1f} %, "
        f"{heatmaps}{row['seconds']:.1f} s"
    )


def _record(row: dict[str, float], trainer: Trainer, board: SummaryWriter | None) -> None:
    """Keep an epoch. last.pt comes last: a run stopped before it repeats what it lacks and writes the rest again."""
    run, state = trainer.run, trainer.state
    state.history.append(row)
    state.step, state.seconds = 0, 0.0
    state.sums.zero_()
    if board:
        with storage.replacing(run.folder / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            writer.writeheader()
            writer.writerows(state.history)
        for name, value in row.items():
            if name != "epoch":
                board.add_scalar(name, value, row["epoch"])
        board.flush()
    better = row["val_accuracy"] > state.best
    state.best = max(state.best, row["val_accuracy"])
    trainer.save(*([run.best] if better else []), run.last)
