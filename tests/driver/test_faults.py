"""What befalls a training from outside: signals, lost processes, disks that are full or read-only, losses of NaN.

Each ends with a message that names what is wrong, without a traceback, and loses nothing but the unfinished epoch.
"""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import evaluate
import pytest
import torch
import train
from driver import checkpoints, engine, explainers, stopping, storage, workers
from driver.ranks import Ranks

from tests.driver.cases import TINY, assert_same, refused, run
from tests.support import ROOT

FLAGS = [*TINY, "--epochs", "2", "--batch-size", "16", "--device", "cpu", "--no-progress"]


def kills(*flags) -> str:
    """What the tool says that kills trainings."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.kills", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "times"), [("KILL", 50), ("TERM", 20), ("INT", 20)])
def test_killed_at_many_random_moments_it_resumes_to_the_same_bits(how, times):
    assert kills("--times", times, "--signal", how) == f"{times}/{times} of SIG{how} survived"


# ---- Processes.


class Dying:
    """Batches; the process that loads the one of key `last` is killed, where it is not the training itself."""

    def __init__(self, batches, last: int):
        self.batches, self.last, self.main = batches, last, os.getpid()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, keys):
        if self.last in keys and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return keys


def test_a_loading_process_that_dies_is_named():
    loaded = workers.load(Dying(range(6), last=4), batch_size=1, num_workers=1)
    with pytest.raises(workers.LostWorker, match=r"images was lost, DataLoader worker .*--resume"), workers.watched():
        for _ in loaded:
            pass


def test_other_errors_are_not_those_of_a_loading_process():
    with pytest.raises(RuntimeError, match=r"^another$"), workers.watched():
        raise RuntimeError("another")


# ---- Trainings in this process.


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run folder of a training that nothing befell."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert run(train.main, *FLAGS, "--output", folder) == 0
    return folder


def strike(monkeypatch, step: int, fault) -> None:
    """Has `fault()` happen before a step of a training, counted from 0 over its epochs of four."""
    advance, done = engine.Trainer.advance, count()

    def struck(*words):
        if next(done) == step:
            fault()
        return advance(*words)

    monkeypatch.setattr(engine.Trainer, "advance", struck)


def assert_resumes(folder: Path, straight: Path) -> None:
    assert not list(folder.rglob(f"*{storage.PART}"))
    assert run(train.main, "--resume", "--output", folder, "--no-progress") == 0
    for name in ("last.pt", "best.pt", "test.pt"):
        assert_same(storage.load(folder / name), storage.load(straight / name), name)


def test_a_training_whose_loading_process_is_killed_resumes(straight, tmp_path, monkeypatch, capsys):
    """The signal that tells of it may find the training anywhere."""
    with monkeypatch.context() as patched:
        strike(patched, 5, lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))
        said = refused(capsys, train.main, *FLAGS, "--workers", 1, "--output", tmp_path / "run")
    assert "train.py: error: --workers: a process that loads images was lost" in said
    assert storage.load(tmp_path / "run" / "last.pt")["epoch"] == 1
    assert_resumes(tmp_path / "run", straight)


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker (pid 1) is killed."), ConnectionResetError("reset")])
def test_either_error_of_a_lost_process_is_named(error):
    """The other is that of a batch that was just being handed over."""
    with pytest.raises(workers.LostWorker, match="--workers: a process that loads images was lost"), workers.watched():
        raise error
    with pytest.raises(RuntimeError, match="another"), workers.watched():
        raise RuntimeError("another")


def test_a_training_that_is_told_to_end_resumes(straight, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        strike(patched, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(train.main, *FLAGS, "--output", tmp_path / "run") == 143
    assert f"--resume --output {tmp_path / 'run'}" in capsys.readouterr().out
    assert storage.load(tmp_path / "run" / "last.pt")["epoch"] == 1
    assert_resumes(tmp_path / "run", straight)


class Late:
    """Tells this process to end when it is forgotten: what a destructor raises is printed and lost."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_ends_though_the_signal_comes_where_exceptions_are_lost(monkeypatch):
    monkeypatch.setattr(stopping, "AGAIN", 0.05)

    def work():
        with stopping.terminable(Ranks(), lambda: None):
            Late()
            time.sleep(2)

    with pytest.raises(stopping.Terminated):
        work()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_signal_inside_a_checkpoint_is_not_taken_for_an_error(tmp_path, monkeypatch):
    """A checkpoint's writer makes a RuntimeError of whatever stops it."""

    class Struck:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            raise stopping.Terminated

        def flush(self):
            pass

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Struck(file)))
    with pytest.raises(stopping.Terminated):
        storage.save({"x": torch.zeros(3)}, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


@contextmanager
def largest_file(size: int):
    """No file may grow beyond so many bytes: what a full disk does, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "file"), [(500, "config.yaml"), (10_000, "best.pt"), (1_500_000, "last.pt")])
def test_a_disk_that_is_full_in_the_middle_of_a_file_is_named(straight, tmp_path, capsys, size, file):
    """A checkpoint's writer makes a RuntimeError of it."""
    folder = tmp_path / "run"
    with largest_file(size):
        said = refused(capsys, train.main, *FLAGS, "--output", folder)
    assert f"train.py: error: [Errno 27] File too large: '{folder / file}'" in said
    assert not (folder / "test.pt").exists()
    if (folder / "last.pt").exists():
        assert_resumes(folder, straight)


def test_a_loss_of_nan_stops_and_keeps_its_batch(tmp_path, capsys):
    said = refused(capsys, train.main, *FLAGS, "--optimizer", "sgd", "--lr", 1e30, "--output", tmp_path / "run")
    assert "the loss of epoch 1 must be finite, got NaN or an infinity after step 2 of 4" in said
    assert f"{tmp_path / 'run' / 'diverged.pt'} holds the batches that led there" in said
    kept = storage.load(tmp_path / "run" / "diverged.pt")
    assert kept["step"] == 1
    assert {name: kept["batches"][1]["order"][name].shape for name in ("view", "aug", "extra")} == dict.fromkeys(
        ("view", "aug", "extra"), (16, 3, 64, 64)
    )
    checkpoints.check_finite(storage.load(tmp_path / "run" / "last.pt")["model"], "last.pt", "it")


# ---- Folders.


@contextmanager
def unprivileged():
    """Without the superuser's right to write where nobody may."""
    if os.geteuid():
        yield
        return
    explainers.names()  # imports libraries that look into the superuser's home
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", [".", "run"])
def test_a_folder_that_cannot_be_written_in_is_named(tmp_path, capsys, name):
    tmp_path.chmod(0o555)
    folder = tmp_path / name
    with unprivileged():
        for main, *flags in ((train.main, *FLAGS), (evaluate.main, "small_resnet", "--data", "demo")):
            said = refused(capsys, main, *flags, "--output", folder)
            assert f"--output must be a folder that can be written in, got {folder}: Permission denied" in said


def test_a_place_without_a_default_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    with unprivileged():
        assert "--output must be given where runs/" in refused(capsys, train.main, *FLAGS)
