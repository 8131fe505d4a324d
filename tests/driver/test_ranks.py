"""Training by several processes: the gradients are those of one, a death ends the run, and the checkpoint resumes."""

import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from driver import storage
from driver.ranks import Ranks
from driver.views import Steps

from tests.driver.cases import (
    TINY,
    assert_same,
    drive,
    first_gradients,
    kill_inside_an_epoch,
    started,
)
from tests.support import ROOT
from tests.support.compare import assert_close

WORKER = ROOT / "tests" / "driver" / "worker.py"
STEP = ["--batch-size", "16", "--freeze-batchnorm"]
TRAINING = ["--method", "cgc", "--epochs", "2", "--checkpoint-every", "1", *TINY, "--train-images", "160"]
TRAINING += ["--device", "cpu"]


def two_processes(folder, *flags) -> dict[str, torch.Tensor]:
    path = folder / f"gradients{len(list(folder.iterdir()))}.pt"
    drive(path, *STEP, *flags, script=WORKER, processes=2)
    return storage.load(path)


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float64
        assert_close(actual[name], gradient, 1e-9, floor=1e-3, what=name)


def test_two_processes_step_as_one_with_the_whole_batch(tmp_path):
    """Negatives are global, and every parameter's gradient is that of the whole batch in one process."""
    expected = first_gradients(*STEP)
    assert_same_gradients(two_processes(tmp_path), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--fraction", "0.5", "--unlabeled", "rest"],
        ["--ema", "0.9", "--teacher", "--target", "label"],
        ["--batched-views"],
    ],
)
def test_two_processes_step_as_one_in_every_setting(tmp_path, flags):
    assert_same_gradients(two_processes(tmp_path, *flags), first_gradients(*STEP, *flags))


@pytest.mark.slow
def test_negatives_of_each_process_are_another_loss(tmp_path):
    actual, expected = two_processes(tmp_path, "--no-global-negatives"), first_gradients(*STEP)
    with pytest.raises(AssertionError):
        assert_same_gradients(actual, expected)


def test_ranks_share_the_batches_of_one_process():
    """Their shares, one after the other, are the batch; a start in the middle is the rest of the steps."""
    whole = list(Steps(50, 8, 3, "order", 0, 20))
    shares = [list(Steps(50, 8, 3, "order", 0, 20, rank, 4)) for rank in range(4)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    assert list(Steps(50, 8, 3, "order", 9, 20)) == whole[9:]
    assert all(len({index for _, index in batch}) == 8 for batch in whole)
    first_pass = [index for batch in whole[:6] for _, index in batch]
    assert len(set(first_pass)) == 48
    assert {done for batch in whole[6:12] for done, _ in batch} == {1}


def children(process) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, listed.stdout.split()))


def kill_a_rank(folder) -> str:
    """What a run of two processes says when one of them is killed in the first epoch."""
    with started(*TRAINING, "--output", folder, processes=2) as process:
        kill_inside_an_epoch(process, folder, 0, victim=lambda: children(process)[-1])
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (folder / "test.pt").exists()
    return err


def test_a_rank_that_dies_ends_the_run(tmp_path):
    """The survivor says what to do."""
    err = kill_a_rank(tmp_path / "killed")
    assert "of 2 stops" in err
    script = ROOT / "python" / "train.py"
    assert f"torchrun --nproc-per-node 2 {script} --resume --output {tmp_path / 'killed'}" in err


@pytest.mark.slow
def test_the_checkpoint_of_ranks_resumes_to_the_same_bits(tmp_path):
    """After the death of one they give the weights of a run that nothing happened to."""
    folder, straight = tmp_path / "killed", tmp_path / "straight"
    kill_a_rank(folder)
    drive("--resume", "--output", folder, processes=2)
    drive(*TRAINING, "--output", straight, processes=2)
    assert_same(storage.load(folder / "last.pt"), storage.load(straight / "last.pt"))
    assert_same(storage.load(folder / "test.pt"), storage.load(straight / "test.pt"))


STUCK = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from driver import stopping
from driver.ranks import Ranks

stopping.GRACE = 0.2
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
with stopping.terminable(Ranks(1, 2, 1), lambda: None):
    lock(mutex)
    print("stuck", flush=True)
    lock(mutex)  # for ever, in C
"""


def wait_until_asleep(pid: int) -> None:
    """Until the main thread of a process has slept for a while: what it said last it said before."""
    calm = 0
    while calm < 5:
        state = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        calm = calm + 1 if state == "S" else 0
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros is one of Linux")
def test_a_rank_that_waits_in_c_ends_when_it_is_told_to():
    """As inside NCCL, where a dead rank is waited for: the message comes from another thread."""
    command = [sys.executable, "-c", STUCK, str(ROOT / "python")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "stuck\n"
        wait_until_asleep(process.pid)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Rank 1 of 2 stops: it was told to end" in err


@pytest.mark.parametrize(("gpus", "local", "index"), [(4, 3, 3), (1, 0, 0), (1, 5, 0), (2, 2, None)])
def test_each_rank_takes_a_gpu(monkeypatch, gpus, local, index):
    """Its own of those that it sees, or the one that it is shown; the CPU when that is asked for."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    here = Ranks(local, 8, local)
    assert here.device("cpu") == torch.device("cpu")
    assert taken == []
    if index is None:
        with pytest.raises(ValueError, match="--device must be cpu for more processes than the 2 GPUs, got local rank"):
            here.device("auto")
    else:
        assert here.device("auto") == torch.device("cuda", index)
        assert taken == [index]
