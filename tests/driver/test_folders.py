"""Folders that are one process's alone, and what a killed or a failing writer leaves in them."""

import errno
import os
import signal
import time
from pathlib import Path

import evaluate
import explain
import pytest
import torch
import train
from driver import settings, storage

from tests.driver import data_sets
from tests.driver.cases import TINY, refused, started, wait_until


def claiming(wanted: settings.Settings) -> tuple[int, int]:
    """A process that claims a run folder and keeps it until it is killed: its number, and where it says how it went."""
    told, tell = os.pipe()
    if child := os.fork():
        os.close(tell)
        return child, told
    try:
        with train.refusing(storage.FileError), train.claimed(wanted) as chosen:
            os.write(tell, b"claimed " + chosen.output.encode())
            os.close(tell)
            time.sleep(60)
    except SystemExit as refusal:
        os.write(tell, str(refusal).encode())
    finally:
        os._exit(0)


def answer(told: int) -> str:
    """What such a process says."""
    with open(told, "rb") as file:
        return file.read().decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("resume", [False, True])
def test_one_of_many_gets_a_folder(tmp_path, resume):
    """When it is killed the next may have it, and what it was writing is removed."""
    folder = tmp_path / "run"
    if resume:
        settings.save(settings.Settings(output=str(folder)))
    wanted = settings.parse(["--output", str(folder), *["--resume"] * resume])
    many = [claiming(wanted) for _ in range(8)]
    said = [answer(told) for _, told in many]
    for child, _ in many:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert said.count(f"claimed {folder}") == 1
    assert sum(f"got {folder}" in line for line in said) == 7
    half = [folder / f".last.pt.1{storage.PART}", folder / "cgc-seed0" / f".last.pt.2{storage.PART}"]
    for path in half:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with train.claimed(settings.parse(["--resume", "--output", str(folder)])):
        assert not any(path.exists() for path in half)


@pytest.mark.slow
def test_two_trainings_at_once(tmp_path):
    """One trains, the other is told why not; resuming while it runs is refused as well."""
    folder = tmp_path / "run"
    flags = ["--epochs", 200, "--output", folder, *TINY]
    with started(*flags) as first, started(*flags) as second:
        while first.poll() is None and second.poll() is None:
            time.sleep(0.1)
        winner, loser = (first, second) if first.poll() is None else (second, first)
        out, err = loser.communicate()
        assert loser.returncode != 0
        assert f"got {folder}" in err
        assert "Traceback" not in out + err
        wait_until(winner, lambda: (folder / "last.pt").exists())
        with started("--resume", "--output", folder) as third:
            _, err = third.communicate(timeout=300)
        assert third.returncode != 0
        assert "which a process works in" in err
        assert winner.poll() is None


def test_default_folders_of_one_second_are_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "default_output", lambda name: f"runs/20260101-000000-{name}")
    with train.claimed(settings.parse([])) as first, train.claimed(settings.parse([])) as second:
        assert (first.output, second.output) == (
            "runs/20260101-000000-cgc_consistent",
            "runs/20260101-000000-cgc_consistent-2",
        )
        assert settings.load(second.output) == second


def test_a_folder_that_nothing_was_put_into_does_not_stay(tmp_path, capsys):
    assert "--data must be given" in refused(capsys, evaluate.main, "resnet18", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Writers that fail.


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tiny(output) -> list:
    return [*TINY, "--epochs", 1, "--device", "cpu", "--no-progress", "--output", output]


@pytest.mark.parametrize("file", ["last.pt", "best.pt", "metrics.csv", "test.pt", "summary.json", "config.yaml"])
def test_a_full_disk_is_a_message(tmp_path, monkeypatch, capsys, file):
    """And leaves nothing half written; what could be written before is whole."""
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: no_space() if Path(b).name == file else replace(a, b))
    assert "No space left on device" in refused(capsys, train.main, *tiny(tmp_path / "run"))
    assert not (tmp_path / "run" / file).exists()
    assert not list((tmp_path / "run").rglob(f"*{storage.PART}"))


def test_a_checkpoint_on_a_full_disk_is_an_os_error():
    """PyTorch's own writer would raise RuntimeError."""
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
        torch.save({"x": torch.zeros(1000)}, file)


@pytest.mark.parametrize("name", ["x" * 300, "{file}/run"], ids=["too long", "below a file"])
def test_folders_that_cannot_be_made_are_messages(tmp_path, name, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / name.format(file="file")
    refused(capsys, train.main, *tiny(folder))
    refused(capsys, evaluate.main, "small_resnet", "--data", "demo", "--test-images", 10, "--output", folder)
    data_sets.save_image(tmp_path / "a.png", 0)
    refused(capsys, explain.main, tmp_path / "a.png", "--checkpoint", "small_resnet", "--output", folder)
