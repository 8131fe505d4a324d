"""`python -m bench.host`: what a call costs the host, with tensors so small that the kernels' own time counts little.

Forward, and forward and backward, of `cgc_loss` with every backend that runs here, on CPU tensors and on a GPU's,
beside a no-op: a torch.autograd.Function of five tensors that only allocates its outputs. One thread. Every round runs
each of them once, for some milliseconds; ratios are taken within a round. On a GPU it is the time until all calls are
queued, few enough to find room in the queue. Without a GPU, Triton's calls are timed but for the driver's launch, which
does nothing there.

`--baseline REV` measures another commit too, in the same rounds: its files in a temporary folder, its library built
there, its calls in a process of their own, as are those of this checkout.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .harness import percentiles
from .host_worker import NO_OP, UNLAUNCHED
from .report import machine

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("host_worker.py")
BLOCK_SECONDS = 0.01
MOST_CALLS = 100  # a GPU's queue takes about 1000 launches


class Worker:
    """A process that times calls of the package of one checkout.

    Args:
        root: of the checkout.
        device: "cpu", "cuda", or UNLAUNCHED: the CPU's tensors given to Triton, which launches nothing.
        image_size: pixels of a view each way.
    """

    def __init__(self, root: Path, device: str, image_size: int):
        # Not by its path alone: the first folder on the path would be bench/ of this checkout.
        run = f"import runpy; runpy.run_path({str(WORKER)!r}, run_name='__main__')"
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", run, device, str(image_size)],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self._read()
        self.candidates = found["candidates"]
        if not Path(found["package"]).is_relative_to(root):
            self.close()
            raise RuntimeError(f"the package measured must be that in {root}, got {found['package']}")

    def seconds(self, name: str, backward: bool, calls: int) -> float:
        """Of one call of a candidate."""
        self._process.stdin.write(json.dumps([name, backward, calls]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the process that measures must go on, got its end, {self._process.returncode}")
        return json.loads(line)


class Key(NamedTuple):
    """What is timed."""

    commit: str
    name: str
    backward: bool


def measure(workers: dict[str, Worker], rounds: int) -> dict[Key, np.ndarray]:
    """Seconds of a call in every round, by commit and candidate."""
    keys = [
        Key(commit, name, backward)
        for commit, worker in workers.items()
        for name in worker.candidates
        for backward in (False, True)
    ]
    calls = {}
    for key in keys:  # which also warms it up
        workers[key.commit].seconds(key.name, key.backward, 3)
        once = workers[key.commit].seconds(key.name, key.backward, 3)
        calls[key] = min(MOST_CALLS, max(1, round(BLOCK_SECONDS / once)))
    times = {key: [] for key in keys}
    for _ in range(rounds):
        for key in keys:
            times[key].append(workers[key.commit].seconds(key.name, key.backward, calls[key]))
    return {key: np.array(values) for key, values in times.items()}


def table(seconds: dict[Key, np.ndarray], device: str, baseline: str | None) -> str:
    """Markdown: a row for each backend; medians, ratios within rounds as p50 [p20-p80]."""
    columns = ["tensors", "backend", "forward, us", "forward + backward, us", "/ no-op"]
    columns += [f"{baseline}, us", f"/ {baseline}"] if baseline else []
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for commit, name, backward in seconds:
        if commit == "this" and backward:
            lines.append(f"| {' | '.join([device, name, *_cells(seconds, name, baseline)])} |")
    return "\n".join(lines)


def _cells(seconds: dict[Key, np.ndarray], name: str, baseline: str | None) -> list[str]:
    forward, both = (seconds[Key("this", name, backward)] for backward in (False, True))
    cells = [_microseconds(forward), _microseconds(both), _ratio(both, seconds[Key("this", NO_OP, True)])]
    if baseline:
        before = seconds.get(Key(baseline, name, True))
        cells += ["-", "-"] if before is None else [_microseconds(before), _ratio(both, before)]
    return cells


def _microseconds(seconds: np.ndarray) -> str:
    return f"{1e6 * np.median(seconds):.1f}"


def _ratio(seconds: np.ndarray, others: np.ndarray) -> str:
    return "{p50:.2f} [{p20:.2f}-{p80:.2f}]".format(**percentiles(seconds / others))


@contextlib.contextmanager
def checkout(revision: str, build: bool = True) -> Iterator[Path]:
    """The files of a commit in a temporary folder, with its libraries unless build is False."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(root), revision], check=True)
        try:
            if build:
                # CUDA kernels take minutes, for nothing where there is no GPU.
                environment = {**os.environ} | ({} if torch.cuda.is_available() else {"CGC_CUDA": "0"})
                command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
                subprocess.run(command, cwd=root, env=environment, check=True)
            yield root.resolve()
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=224, help="pixels of a view each way (default: 224)")
    parser.add_argument("--baseline", metavar="REV", help="a commit to compare with")
    chosen = parser.parse_args(arguments)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu", *[UNLAUNCHED] * bool(find_spec("triton"))]
    with contextlib.ExitStack() as stack:
        roots = {"this": ROOT}
        if chosen.baseline:
            roots[chosen.baseline] = stack.enter_context(checkout(chosen.baseline))
        for device in devices:
            with contextlib.ExitStack() as running:
                workers = {}
                for commit, root in roots.items():
                    workers[commit] = Worker(root, device, chosen.image_size)
                    running.callback(workers[commit].close)
                print(f"{table(measure(workers, chosen.rounds), device, chosen.baseline)}\n", flush=True)
    torch.set_num_threads(1)
    print(f"{machine()}, {chosen.rounds} rounds, views of {chosen.image_size} pixels")


if __name__ == "__main__":
    main()
