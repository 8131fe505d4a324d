"""Kills trainings at random moments: does each, resumed, end in the bits of one that nothing happened to?

    python -m tests.tools.kills --times 50 [--seed 0] [--signal TERM]

Each training is a process forked from this one, which has imported all that it needs: so the moments lie in the
training, its checkpoints, its test and its report, and not in Python's start. Of what it had reported nothing may be
lost: the last checkpoint holds every epoch whose line was printed.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "python"))

import train
from driver import storage

from tests.driver.cases import TINY, assert_same

# All that a checkpoint has to hold: averaged weights, a teacher, parts of batches, steps inside an epoch.
FLAGS = [
    *(*TINY, "--epochs", "2", "--batch-size", "16", "--checkpoint-every", "1", "--accumulate", "2"),
    *("--ema", "0.9", "--teacher", "--device", "cpu", "--no-progress"),
]

# How a training may end: 0 where it was finished, or nearly.
ENDS = {signal.SIGKILL: (0, -9), signal.SIGTERM: (0, 143, -15), signal.SIGINT: (0, 130)}


def forked(log: Path, *words) -> int:
    """Starts a training whose output goes into a file; returns its process's number."""
    if child := os.fork():
        return child
    status = 1
    try:
        with log.open("w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            status = train.main([str(word) for word in words])
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Waits for a process; returns its status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trained(log: Path, *words) -> None:
    """A training to its end."""
    status = ended(forked(log, *words))
    assert status == 0, f"status {status}\n{log.read_text()}"


def reported(log: Path) -> int:
    """How many whole epochs a training has printed."""
    return max(map(int, re.findall(r"epoch +(\d+)/\d+: ", log.read_text())), default=0) if log.exists() else 0


def killed(folder: Path, log: Path, moment: float, how: signal.Signals) -> str:
    """Kills a training after so many seconds; returns what its folder held, in words."""
    child = forked(log, *FLAGS, "--output", folder)
    time.sleep(moment)
    os.kill(child, how)
    status = ended(child)
    assert status in ENDS[how], f"status {status}\n{log.read_text()}"
    last = folder / "last.pt"
    state = storage.load(last) if last.exists() else {"epoch": 0, "step": 0}
    assert state["epoch"] >= reported(log), f"epoch {reported(log)} was reported, {last} holds {state['epoch']}"
    half = [path.name for path in folder.glob(f".*{storage.PART}")]
    begun = f"epoch {state['epoch']}, step {state['step']}" if last.exists() else "no checkpoint"
    return ", ".join([begun, *["its results"] * (folder / "test.pt").exists(), *(f"half of {name}" for name in half)])


def assert_equal(folder: Path, straight: Path) -> None:
    """The same files, and the same checkpoints and results to the last bit."""
    names = [{path.name for path in one.iterdir() if "tfevents" not in path.name} for one in (folder, straight)]
    assert names[0] == names[1], names[0] ^ names[1]
    for name in ("last.pt", "best.pt", "test.pt"):
        assert_same(storage.load(folder / name), storage.load(straight / name), name)


def main() -> None:
    """Kills, resumes and compares; the first difference is an AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="how many trainings are killed (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL", help="(default: KILL)")
    asked = parser.parse_args()
    how = signal.Signals[f"SIG{asked.signal}"]
    torch.set_num_threads(1)
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        straight, log = root / "straight", root / "log"
        train.main([*FLAGS, "--output", str(straight)])  # in this process, so that all it imports is there to be forked
        begun = time.monotonic()
        trained(log, *FLAGS, "--output", root / "again")
        seconds = time.monotonic() - begun
        assert_equal(root / "again", straight)
        print(f"a training takes {seconds:.1f} s", flush=True)
        for number in range(1, asked.times + 1):
            folder, moment = root / str(number), rng.uniform(0, seconds)
            held = killed(folder, log, moment, how)
            again = ["--resume"] if (folder / "config.yaml").exists() else FLAGS
            trained(log, *again, "--output", folder)
            assert_equal(folder, straight)
            print(f"{number}: killed after {moment:.2f} s with {held}; resumed to the same bits", flush=True)
    print(f"{asked.times}/{asked.times} of SIG{asked.signal} survived")


if __name__ == "__main__":
    main()
