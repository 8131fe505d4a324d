"""What the tests of the training driver share: tiny runs, as processes and in this one."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import train
from driver import data, engine, settings, storage
from driver.explained import Explained
from driver.ranks import Ranks
from tqdm import tqdm

from tests.support import ROOT

TRAIN = ROOT / "python" / "train.py"
TINY = ["--train-images", "64", "--val-images", "20", "--test-images", "40", "--warmup", "1"]
TIMINGS = {"seconds", "images_per_second"}


@contextmanager
def started(*flags, script=TRAIN, processes: int = 1):
    """A script as a process of one thread, or as several under torchrun, open to SIGINT even where this one is not."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else []), str(script), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"},
    )
    signal.signal(signal.SIGINT, inherited)
    try:
        yield process
    finally:
        process.terminate()  # torchrun ends its children when it is asked to, not when it is killed
        try:
            process.communicate(timeout=60)
        except (subprocess.TimeoutExpired, ValueError):
            process.kill()


def drive(*flags, **how) -> str:
    """Run the driver to its end; returns what it printed."""
    with started(*flags, **how) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def wait_until(process, condition, seconds: float = 300):
    """Until a condition holds of a running process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def inside_an_epoch(folder: Path, epoch: int) -> bool:
    """Whether the last checkpoint was written inside an epoch, after `epoch` whole ones at least."""
    last = folder / "last.pt"
    if not last.exists():
        return False
    state = storage.load(last)
    return state["epoch"] >= epoch and state["step"] > 0


def kill_inside_an_epoch(process, folder: Path, epoch: int, victim=None) -> None:
    """kill -9, of the process or of `victim()`, while the last checkpoint is one from inside an epoch."""
    while True:
        wait_until(process, lambda: inside_an_epoch(folder, epoch))
        number = process.pid if victim is None else victim()
        os.kill(number, signal.SIGSTOP)
        if inside_an_epoch(folder, epoch):
            os.kill(number, signal.SIGKILL)
            return
        os.kill(number, signal.SIGCONT)


def assert_same(first, second, where: str = "it"):
    """Equal to the last bit however nested, except for the time it took and the run's own settings."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first.keys() - TIMINGS:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert first == second, where


def tiny_trainer(
    *flags, method="cgc_consistent", seed=7, folder=Path("unused"), ranks=None, dtype=torch.float32
) -> engine.Trainer:
    """A trainer in this process; the flags come after those of a tiny demo."""
    chosen = settings.parse([*TINY, "--seed", str(seed), "--output", str(folder), *map(str, flags)])
    run, opened = engine.Run(method, seed, folder), data.open_data(chosen)
    with default_dtype(dtype):
        return engine.Trainer(run, chosen, opened, torch.device("cpu"), ranks or Ranks())


@contextmanager
def default_dtype(dtype: torch.dtype):
    """The dtype of new weights, and of images once they are normalised."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def train_steps(trainer: engine.Trainer, count: int, first: int = 0) -> dict[str, torch.Tensor]:
    """The weights after some steps."""
    trainer.train_mode()
    batches = iter(trainer.batches(first))
    for step in range(first, first + count):
        trainer.advance(*next(batches), step)
    return {name: value.clone() for name, value in trainer.state.model.state_dict().items()}


def first_gradients(*flags, ranks=None) -> dict[str, torch.Tensor]:
    """The gradients of a tiny trainer's first batch, in float64."""
    trainer = tiny_trainer(*flags, ranks=ranks, dtype=torch.float64)
    trainer.train_mode()
    with default_dtype(torch.float64):
        trainer.step.backward(*next(iter(trainer.batches(0))), weight=0.5)
    return {name: parameter.grad.clone() for name, parameter in trainer.state.model.named_parameters()}


def no_bar():
    """A progress bar that shows nothing."""
    return tqdm(disable=True)


def answers(heatmaps: torch.Tensor, **known) -> Explained:
    """What a model says about images of which its heatmaps [N, H, W] are known, and perhaps more; the rest is empty."""
    count, _, width = heatmaps.shape
    size = known.get("image_size", width)
    none, nothing = torch.zeros_like(heatmaps), torch.zeros(0, 2, dtype=torch.float64)
    zeros, no_masks = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 0, 0, dtype=torch.uint8)
    fields = {
        **dict.fromkeys(("predicted", "ranks", "labels", "box_counts"), zeros),
        **dict.fromkeys(("heatmaps", "aug_heatmaps"), heatmaps),
        **dict.fromkeys(("runner_up_heatmaps", "distractor_heatmaps", "norms", "centred_heatmaps"), none),
        **dict.fromkeys(("masks", "distractor_masks"), no_masks),
        **dict.fromkeys(("insertion", "deletion"), nothing),
        "crops": torch.tensor([[0, 0, size, size, 0]] * count),
        "more_heatmaps": none[:, None][:, :0],
        "more_crops": torch.zeros(count, 0, 5, dtype=torch.int64),
        "boxes": torch.zeros(0, 4),
        "distractors": zeros - 1,
        "groups": torch.arange(count),
        "corrupt": zeros.bool(),
        "image_size": size,
    }
    return Explained(**{**fields, **known})


# ---- Scripts in this process

# Widths of a toy, images of a toy, on the CPU.
SMALL = (
    *("--model", "small_resnet", "--image-size", "32", "--epochs", "1", "--warmup", "0", "--batch-size", "4"),
    *("--workers", "0", "--device", "cpu", "--no-progress"),
)


def opened(root, name: str = "folder", **more) -> data.Data:
    """The data set of that name under `root`, as a training opens it."""
    return data.open_data(
        settings.Settings(data=name, data_root=str(root), model="small_resnet", image_size=32, **more)
    )


def run(main, *words) -> int:
    return main([str(word) for word in words])


def refused(capsys, main, *words) -> str:
    """The message with which a script ends."""
    with pytest.raises(SystemExit) as stop:
        run(main, *words)
    assert stop.value.code not in (0, None)
    return f"{stop.value.code} {capsys.readouterr().err}"


def train_on(root, output, *more) -> int:
    return run(train.main, "--data", "folder", "--data-root", root, "--output", output, *SMALL, *more)
