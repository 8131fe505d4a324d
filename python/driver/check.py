"""What a training would meet: every image and box read once, the classes, the layer, the cost of a step."""

import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from . import engine, workers
from .data import CorruptImage, Data, Images, open_data
from .ranks import Ranks
from .settings import Settings
from .state import Run

BATCH = 32  # images read at once
STEPS = 3  # made, of which the first is not timed
SHOWN = 20  # classes listed one by one; of more, the smallest


def check(settings: Settings, device: torch.device, ranks: Ranks) -> int:
    """Print what is wrong and what a training would be; returns 1 if something is wrong, else 0.

    Raises DataError where the data cannot be opened, ValueError where the settings cannot be followed.
    """
    settings = replace(settings, strict=False)  # all that is wrong, not what is first
    data, problems = open_data(settings), []
    for name, images in {"train": data.train, "val": data.val, "test": data.test, "unlabeled": data.unlabeled}.items():
        if images is not None:
            found = problems_of(images, settings.data_root, settings.workers)
            print(f"{name}: {len(images)} images, {len(images) - len(found)} of them without a problem")
            problems += [problem for problem in found if problem not in problems]
    print_classes(data)
    for note in data.notes:
        print(f"note: {note}")
    for problem in problems:
        print(f"wrong: {problem}")
    print_step(settings, data, device, ranks)
    print(f"{len(problems)} of the images have a problem." if problems else "Nothing is wrong. Nothing was trained.")
    return int(bool(problems))


def problems_of(images: Images, root: str, processes: int) -> list[str]:
    """What is wrong with each image that cannot be read, or has a box that lies outside it."""
    reading = workers.load(_Reading(images, root), batch_size=BATCH, num_workers=processes)
    return [problem for batch in reading for problem in batch if problem]


class _Reading(Dataset):
    """What is wrong with an image, "" where nothing is."""

    def __init__(self, images: Images, root: str):
        self.images, self.root = images, root

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> list[str]:
        return [self._problem(index) for index in indices]

    def _problem(self, index: int) -> str:
        try:
            image, _, boxes, path, *_ = self.images[index]
        except CorruptImage as error:
            return str(error)
        width, height = image.shape[:0:-1] if isinstance(image, torch.Tensor) else image.size
        for left, top, right, bottom in boxes.tolist():
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                box = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
                where = f"{self.images.table.line_of(path, self.root)}: " if self.images.table else ""
                return f"{where}{path}: the box {box} lies outside its {width} x {height} pixels"
        return ""


def print_classes(data: Data) -> None:
    """How many images each class has to train on and to be tested on."""
    counts = [images.labels.bincount(minlength=len(data.classes)).tolist() for images in (data.train, data.test)]
    rows = list(zip(*counts, data.classes, strict=True))
    few = len(rows) <= SHOWN
    print(f"{len(rows)} classes, training and test images{':' if few else ', the smallest:'}")
    for train, test, name in rows if few else sorted(rows)[:SHOWN]:
        print(f"  {train:7d} {test:7d}  {name}")


def print_step(settings: Settings, data: Data, device: torch.device, ranks: Ranks) -> None:
    """What Grad-CAM explains, and the time and the memory of a step."""
    run = Run(settings.methods[-1], settings.seed, Path(settings.output))
    steps, settings = engine.steps_per_epoch(settings, data), replace(settings, features="")
    few = {name: _first(getattr(data, name), STEPS * settings.batch_size) for name in ("train", "unlabeled")}
    data = data._replace(**few)  # of which features may have to be made
    trainer = engine.Trainer(run, settings, data, device, ranks)
    trainer.train_mode()
    layer, path = trainer.state.identity["classifier"]["target_layer"], trainer.state.cam.gradient_path
    print(f"{settings.model} on {device}: Grad-CAM explains {layer}, its gradients by {path}")
    for note in trainer.state.notes:
        print(f"note: {note}")
    batches, loading, stepping = iter(trainer.batches(0)), [], []
    for step in range(min(STEPS, trainer.steps * settings.epochs)):
        began = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        trainer.advance(*batch, step)
        figures = trainer.state.sums.tolist()  # waits for the device
        loading.append(loaded - began)
        stepping.append(time.perf_counter() - loaded)
    load, move = (statistics.median(times[1:] or times) for times in (loading, stepping))
    print(f"a step of {settings.batch_size} images: {move:.3f} s, its images {load:.3f} s, memory {_memory(device)}")
    print(f"{settings.epochs} epochs of {steps} steps; cross-entropy at first {figures[0] / len(stepping):.2f}")


def _first(images: Images | None, count: int) -> Images | None:
    return images and images.subset(range(min(count, len(images))))


def _memory(device: torch.device) -> str:
    """The most that was taken."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of the GPU"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{most / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB"  # in bytes there, in KiB elsewhere
