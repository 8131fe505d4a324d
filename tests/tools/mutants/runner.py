"""Runs mutants in copies of the tree. The checkout is read, and never written to."""

import hashlib
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .common import Mutant
from .targets import Target

WAITING = 20  # times the limit on the processor's seconds: what a command may take by the clock
IMPORTED = "import cgc_kernels; print(cgc_kernels.__file__)"
COMPILER_ERROR = re.compile(r"\.(?:h|cuh|cu|cpp):\d+:\d+: (?:fatal )?error: ")  # where the tests compile what they run
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class Outcome(NamedTuple):
    """status: killed, survived, timeout or unbuildable; by: the test, or the signal, that killed it."""

    status: str
    by: str
    seconds: float


class Broken(Exception):
    """The tests fail, or test something else, without any mutant."""


def files_of(root: Path, target: Target) -> list[Path]:
    """Files of the tree that git knows or would add, and the ignored ones that the target needs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
    names = {Path(name) for name in listed.split("\0") if name}
    names |= {path.relative_to(root) for pattern in target.ignored_files for path in root.glob(pattern)}
    return sorted(name for name in names if (root / name).is_file())


def digest(root: Path, files: list[Path]) -> str:
    """Of the tree but its documents: results hold for this one only."""
    total = hashlib.sha256()
    for name in files:
        if name.suffix == ".md":
            continue
        total.update(f"{name}\0".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    return total.hexdigest()[:16]


def processor_seconds() -> float:
    """Of all child processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Workplace:
    """A copy of the tree, in which one mutant at a time is built and tested."""

    def __init__(self, root: Path, files: list[Path], target: Target, folder: Path):
        self.target, self.folder = target, folder
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
        self.environment = {
            **os.environ,
            **{"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "CI": "1"},
            **target.environment,
        }

    def baseline(self, stages: set[str], limit: float | None = None) -> float:
        """Seconds of a processor that the tests take for the files as they are, all their processes together.

        Broken unless they pass, on this copy's package.
        """
        run, text = self._run((sys.executable, "-c", IMPORTED), limit)
        if run != 0 or not Path(text.strip().splitlines()[-1]).resolve().is_relative_to(self.folder.resolve()):
            raise Broken(f"the package is not imported from the copy {self.folder}:\n{text}")
        started, outcome = processor_seconds(), self._build()
        for stage in sorted(stages):
            outcome = outcome or self._test(stage, limit, all_commands=stage == max(stages))
        if outcome:
            raise Broken(f"without any mutant: {outcome.status} by {outcome.by}")
        return processor_seconds() - started

    def judge(self, mutant: Mutant, limit: float) -> Outcome:
        """Build and test one mutant; `limit` in seconds of a processor holds for each process of a command."""
        started, path = time.monotonic(), self.folder / mutant.file
        source = path.read_text()
        try:
            path.write_text(mutant.apply(source))
            outcome = self._build() or self._test(self.target.stage(mutant.file), limit) or Outcome("survived", "", 0)
        finally:
            path.write_text(source)
        return outcome._replace(seconds=round(time.monotonic() - started, 1))

    def _build(self) -> Outcome | None:
        if not self.target.build:
            return None
        run, text = self._run(self.target.build, None)
        return None if run == 0 else Outcome("unbuildable", text.strip()[-300:], 0)

    def _test(self, stage: str, limit: float | None, all_commands: bool = True) -> Outcome | None:
        for command in list(self._commands(stage))[: None if all_commands else -1]:
            run, text = self._run(command, limit)
            if run is None:
                return Outcome("timeout", " ".join(command[-2:]), 0)
            if run == 5:
                raise Broken(f"no test in {' '.join(command)}:\n{text[-1000:]}")
            if run != 0 and COMPILER_ERROR.search(text):
                return Outcome("unbuildable", "", 0)
            if run != 0:
                failed = FAILED.search(text)
                crash = f"signal {signal.Signals(-run).name}" if run < 0 else f"exit status {run}"
                return Outcome("killed", failed[1] if failed else crash, 0)
        return None

    def _commands(self, stage: str) -> Iterator[tuple[str, ...]]:
        """The target's commands with their patterns expanded; one whose patterns match nothing is left out."""
        for command in self.target.tests:
            words, found, wanted = [], 0, 0
            for word in command:
                word = word.format(stage=stage)
                if not word.startswith("tests/"):
                    words.append(word)
                    continue
                matches = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(word))
                words, found, wanted = words + matches, found + len(matches), wanted + 1
            if found or not wanted:
                yield tuple(words)

    def _run(self, command: tuple[str, ...], limit: float | None) -> tuple[int | None, str]:
        """Exit status, None for what only waits, and output. `limit` counts the processor's seconds, so that whatever
        else runs on the machine takes none away: a process beyond it ends by SIGXCPU."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, start_new_session=True, **pipes
        ) as process:
            try:
                if limit is not None:
                    resource.prlimit(process.pid, resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
                text, _ = process.communicate(timeout=limit and WAITING * limit)
                return process.returncode, text
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # the command, and what it started
