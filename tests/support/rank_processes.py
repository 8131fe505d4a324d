"""Runs a worker script as the ranks of a process group."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.support import ROOT


def run_ranks(worker: str, ranks: int, folder: Path) -> list:
    """What each of `ranks` processes of tests/`worker` has saved in `folder`; fails with their errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "tests" / worker, folder / "store"]
    processes = [
        subprocess.Popen([*command, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
