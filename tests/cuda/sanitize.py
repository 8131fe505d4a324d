"""Runs the tests marked `sanitizer` under the four tools of compute-sanitizer, side by side; fails where one is silent.

python tests/cuda/sanitize.py             # a subset, in minutes
python tests/cuda/sanitize.py -k cuda     # any arguments of pytest, in place of the subset's; `-k test` takes all
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    # A call that torch tries, and answers when it fails, is no error; ours are checked where they are made.
    "memcheck": ["--report-api-errors", "no"],
    # Slow: of kernels with these in their mangled names, ours of both backends and a few of torch's.
    "racecheck": ["--kernel-name", "kernel_substring=3cgc", "--kernel-name", "kernel_substring=_kernel"],
    "synccheck": [],
    "initcheck": [],
}
# Both backends and memory formats; float32 goes through tensor cores, bfloat16 through narrow loads, mse is double.
SUBSET = ["-k", "(float32 or bfloat16) and not paper"]
# The last line that a tool prints, whether or not it has found anything.
SUMMARY = re.compile(r"^========= (?:ERROR|RACECHECK) SUMMARY: (\d+) ", re.MULTILINE)
FIRST_PORT, PORTS = 49152, 16  # a tool tries ten ports from the one that it is given


def sanitizer() -> str | None:
    """compute-sanitizer: of the path, of CUDA_HOME, beside nvcc, or of NVIDIA's package for pip."""
    nvcc, packages = shutil.which("nvcc"), importlib.util.find_spec("nvidia")
    folders = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    folders += [Path(nvcc).resolve().parent] if nvcc else []
    folders += [f for p in (packages.submodule_search_locations if packages else []) for f in Path(p).glob("cu*/bin")]
    searched = os.pathsep.join(map(str, folders))
    return shutil.which("compute-sanitizer") or (searched and shutil.which("compute-sanitizer", path=searched)) or None


def command(program: str, tool: str, arguments: list[str]) -> list[str]:
    """Command line of one tool."""
    port = str(FIRST_PORT + PORTS * list(TOOLS).index(tool))
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "tests/cuda/test_gpu.py",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "sanitizer",
    ]
    return [program, "--tool", tool, "--port", port, *TOOLS[tool], "--error-exitcode", "1", *tests, *arguments]


def verdict(returncode: int, output: str) -> str:
    """What is wrong with a run, in words; empty if all tests passed and the tool said that it found nothing."""
    summaries = SUMMARY.findall(output)
    if not summaries:
        return "compute-sanitizer printed no summary: it checked nothing"
    if any(int(count) for count in summaries):
        return f"compute-sanitizer found {sum(map(int, summaries))} errors"
    return f"the tests ended with {returncode}" if returncode else ""


def run(program: str, tool: str, arguments: list[str]) -> subprocess.CompletedProcess:
    """One tool, to its end; its output, and what the tests print, in `stdout`."""
    # Freed tensors go back to the device, so that reading them is an error.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    line = command(program, tool, arguments)
    return subprocess.run(line, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def main(arguments: list[str]) -> int:
    """Runs all tools; returns the exit status."""
    program = sanitizer()
    if program is None:
        remedy = "it comes with the CUDA toolkit, and with `pip install nvidia-cuda-sanitizer-api`"
        print(f"compute-sanitizer is not on the path: {remedy}", file=sys.stderr)
        return 1
    failed = False
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        runs = {tool: pool.submit(run, program, tool, arguments or SUBSET) for tool in TOOLS}
        for tool, future in runs.items():
            done = future.result()
            print(f"---- {tool}", done.stdout, sep="\n", flush=True)
            fault = verdict(done.returncode, done.stdout)
            print(f"{tool}: {fault or 'clean'}", flush=True)
            failed |= bool(fault)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
