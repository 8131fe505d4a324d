"""Builds `cgc_kernels/_cpu.so` and `_cuda.so` beside the pure-Python package, or does without them and says why.

`_cpu.so` needs torch's headers and a GCC- or Clang-like compiler: install torch first, then this package with
`pip install --no-build-isolation .`. `_cuda.so` needs a CUDA toolkit, too ($CUDA_HOME, else the nvcc on the path),
and a CUDA build of torch of the toolkit's major version. `CGC_CPP=0` and `CGC_CUDA=0` skip a library, `=1` makes its
absence an error. `CGC_CUDA_ARCH` lists architectures, as "8.0 9.0+PTX"; `CXX`, `CXXFLAGS` and `LDFLAGS` are honoured,
and by nvcc its own NVCC_APPEND_FLAGS. The outcome is recorded in `cgc_kernels/_build.json`.

One binary of each serves every torch since 2.10: both use the LibTorch stable ABI only and contain no Python.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import setuptools
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(f"setuptools must be at least 77, got {setuptools.__version__}: pip install -U setuptools")

from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build"  # fixed, since pip's own temporary folder would forget them

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

NVCCFLAGS = [
    *("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"),
    "-Icsrc/cuda",  # <simt.h>, in whose place tests have an emulator
    "-Xptxas=-v",  # registers and spills of each kernel, kept in a log beside the object
]
CUDA_ARCH = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"


class CannotBuild(Exception):
    """The reason why a library is not built, with the remedy."""


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


def make(target: Path, command: list[str]) -> str:
    """Runs a compiler that writes `target`; returns what it prints. Raises CannotBuild when it fails."""
    unfinished = target.with_suffix(".tmp")  # neither a half-written file nor one that is mapped is ever overwritten
    done = run([*command, "-o", str(unfinished)])
    statistics = re.compile(r"ptxas info|    \d+ bytes stack frame")
    warnings = "".join(line for line in done.stdout.splitlines(True) if not statistics.match(line))
    if warnings.strip():
        print(shlex.join(command), warnings, sep="\n", file=sys.stderr)
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed to make {target.name}: pip install -v shows its messages")
    unfinished.replace(target)
    return done.stdout


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


def modified(path: Path) -> int:
    """Time of the last change in ns; 0 for a file that does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def compile_object(target: Path, command: list[str], sources: int) -> Path:
    """Compiles one object unless the same command has made it since the last change of the sources."""
    key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]
    name, target = target.name, target.with_name(f"{target.name}-{key}.o")
    if modified(target) <= sources:
        for outdated in target.parent.glob(f"{name}-*"):
            outdated.unlink()
        log = make(target, command)
        target.with_suffix(".log").write_text(log)
    return target


def compile_objects(name: str, folder: str, commands: dict[str, list[str]]) -> list[str]:
    """Compiles what changed of library `name`, whose sources are in csrc/common and csrc/`folder`."""
    sources = max(modified(p) for part in ("common", folder) for p in (ROOT / "csrc" / part).rglob("*.*"))
    (OBJECTS / name).mkdir(parents=True, exist_ok=True)
    for left in (OBJECTS / name).iterdir():  # by sources that are gone
        if left.name.rpartition("-")[0] not in commands:
            left.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_object, OBJECTS / name / o, command, sources) for o, command in commands.items()]
        return [str(job.result()) for job in jobs]


def link(target: Path, compiler: list[str], objects: list[str], libraries: list[str]) -> None:
    """Links one library of the package."""
    make(target, [*compiler, *LDFLAGS, *objects, *libraries, *shlex.split(os.environ.get("LDFLAGS", ""))])


def libtorch(torch: Path, *names: str) -> list[str]:
    """torch loads its libraries with RTLD_LOCAL, so ours must name those it needs; loaded ones are found by name."""
    return [f"-L{torch / 'lib'}", *(f"-l{name}" for name in names)]


def cpp_commands(compiler: list[str], torch: Path) -> dict[str, list[str]]:
    """Object name -> command up to its output, one for each object of the CPU library."""
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


def build_cpp(target: Path) -> dict:
    """Makes the CPU library; returns what is worth recording."""
    torch, compiler = torch_root(), find_compiler()
    commands = cpp_commands(compiler, torch)
    link(target, compiler, compile_objects("cpp", "cpu", commands), libtorch(torch, "torch_cpu"))
    isas = [name.removeprefix("kernels_") for name in commands if name != "ops"]
    return {"compiler": shlex.join(compiler), "torch": importlib.metadata.version("torch"), "isas": isas}


class Toolkit(NamedTuple):
    """A CUDA toolkit, as its nvcc tells."""

    nvcc: str
    version: str  # "13.0"
    architectures: set[str]  # that it compiles for: "80", "90", ...
    include: list[str]
    libraries: list[str]


def find_toolkit() -> Toolkit | None:
    """The toolkit in $CUDA_HOME, else that of the nvcc on the path."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(str(Path(home) / "bin" / "nvcc") if home else "nvcc")
    version = nvcc and re.search(r"release (\d+\.\d+)", run([nvcc, "--version"]).stdout)
    if not version:
        return None
    # nvcc may be a script that calls another one: its own plan names the folders.
    plan = run([nvcc, "--dryrun", "-x", "cu", os.devnull]).stdout
    include, libraries = (re.findall(rf'"-{flag}([^"]+)"', plan) for flag in "IL")
    architectures = set(re.findall(r"sm_(\w+)", run([nvcc, "--list-gpu-code"]).stdout))
    return Toolkit(nvcc, version[1], architectures, include, libraries)


def cuda_of_torch(torch: Path) -> str | None:
    """Version of CUDA that torch was built with, read without importing it; None for another build."""
    version = re.search(r"^cuda\b.*=\s*['\"](\d+\.\d+)", (torch / "version.py").read_text(), re.MULTILINE)
    return version and version[1]


def require_cuda(torch: Path) -> Toolkit:
    """The toolkit, if torch is a CUDA build of the same major version; else raises CannotBuild with what is missing."""
    toolkit, built_with = find_toolkit(), cuda_of_torch(torch)
    lacks = []
    if toolkit is None:
        lacks.append("a CUDA toolkit (set CUDA_HOME, or put its nvcc on the path)")
    if built_with is None:
        lacks.append(f"a CUDA build of torch (the installed {importlib.metadata.version('torch')} is none)")
    if lacks:
        raise CannotBuild(f"the CUDA kernels need {' and '.join(lacks)}")
    if toolkit.version.split(".")[0] != built_with.split(".")[0]:
        raise CannotBuild(
            "the CUDA kernels need a toolkit and a CUDA build of torch of the same major version: "
            f"nvcc is of CUDA {toolkit.version}, torch of CUDA {built_with}"
        )
    return toolkit


def architecture_flags(toolkit: Toolkit) -> tuple[list[str], list[str]]:
    """Architectures of $CGC_CUDA_ARCH, or those of the default that the toolkit knows; and nvcc's flags for them."""
    wish = os.environ.get("CGC_CUDA_ARCH", "")
    names = re.split(r"[\s;,]+", (wish or CUDA_ARCH).strip())
    if bad := [name for name in names if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name)]:
        raise SystemExit(f'CGC_CUDA_ARCH must list architectures, as "8.0 9.0+PTX", got {bad[0]!r}')
    numbers = {name: name.removesuffix("+PTX").replace(".", "") for name in names}
    if not wish:
        names = [name for name in names if numbers[name] in toolkit.architectures]
    flags = [f"-gencode=arch=compute_{numbers[n]},code=sm_{numbers[n]}" for n in names]
    flags += [f"-gencode=arch=compute_{numbers[n]},code=compute_{numbers[n]}" for n in names if n.endswith("+PTX")]
    return names, flags


def cuda_commands(compiler: list[str], torch: Path, toolkit: Toolkit, architectures: list[str]) -> dict[str, list[str]]:
    """Object name -> command up to its output: kernels and launchers by nvcc, the rest by the host's compiler."""
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    host = ["-ccbin", *compiler] if len(compiler) == 1 else []
    strict = ["-Werror", "all-warnings"] if "-Werror" in extra else []
    nvcc = [toolkit.nvcc, *NVCCFLAGS, *host, *strict, *architectures]
    include = [word for path in (torch / "include", *toolkit.include) for word in ("-isystem", str(path))]
    plain = [*compiler, *CXXFLAGS, STABLE_ABI, "-DUSE_CUDA", *include, *extra]
    folder = ROOT / "csrc" / "cuda"
    kernels = sorted(folder.glob("*.cu"), key=lambda path: -path.stat().st_size)  # the last is waited for alone
    commands = {path.name: [*nvcc, "-c", str(path.relative_to(ROOT))] for path in kernels}
    return commands | {path.name: [*plain, "-c", str(path.relative_to(ROOT))] for path in folder.glob("*.cpp")}


def build_cuda(target: Path) -> dict:
    """Makes the CUDA library; returns what is worth recording."""
    torch, compiler = torch_root(), find_compiler()
    toolkit = require_cuda(torch)
    architectures, flags = architecture_flags(toolkit)
    objects = compile_objects("cuda", "cuda", cuda_commands(compiler, torch, toolkit, flags))
    # CUDA's runtime is linked into it and stays hidden: torch's own may be another one. It loads the driver when used.
    runtime = [*(f"-L{path}" for path in toolkit.libraries), "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    hidden = ["-Wl,--exclude-libs,ALL"] if LINUX else []
    link(target, compiler, objects, [*hidden, *libtorch(torch, "torch_cpu", "torch_cuda"), *runtime])
    torch_version = importlib.metadata.version("torch")
    return {"toolkit": toolkit.version, "torch": torch_version, "architectures": architectures}


class Library(NamedTuple):
    """A library of the package that may be absent."""

    name: str  # its key in the record
    file: str
    switch: str  # the environment variable that decides
    title: str
    build: Callable[[Path], dict]

    def make(self, package: Path) -> dict:
        """Builds it, or removes what an earlier build left; returns the outcome."""
        target = package / self.file
        wish = os.environ.get(self.switch, "")
        if wish not in ("", "0", "1"):
            raise SystemExit(f"{self.switch} must be 0, 1 or unset, got {wish!r}")
        try:
            if wish == "0":
                raise CannotBuild(f"{self.switch}=0 was set when this was installed: install again without it")
            return {"built": True, "reason": "", **self.build(target)}
        except CannotBuild as error:
            if wish == "1":
                raise SystemExit(f"{self.switch}=1, but the {self.title} library cannot be built: {error}") from error
            target.unlink(missing_ok=True)
            return {"built": False, "reason": str(error)}


LIBRARIES = [
    Library("cpp", "_cpu.so", "CGC_CPP", "C++", build_cpp),
    Library("cuda", "_cuda.so", "CGC_CUDA", "CUDA", build_cuda),
]


class BuildLibraries(build_ext):
    """`build_ext` that builds plain shared libraries, or none and tells why."""

    def run(self) -> None:
        self.package = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / "cgc_kernels"
        self.package.mkdir(parents=True, exist_ok=True)
        outcome = {library.name: library.make(self.package) for library in LIBRARIES}
        if not any(each["built"] for each in outcome.values()):
            self.distribution.ext_modules = None  # what is installed is pure Python
        self.tell(outcome)
        (self.package / "_build.json").write_text(json.dumps(outcome, indent=2) + "\n")

    def tell(self, outcome: dict) -> None:
        """Says what is absent and why; pip install -v shows it."""
        lines = [f"without {each.title}: {outcome[each.name]['reason']}" for each in LIBRARIES]
        lines = [line for line, each in zip(lines, LIBRARIES, strict=True) if not outcome[each.name]["built"]]
        if len(lines) == len(LIBRARIES):
            lines.insert(0, "installed as pure Python")
        for line in lines:
            print(f"cgc_kernels: {line}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        files = ("_build.json", *(library.file for library in LIBRARIES))
        return [str(self.package / name) for name in files if (self.package / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """Tags the wheel for any Python 3: for this platform with a library, for every platform without."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setuptools.setup(
    ext_modules=[setuptools.Extension("cgc_kernels._cpu", sources=[])],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
