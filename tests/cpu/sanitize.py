"""The CPU kernels under sanitizers, without torch: random calls on plain threads, of memory of exactly its size.

python -m tests.cpu.sanitize               # AddressSanitizer with UndefinedBehaviorSanitizer, and ThreadSanitizer
python -m tests.cpu.sanitize aarch64       # cross-compiled, under qemu-user
python -m tests.cpu.sanitize thread --isa avx2 --calls 500
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

BUILD = ROOT / "build" / "sanitize"
SOURCES = ("csrc/cpu/kernels.cpp", "tests/cpu/calls.cpp")
FLAGS = ("-std=c++17", "-g", "-fno-omit-frame-pointer", "-fopenmp-simd", "-ffp-contract=fast", "-pthread")
# Flags of the compiler; what runs the program, if not the processor itself.
TOOLS = {
    "address": (("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ()),
    "thread": (("-O1", "-fsanitize=thread"), ()),
    "aarch64": (("-O2", "-static"), ("qemu-aarch64",)),
}
ISAS = {"baseline": (), "avx2": ("-march=x86-64-v3",), "avx512": ("-march=x86-64-v4",)}


def compiler(tool: str) -> str:
    """The one of a tool."""
    return "aarch64-linux-gnu-g++" if tool == "aarch64" else os.environ.get("CXX", "c++")


def missing(tool: str) -> str | None:
    """What a tool needs and this machine lacks, with the remedy, or None."""
    needed = [compiler(tool), *TOOLS[tool][1]]
    lacking = [program for program in needed if shutil.which(program) is None]
    if not lacking:
        return None
    remedy = "apt-get install g++-aarch64-linux-gnu qemu-user" if tool == "aarch64" else "install g++ or clang++"
    return f"{tool} needs {' and '.join(lacking)}: {remedy}"


def runs(isa: str) -> bool:
    """Whether this processor has an instruction set."""
    info = Path("/proc/cpuinfo")
    flag = {"baseline": "", "avx2": "avx2", "avx512": "avx512vl"}[isa]
    return not flag or (platform.machine() == "x86_64" and info.exists() and flag in info.read_text())


def build(tool: str, isa: str = "baseline") -> Path:
    """The program, compiled anew."""
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / f"calls-{tool}-{isa}"
    command = [compiler(tool), *FLAGS, *TOOLS[tool][0], *ISAS[isa], "-DCGC_ISA=baseline", *SOURCES, "-o", target]
    subprocess.run(command, cwd=ROOT, check=True)
    return target


def run(tool: str, isa: str = "baseline", calls: int = 100) -> subprocess.CompletedProcess:
    """Builds it and runs calls 0, 1, ...; what the sanitizer says is in `stdout`."""
    command = [*TOOLS[tool][1], build(tool, isa), "0", str(calls)]
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def tool_name(name: str) -> str:
    """Of the command line: argparse would compare a default that is a list with each of `choices`, and refuse it."""
    if name not in TOOLS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(TOOLS)}, got {name!r}")
    return name


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Of the command line, or those given."""
    parser = argparse.ArgumentParser(prog="python -m tests.cpu.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", type=tool_name, metavar="TOOL", default=["address", "thread"])
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=[isa for isa in ISAS if runs(isa)])
    parser.add_argument("--calls", type=int, default=100)
    return parser.parse_args(given)


def main() -> int:
    """Runs the tools; returns the exit status."""
    given, failed = arguments(), False
    for tool in given.tools:
        if reason := missing(tool):
            print(reason)
            return 1
        for isa in ["baseline"] if tool == "aarch64" else given.isa:
            done = run(tool, isa, given.calls)
            print(f"{tool}, {isa}: {done.stdout.strip()}", flush=True)
            failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
