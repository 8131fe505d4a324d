"""Builds the CPU library `cgc_kernels/_cpu.so` beside the pure-Python package, or does without it and says why.

Needs torch's headers and a GCC- or Clang-like compiler: install torch first, then this package with
`pip install --no-build-isolation .`. `CGC_CPP=0` skips the library, `CGC_CPP=1` makes its absence an error; `CXX`,
`CXXFLAGS` and `LDFLAGS` are honoured. The outcome is recorded in `cgc_kernels/_build.json`.

One binary serves every torch since 2.10: it uses the LibTorch stable ABI only and contains no Python.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(f"setuptools must be at least 77, got {setuptools.__version__}: pip install -U setuptools")

from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build" / "cpp"  # fixed, since pip's own temporary folder would forget them

LINUX = sys.platform.startswith("linux")
CXXFLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp-simd"),
]
LDFLAGS = ["-shared", *(["-Wl,--as-needed", "-Wl,-z,defs"] if LINUX else [])]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
# kernels.cpp is compiled once for each; ops.cpp picks the widest that the processor has.
X86_ISAS = {
    "baseline": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


class CannotBuild(Exception):
    """The reason why there is no C++ library, with the remedy."""


def torch_root() -> Path:
    """Folder of the installed torch; found without importing it, which would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild(
            "torch is not installed where this was built: install torch first, then this package with "
            "pip install --no-build-isolation"
        )
    root = Path(spec.submodule_search_locations[0])
    if not (root / "include" / "torch" / "csrc" / "stable" / "ops.h").exists():
        raise CannotBuild("the installed torch has no stable ABI headers: install torch 2.10 or newer")
    return root


def run(command: list[str], source: str = "") -> subprocess.CompletedProcess:
    """Runs a compiler in the root folder; what it prints, errors included, is in `stdout`."""
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    try:
        return subprocess.run(command, input=source, text=True, stdout=pipe, stderr=merged, cwd=ROOT)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, error.strerror)


def make(target: Path, command: list[str]) -> None:
    """Runs a compiler that writes `target`, passing on what it prints; raises CannotBuild when it fails."""
    unfinished = target.with_suffix(".tmp")  # neither a half-written file nor one that is mapped is ever overwritten
    done = run([*command, "-o", str(unfinished)])
    if done.stdout.strip():
        print(shlex.join(command), done.stdout, sep="\n", file=sys.stderr)
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed to make {target.name}: pip install -v shows its messages")
    unfinished.replace(target)


def accepts(compiler: list[str], flags: list[str]) -> bool:
    """Whether the compiler works and takes these flags."""
    command = [*compiler, *flags, "-x", "c++", "-c", "-", "-o", os.devnull]
    return run(command, "#include <cstdint>\n").returncode == 0


def find_compiler() -> list[str]:
    """The compiler's command: $CXX, else the first of c++, g++, clang++ that compiles a header of the library."""
    wish = os.environ.get("CXX")
    for command in [wish] if wish else filter(shutil.which, ("c++", "g++", "clang++")):
        compiler = shlex.split(command)
        if accepts(compiler, CXXFLAGS):
            return compiler
    tried = f"CXX={wish}" if wish else "c++, g++ and clang++"
    raise CannotBuild(
        f"no working C++17 compiler ({tried}): install g++ or clang++, then install this package again with "
        "pip install --no-build-isolation"
    )


def compile_commands(compiler: list[str], torch: Path) -> dict[str, list[str]]:
    """Object name -> command up to its output, one for each object of the library."""
    isas = {"baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64") and all(accepts(compiler, f) for f in X86_ISAS.values()):
        isas = X86_ISAS
    base = [*compiler, *CXXFLAGS]
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    kernels = {
        f"kernels_{isa}": [*base, *flags, f"-DCGC_ISA={isa}", *extra, "-c", "csrc/cpu/kernels.cpp"]
        for isa, flags in isas.items()
    }
    dispatch = ["-DCGC_X86_DISPATCH=1"] if len(isas) > 1 else []
    include = ["-isystem", str(torch / "include")]
    ops = [*base, STABLE_ABI, *dispatch, *include, *extra, "-c", "csrc/cpu/ops.cpp"]
    return {"ops": ops, **kernels}


def modified(path: Path) -> int:
    """Time of the last change in ns; 0 for a file that does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def compile_object(name: str, command: list[str], sources: int) -> Path:
    """Compiles one object unless the same command has made it since the last change of the sources."""
    key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]
    target = OBJECTS / f"{name}-{key}.o"
    if modified(target) <= sources:
        for outdated in OBJECTS.glob(f"{name}-*"):
            outdated.unlink()
        make(target, command)
    return target


def build_library(target: Path) -> dict:
    """Compiles what changed and links `target`; returns what is worth recording."""
    torch, compiler = torch_root(), find_compiler()
    commands = compile_commands(compiler, torch)
    sources = max(map(modified, [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")]))
    OBJECTS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_object, name, command, sources) for name, command in commands.items()]
        objects = [str(job.result()) for job in jobs]
    # torch loads its libraries with RTLD_LOCAL, so ours must name the one it needs; the loaded one is found by name.
    libtorch = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    link = [*compiler, *LDFLAGS, *objects, *libtorch, *shlex.split(os.environ.get("LDFLAGS", ""))]
    make(target, link)
    isas = [name.removeprefix("kernels_") for name in commands if name != "ops"]
    return {"compiler": shlex.join(compiler), "torch": importlib.metadata.version("torch"), "isas": isas}


class BuildLibrary(build_ext):
    """`build_ext` that builds one plain shared library, or none and tells why."""

    def run(self) -> None:
        package = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        self.library = package / "cgc_kernels" / "_cpu.so"
        self.record = self.library.with_name("_build.json")
        self.library.parent.mkdir(parents=True, exist_ok=True)
        outcome = self.build()
        self.record.write_text(json.dumps(outcome, indent=2) + "\n")

    def build(self) -> dict:
        """Builds, or removes what an earlier build left; returns the outcome."""
        wish = os.environ.get("CGC_CPP", "")
        if wish not in ("", "0", "1"):
            raise SystemExit(f"CGC_CPP must be 0, 1 or unset, got {wish!r}")
        try:
            if wish == "0":
                raise CannotBuild("CGC_CPP=0 was set when this was installed: install again without it")
            return {"cpp": True, "reason": "", **build_library(self.library)}
        except CannotBuild as error:
            if wish == "1":
                raise SystemExit(f"CGC_CPP=1, but the C++ library cannot be built: {error}") from error
            self.library.unlink(missing_ok=True)
            self.distribution.ext_modules = None  # what is installed is pure Python
            line = "=" * 100
            print(f"{line}\ncgc_kernels: installed as pure Python, without C++: {error}\n{line}", file=sys.stderr)
            return {"cpp": False, "reason": str(error)}

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (self.library, self.record) if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """Tags the wheel for any Python 3: for this platform with the library, for every platform without."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setuptools.setup(
    ext_modules=[setuptools.Extension("cgc_kernels._cpu", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
