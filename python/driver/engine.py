"""One training run: a method and a seed, its epochs, its checkpoints, and at the end its heatmaps of the test split."""

import csv
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter

from cgc_kernels import CropFlip, GradCAM, gradcam

from . import metrics, storage
from .data.demo import CLASSES, IMAGE_SIZE, Split
from .methods import METHODS
from .settings import Settings
from .small_resnet import TARGET_LAYER, SmallResNet
from .views import apply_crops, random_crops

EVALUATION_BATCH = 100
STREAMS = ("train", "val", "test")


class Run(NamedTuple):
    """A method and a seed, and the folder that keeps what comes of them."""

    method: str
    seed: int
    folder: Path

    @property
    def last(self) -> Path:
        """Checkpoint of the last finished epoch."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the best validation accuracy."""
        return self.folder / "best.pt"

    @property
    def results(self) -> Path:
        """Logits and heatmaps of the test split; the run is finished when they exist."""
        return self.folder / "test.pt"


class Explained(NamedTuple):
    """What a model says about a split, on the CPU.

    Attributes:
        logits: float32 [N, K] of the original views.
        heatmaps: float32 [N, H, W] of the original views, for the labelled class.
        aug_heatmaps: float32 [N, H, W] of the augmented views, for the same class.
    """

    logits: Tensor
    heatmaps: Tensor
    aug_heatmaps: Tensor


class State:
    """All that a step changes; saved whole after every epoch, so that a resumed run goes on bit by bit."""

    def __init__(self, run: Run, settings: Settings, device: torch.device):
        torch.manual_seed(run.seed)
        self.model = SmallResNet(len(CLASSES)).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.random = generator(run.seed, "train")
        self.history: list[dict[str, float]] = []
        self.best = -1.0
        self.method, self.seed = run.method, run.seed

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "method": self.method,
            "seed": self.seed,
            "epoch": len(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
            "torch_random": torch.get_rng_state(),
            "history": self.history,
            "best": self.best,
        }
        storage.save(state, path)

    def load(self, path: Path) -> None:
        """Read a checkpoint back."""
        state = storage.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.set_state(state["random"])
        torch.set_rng_state(state["torch_random"])
        self.history, self.best = state["history"], state["best"]


def generator(seed: int, stream: str) -> Generator:
    """A CPU random state of its own for each seed and use, "train", "val" or "test"."""
    (mixed,) = np.random.SeedSequence([seed, STREAMS.index(stream)]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


def evaluation_crops(split: Split, seed: int, stream: str) -> CropFlip:
    """The augmented views of a split, the same whenever and for whichever method it is evaluated."""
    return random_crops(len(split.images), IMAGE_SIZE, generator(seed, stream))


def train(run: Run, settings: Settings, splits: dict[str, Split], device: torch.device, progress) -> None:
    """Train from the last checkpoint, if there is one, to the end; `progress` is a tqdm bar that counts steps."""
    state = State(run, settings, device)
    if run.last.exists():
        state.load(run.last)
    else:
        state.save(run.best)
        state.save(run.last)
    crops = {stream: evaluation_crops(splits[stream], run.seed, stream) for stream in ("val", "test")}
    cam = GradCAM(state.model, TARGET_LAYER)
    with cam, SummaryWriter(run.folder, purge_step=len(state.history) + 1) as board:
        for epoch in range(len(state.history) + 1, settings.epochs + 1):
            progress.set_description(f"{run.method} seed {run.seed} epoch {epoch}/{settings.epochs}")
            began = time.perf_counter()
            row = {"epoch": epoch, **train_epoch(cam, state, settings, splits["train"], epoch, device, progress)}
            row |= _validate(explain(cam, splits["val"], crops["val"], device), splits["val"], crops["val"])
            row["seconds"] = time.perf_counter() - began
            _record(row, run, state, board)
            progress.write(_line(row, run, settings))
        explained = explain(cam, splits["test"], crops["test"], device)
    storage.save(explained._asdict(), run.results)


def train_epoch(cam, state: State, settings: Settings, split: Split, epoch: int, device, progress) -> dict[str, float]:
    """One pass over the training images; returns the learning rate and the mean of both losses."""
    cam.train()
    steps = steps_per_epoch(settings)
    heatmap_loss = METHODS[state.method].heatmap_loss(settings.temperature, settings.consistency)
    order = torch.randperm(len(split.images), generator=state.random)
    sums = torch.zeros(2)
    for step in range(steps):
        done = (epoch - 1) * steps + step
        chosen = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        lr = settings.lr * schedule((done + 1) / steps, settings.warmup, settings.epochs)
        weight = settings.cgc_weight * ramp(done / (settings.epochs * steps), settings.ramp) if heatmap_loss else 0.0
        images, labels = split.images[chosen].to(device), split.labels[chosen].to(device)
        ce, term = _losses(cam, heatmap_loss, images, labels, state.random)
        _update(state.optimizer, ce + weight * term, lr)
        sums += torch.stack([ce.detach(), term.detach()]).cpu()
        progress.update()
    ce, term = (sums / steps).tolist()
    return {"lr": lr, "train_ce": ce, "train_heatmap_loss": term, "heatmap_loss_weight": weight}


def _losses(cam, heatmap_loss, images: Tensor, labels: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over three views, and the heatmap loss of the first two.

    The third view, seen by the cross-entropy alone, is in the released code; every method gets it.
    """
    crops, more_crops = (random_crops(len(images), IMAGE_SIZE, random).to(images.device) for _ in range(2))
    out, out_aug, more = cam(images, apply_crops(images, crops), extra=[apply_crops(images, more_crops)])
    ce = sum(cross_entropy(view.logits, labels) for view in (out, out_aug, more))
    if heatmap_loss is None:
        return ce, ce.new_zeros(())
    return ce, heatmap_loss(out.cam, out_aug.cam, crops)


def _update(optimizer, loss: Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def steps_per_epoch(settings: Settings) -> int:
    """Full batches only: a small last batch would have few negatives."""
    return settings.train_images // settings.batch_size


def schedule(epoch: float, warmup: int, epochs: int) -> float:
    """Learning rate at a fractional epoch, as a share of the highest: linear warm-up, then half a cosine to 0.

    The warm-up takes at most half of the epochs.
    """
    rising = min(warmup, epochs / 2)
    if epoch < rising:
        return epoch / rising
    return 0.5 * (1 + math.cos(math.pi * (epoch - rising) / (epochs - rising)))


def ramp(progress: float, share: float) -> float:
    """Weight of the heatmap loss at `progress` in 0..1, rising linearly from 0 to 1 over the first `share`."""
    return min(1.0, progress / share) if share > 0 else 1.0


@torch.no_grad()
def explain(cam, split: Split, crops: CropFlip, device: torch.device) -> Explained:
    """Logits and coarse heatmaps of the labelled class, for the images and their augmented views, in eval mode."""
    cam.eval()
    batches = []
    for part in torch.arange(len(split.images)).split(EVALUATION_BATCH):
        images, labels = split.images[part].to(device), split.labels[part].to(device)
        views = images, apply_crops(images, CropFlip(*(field[part] for field in crops)).to(device))
        out, out_aug = cam(*views, target=labels)
        heatmaps = [gradcam(view.cam.features, view.cam.gradients) for view in (out, out_aug)]
        batches.append([value.float().cpu() for value in (out.logits, *heatmaps)])
    return Explained(*(torch.cat(values) for values in zip(*batches, strict=True)))


def _validate(explained: Explained, split: Split, crops: CropFlip) -> dict[str, float]:
    maps, aug_maps = (metrics.fine(view, IMAGE_SIZE) for view in (explained.heatmaps, explained.aug_heatmaps))
    return {
        "val_accuracy": metrics.accuracy(explained.logits, split.labels),
        "val_content_heatmap": metrics.content_heatmap(maps, split.boxes),
        "val_effective_area": metrics.effective_area(maps),
        "val_pointing_game": metrics.pointing_game(maps, split.boxes, split.labels),
        "val_consistency": metrics.consistency(maps, aug_maps, crops),
    }


def _line(row: dict[str, float], run: Run, settings: Settings) -> str:
    return (
        f"{run.method} seed {run.seed} epoch {row['epoch']:2d}/{settings.epochs}: "
        f"cross-entropy {row['train_ce']:.2f}, validation accuracy {row['val_accuracy']:.1f} %, "
        f"CH {row['val_content_heatmap']:.1f} %, {row['seconds']:.1f} s"
    )


def _record(row: dict[str, float], run: Run, state: State, board: SummaryWriter) -> None:
    """Keep an epoch. last.pt comes last: a run stopped before it repeats the epoch and writes all the rest again."""
    state.history.append(row)
    with storage.replacing(run.folder / "metrics.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row.keys())
        writer.writeheader()
        writer.writerows(state.history)
    for name, value in row.items():
        if name != "epoch":
            board.add_scalar(name, value, row["epoch"])
    board.flush()
    if row["val_accuracy"] > state.best:
        state.best = row["val_accuracy"]
        state.save(run.best)
    state.save(run.last)
