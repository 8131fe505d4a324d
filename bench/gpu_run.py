"""`make gpu`: all that needs a CUDA device, and a record of it at the end of docs/gpu.md.

Tests marked gpu, by several workers on the device; the benchmark (bench/gpu.py); compute-sanitizer, the likeliest to
take long, last (tests/cuda/sanitize.py). A part that fails or does not end hides no other: all run, the record is
written anew after each, and the exit status is 1.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "gpu.md"
WORKERS = min(8, os.cpu_count() or 1)  # tests wait for the host most of the time
LIMIT = 600  # seconds a part


class Part(NamedTuple):
    """One of the things that run."""

    name: str
    command: list[str]
    summary: Callable[[str], str]  # of its output, Markdown


class Result(NamedTuple):
    """What became of a part."""

    part: Part
    status: int | None  # None: it did not end
    output: str
    seconds: float

    def __str__(self) -> str:
        end = {0: "", None: "DID NOT END, "}.get(self.status, f"FAILED with {self.status}, ")
        return f"**{self.part.name}**: {end}{self.seconds:.0f} s\n\n{self.part.summary(self.output)}\n"


def parts() -> list[Part]:
    """All of them, in order."""
    workers = ["-n", str(WORKERS), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    tests = [sys.executable, "-m", "pytest", "tests", "-q", "-m", "gpu", *workers]
    return [
        Part("Tests", tests, test_summary),
        Part("Benchmark", [sys.executable, "-m", "bench.gpu"], benchmark_summary),
        Part("compute-sanitizer", [sys.executable, "tests/cuda/sanitize.py"], sanitizer_summary),
    ]


def test_summary(output: str) -> str:
    """pytest's last line, the failures that it lists, and how many were skipped why."""
    last = [line.strip("= ") for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)][-1:]
    named = re.findall(r"^(?:FAILED|ERROR|SKIPPED) .*", output, re.MULTILINE)
    return "\n".join(f"- {line}" for line in [*(last or [_end(output)]), *named])


def benchmark_summary(output: str) -> str:
    """Its tables."""
    start = output.find("| case |")
    return output[start:].strip() if start >= 0 else f"- {_end(output)}"


def sanitizer_summary(output: str) -> str:
    """The verdict of each tool."""
    verdicts = re.findall(r"^\w+check: .*", output, re.MULTILINE)
    return "\n".join(f"- {line}" for line in verdicts or [_end(output)])


def _end(output: str) -> str:
    """The last line of what says nothing that is expected."""
    return (output.strip().splitlines() or ["it printed nothing"])[-1]


def run(part: Part, limit: float) -> Result:
    """Runs a part, shows what it prints, and ends it with all its children after `limit` seconds."""
    start, lines, late = time.monotonic(), [], threading.Event()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(part.command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, end)
        timer.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        status = process.wait()
        timer.cancel()
    return Result(part, None if late.is_set() else status, "".join(lines), time.monotonic() - start)


def head() -> str:
    """Card, commit, driver, versions."""
    versions = {
        "driver": driver(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
    }
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    return f"### {date.today()}: {card}, commit {commit()}\n\n{', '.join(f'{k} {v}' for k, v in versions.items())}.\n"


def commit(root: Path = ROOT) -> str:
    """Short hash of what ran, "+ changes" where files differ from it; "unknown" without git."""
    try:
        found = git(root, "rev-parse", "--short", "HEAD").strip()
        changed = git(root, "status", "--porcelain", "--", ".", f":!{TARGET.relative_to(ROOT)}").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found} + changes" if changed else found


def git(root: Path, *arguments: str) -> str:
    """What git prints."""
    line = ["git", "-C", str(root), *arguments]
    return subprocess.run(line, text=True, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def driver() -> str:
    """Version of NVIDIA's driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, text=True, check=True, capture_output=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def record(every: Iterable[Part], target: Path, limit: float) -> int:
    """Runs the parts and appends to `target`; the exit status."""
    before = target.read_text().rstrip("\n") + "\n\n" if target.exists() else ""
    text, failed = head(), False
    for part in every:
        print(f"==== {part.name}: {' '.join(part.command)}", flush=True)
        result = run(part, limit)
        failed |= result.status != 0
        text += f"\n{result}"
        target.write_text(before + text)
    print(f"==== {target}\n\n{text}")
    return int(failed)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=TARGET, help="the file to append to (default: docs/gpu.md)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds of each part (default: {LIMIT})")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("make gpu needs a CUDA device and a CUDA build of torch (TORCH=...): none here")
    return record(parts(), args.record, args.limit)


if __name__ == "__main__":
    sys.exit(main())
