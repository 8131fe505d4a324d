"""The process that makes the calls, four at a time on four threads."""

import contextlib
import itertools
import json
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from tests.cuda import simt
from tests.tools.fuzz import invalid, repeats, valid
from tests.triton import interpreter

KINDS = {"valid": valid.run, "invalid": invalid.run, "repeats": repeats.run}
THREADS = 4
# Of twenty rounds of valid calls: the emulator and the interpreter take a hundred times as long.
ROUNDS = {"cpp": 8, "torch": 8, "cuda": 3, "triton": 1}


class State:
    """What has run, kept in a file: the next number of each kind and backend, and what failed."""

    def __init__(self, path: Path, seed: int):
        self.path, self.seed = path, seed
        kept = json.loads(path.read_text()) if path.exists() else {}
        fresh = {"seed": seed, "next": {}, "failed": [], "running": []}
        self.kept = kept if kept.get("seed") == seed else fresh

    def take(self, kind: str, backend: str, count: int) -> list[str]:
        """The next `count` calls, written down before they run."""
        key = f"{kind}:{backend}"
        first = self.kept["next"].get(key, 0)
        self.kept["next"][key] = first + count
        self.kept["running"] = [f"{key}:{first + i}" for i in range(count)]
        self.write()
        return self.kept["running"]

    def write(self) -> None:
        self.path.write_text(json.dumps(self.kept, indent=1))

    def count(self, kind: str) -> int:
        """Of a kind, or of kind:backend."""
        return sum(number for key, number in self.kept["next"].items() if f"{key}:".startswith(f"{kind}:"))


class Outcome(NamedTuple):
    call: str
    fault: str  # empty: none


def make(call: str, seed: int) -> Outcome:
    """One call, from its number alone."""
    kind, backend, number = call.split(":")
    try:
        KINDS[kind](backend, f"{seed}:{call}", int(number))
    except Exception:
        return Outcome(call, traceback.format_exc())
    return Outcome(call, "")


def report(outcome: Outcome, state: State) -> None:
    if outcome.fault:
        state.kept["failed"].append(outcome.call)
        print(
            f"{outcome.fault}FAILED: python -m tests.tools.fuzz --seed {state.seed} --call {outcome.call}", flush=True
        )


def backends(stack: contextlib.ExitStack, wanted: list[str]) -> list[str]:
    """Those of the wanted ones that run here; the CUDA kernels do in the emulator."""
    names = [name for name in ("cpp", "torch") if name in wanted and valid.missing(name) is None]
    if "cuda" in wanted and not simt.missing():
        from tests.cuda.emulation import Emulation

        stack.enter_context(Emulation().running())
        names.append("cuda")
    if "triton" in wanted and not interpreter.unfit():
        interpreter.repair()
        names.append("triton")
    return names


def schedule(given: dict, state: State, names: list[str]):
    """(kind, backend) of the rounds to come, until the time is up or all that is asked for has run."""
    end = time.monotonic() + (given["seconds"] or float("inf"))
    everything = not any(given[kind] for kind in KINDS)
    wanted = {kind: float("inf") if everything else given[kind] for kind in KINDS}
    wanted["invalid"] = min(wanted["invalid"], len(invalid.CALLS))
    wanted["repeats"] = min(wanted["repeats"], repeats.EACH * 5)
    for turn in itertools.cycle(name for name in names for _ in range(ROUNDS[name])):
        rounds = [("valid", turn, state.count("valid"))]
        rounds += [("invalid", "any", state.count("invalid")), ("repeats", turn, state.count(f"repeats:{turn}"))]
        for kind, backend, made in rounds:
            if time.monotonic() >= end:
                return
            if made < wanted[kind]:
                yield kind, backend
        least = min(state.count(f"repeats:{name}") for name in names)
        if all(count >= wanted[kind] for (kind, _, count) in rounds[:2]) and least >= wanted["repeats"]:
            return


def main(given: dict) -> int:
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        names = backends(stack, given["backends"] or list(ROUNDS))
        if given["call"]:
            outcome = make(given["call"], given["seed"])
            print(outcome.fault or "right")
            return int(bool(outcome.fault))
        state = State(Path(given["state"]), given["seed"])
        failed_before = len(state.kept["failed"])
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            for kind, backend in schedule(given, state, names):
                calls = state.take(kind, backend, THREADS)
                for outcome in pool.map(lambda call: make(call, state.seed), calls):
                    report(outcome, state)
        state.kept["running"] = []
        state.write()
    counts = ", ".join(f"{number} {key}" for key, number in sorted(state.kept["next"].items()))
    failed = len(state.kept["failed"])
    print(f"seed {state.seed}, {time.monotonic() - began:.0f} s: {counts}; {failed} failed")
    return int(failed > failed_before)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
