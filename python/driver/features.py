"""The frozen part's output for views that never change: made once, kept, and trained on in the views' place.

An image has --views pairs of random views, drawn from (seed, number, index) before the training, and its evaluation
views. What is kept depends on these, the frozen weights and the batches in which it was made alone, so that a training
that is resumed meets the same bits. With --features DIR it lies in files there, named after all that it depends on:
trainings that differ in their loss share them.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgc_kernels import CropFlip

from . import storage, workers
from .data import Data, Images
from .evaluation import MORE_VIEWS
from .evaluation_views import EvaluationBatch, batches
from .explained import BATCH as EVALUATED
from .freezing import Frozen, output_of
from .settings import DATA, FIELDS, MODEL, Settings
from .views import STREAMS, Batch, TrainViews

BATCH = 32  # images whose views are made at once
CPU_BATCH = 4  # of those a CPU looks at so many at once, whose maps its caches hold
DECISIVE = ("seed", "amp", "channels_last")  # beside all settings of the data and the model
FLAG = "--features: the file"


class KeptViews(Dataset):
    """Training batches by (pass, index), as :class:`TrainViews` makes them, but of features.

    Attributes:
        kept: features by view, "view" [1, N, ...], "aug" and "extra" [V, N, ...]; crops int64 [V, N, 5]; labels int64
            [N]; skipped, the paths of unreadable images.
        seed: of the views.
    """

    def __init__(self, kept: dict, seed: int):
        self.kept, self.seed = kept, seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """The batch of some (pass, index) pairs."""
        done, indices = (torch.tensor(numbers) for numbers in zip(*keys, strict=True))
        views = {name: self._of(name, done, indices) for name in ("view", "aug", "extra")}
        *box, flip = self._of("crops", done, indices).unbind(1)
        labels, skipped = self.kept["labels"][indices], self.kept["skipped"]
        return Batch(views, CropFlip(*box, flip.bool()), labels, skipped, are_features=True)

    def _of(self, name: str, done: Tensor, indices: Tensor) -> Tensor:
        return self.kept[name][done % len(self.kept[name]), indices]


class Features:
    """What the frozen part of a model makes of a run's images.

    Args:
        model, frozen: the whole model, and what of it is frozen.
        settings, data, device: of the run.
        autocast: the precision that training views are looked at in.
    """

    def __init__(
        self,
        model: nn.Module,
        frozen: Frozen,
        settings: Settings,
        data: Data,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.model, self.frozen, self.settings, self.data = model, frozen, settings, data
        self.device, self.autocast = device, autocast
        self._evaluated: dict[str, list[EvaluationBatch]] = {}

    def of_training(self, views: TrainViews) -> KeptViews:
        """The features of all training views of a stream, "train" or "unlabeled"."""
        kept = self._kept(STREAMS[views.stream], views.images, lambda: self._training_views(views))
        return KeptViews(kept, views.seed)

    def of_evaluation(self, stream: str) -> list[EvaluationBatch]:
        """The evaluation batches of "val" or "test", features in place of both views."""
        if stream not in self._evaluated:
            images = getattr(self.data, stream)
            kept = self._kept(stream, images, lambda: {"batches": list(self._evaluation_batches(images, stream))})
            self._evaluated[stream] = [
                EvaluationBatch(**{**batch, "crops": CropFlip(*batch["crops"])}) for batch in kept["batches"]
            ]
        return self._evaluated[stream]

    def _training_views(self, views: TrainViews) -> dict:
        skipped: list[str] = []
        passes = [self._pass(views, done, skipped) for done in range(self.settings.views)]
        random = {name: torch.stack([one[name] for one in passes]) for name in ("aug", "extra", "crops")}
        return {**random, "view": passes[0]["view"][None], "labels": passes[0]["labels"], "skipped": skipped}

    def _pass(self, views: TrainViews, done: int, skipped: list[str]) -> dict[str, Tensor]:
        """The features of all views of one pass; the original is the same in all, and is made in the first."""
        names = ("aug", "extra") if done else ("view", "aug", "extra")
        keys = [[(done, index) for index in part.tolist()] for part in torch.arange(len(views)).split(BATCH)]
        rows = []
        for batch in workers.load(views, batch_sampler=keys, num_workers=self.settings.workers):
            ready = batch.on(self.device, self.data, self.settings.channels_last)
            with self.autocast():
                row = {name: self._through(ready.views[name]) for name in names}
            rows.append(
                row | {"crops": torch.stack([field.long() for field in batch.crops], 1), "labels": batch.labels}
            )
            skipped += [path for path in batch.skipped if path not in skipped]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _evaluation_batches(self, images: Images, stream: str) -> Iterator[dict]:
        how = {"seed": self.settings.seed, "stream": stream, "workers": self.settings.workers}
        more = MORE_VIEWS if stream == "test" else 0
        for batch in batches(images, range(len(images)), self.data, more=more, **how):
            views = {name: self._through(getattr(batch, name).to(self.device)) for name in ("original", "augmented")}
            others = [self._through(view.to(self.device)) for view in batch.more.unbind(1)]
            views["more"] = torch.stack(others, 1) if others else views["original"][:, None][:, :0]
            yield batch._replace(**views, crops=list(batch.crops))._asdict()

    def _through(self, images: Tensor) -> Tensor:
        """The layer's output, on the CPU."""
        model = self.model.eval()
        parts = images.split(CPU_BATCH) if self.device.type == "cpu" else [images]
        return torch.cat([output_of(model, self.frozen.layer, part) for part in parts]).cpu()

    def _kept(self, stream: str, images: Images, make: Callable[[], dict]) -> dict:
        """What is in the file, or what is made now; making it leaves the random states as they are."""
        folder = self.settings.features
        path = Path(folder, f"{stream}-{self._key(stream, images)}.pt") if folder else None
        if path and path.exists():
            return storage.load(path, FLAG)
        began = time.perf_counter()
        modes = {module: module.training for module in self.model.modules()}
        with torch.random.fork_rng(devices=[]):
            kept = make()
        for module, mode in modes.items():
            module.training = mode
        seconds = time.perf_counter() - began
        print(f"{stream}: what {self.frozen.layer} makes of {len(images)} images, in {seconds:.0f} s", file=sys.stderr)
        if path:
            storage.save(kept, path)
        return kept

    def _key(self, stream: str, images: Images) -> str:
        """A name for all that the features depend on: settings, files with their sizes and times, frozen weights."""
        own = [name for name, field in FIELDS.items() if field.metadata["group"] in (DATA, MODEL)]
        settings = {name: getattr(self.settings, name) for name in (*own, *DECISIVE)}
        files = [(path, Path(path).stat()) for path in images.files()]
        stamps = [(path, status.st_size, status.st_mtime_ns) for path, status in files]
        records = [(record.path, record.label) for record in images.records]
        where = [stream, BATCH, CPU_BATCH, EVALUATED, MORE_VIEWS, torch.__version__, self.device.type]
        digest = hashlib.sha256(json.dumps([settings, stamps, records, where], sort_keys=True).encode())
        for name, value in self.model.state_dict().items():
            if name.startswith(tuple(f"{module}." for module in self.frozen.modules)):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:20]
