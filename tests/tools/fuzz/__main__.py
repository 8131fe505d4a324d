"""Command line: `python -m tests.tools.fuzz --seconds 60`; what fails is printed with the command that repeats it.

    --seed 3                   other calls
    --state build/fuzz.json    go on where the last run with this file stopped
    --valid 20000 --invalid 400 --repeats 250    stop there, however long it takes
    --call valid:torch:17      one call alone

The calls run in a process of their own, so that a crash of it is a failure like any other.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

RUN = [sys.executable, "-m", "tests.tools.fuzz.worker"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="stop after these; calls of all kinds in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "fuzz.json", help="file of what has run")
    parser.add_argument("--valid", type=int, default=0, help="valid calls to have run in all")
    parser.add_argument("--invalid", type=int, default=0, help="invalid calls to have run in all")
    parser.add_argument("--repeats", type=int, default=0, help="repeats of one call a backend, to have run in all")
    parser.add_argument("--backends", nargs="+", choices=["cpp", "torch", "cuda", "triton"], help="these alone")
    parser.add_argument("--call", help="KIND:BACKEND:NUMBER of one call, as failures print it")
    return parser.parse_args()


def main() -> int:
    """Runs the worker; returns the exit status."""
    given = arguments()
    given.state.parent.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({**vars(given), "state": str(given.state)})
    # Triton reads its variable when it is imported; tensors are tiny.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*RUN, settings], cwd=ROOT, env=environment)
    if done.returncode < 0:
        state = json.loads(given.state.read_text())
        print(f"FAILED: the process died of signal {-done.returncode} in one of")
        for call in state["running"]:
            print(f"  python -m tests.tools.fuzz --seed {given.seed} --call {call}")
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
