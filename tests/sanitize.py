"""Runs the tests marked `sanitizer` under the four tools of compute-sanitizer; fails where one of them tells nothing.

python tests/sanitize.py [arguments of pytest]
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    # A call that torch tries, and answers when it fails, is no error; ours are checked where they are made.
    "memcheck": ["--report-api-errors", "no"],
    # Slow: of kernels named so, ours of both backends and a few of torch's.
    "racecheck": ["--kernel-name", "kernel_substring=_kernel"],
    "synccheck": [],
    "initcheck": [],
}
# The last line that a tool prints, whether or not it has found anything.
SUMMARY = re.compile(r"^========= (?:ERROR|RACECHECK) SUMMARY: (\d+) ", re.MULTILINE)


def command(tool: str, arguments: list[str]) -> list[str]:
    """Command line of one tool."""
    tests = [sys.executable, "-m", "pytest", "tests", "-q", "-m", "gpu and sanitizer", *arguments]
    return ["compute-sanitizer", "--tool", tool, *TOOLS[tool], "--error-exitcode", "1", *tests]


def verdict(returncode: int, output: str) -> str:
    """What is wrong with a run, in words; empty if all tests passed and the tool said that it found nothing."""
    summaries = SUMMARY.findall(output)
    if not summaries:
        return "compute-sanitizer printed no summary: it checked nothing"
    if any(int(count) for count in summaries):
        return f"compute-sanitizer found {sum(map(int, summaries))} errors"
    return f"the tests ended with {returncode}" if returncode else ""


def main(arguments: list[str]) -> int:
    """Runs all tools; returns the exit status."""
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the path: it comes with the CUDA toolkit", file=sys.stderr)
        return 1
    # Freed tensors go back to the device, so that reading them is an error.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    failed = False
    for tool in TOOLS:
        done = subprocess.run(
            command(tool, arguments),
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        print(f"---- {tool}", done.stdout, sep="\n", flush=True)
        fault = verdict(done.returncode, done.stdout)
        print(f"{tool}: {fault or 'clean'}", flush=True)
        failed |= bool(fault)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
