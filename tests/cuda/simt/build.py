"""Compiles CUDA sources with g++ and the emulator, in three flavours.

- `plain`: fast; wrong results, deadlocks and bad warp operations, in any order of threads.
- `instrumented`: every load and store is seen: races, bounds, uninitialised reads, bytes and sectors, with random
  preemption. Of ThreadSanitizer only the compiler's part is used, on the kernels' file; the runtime supplies the hooks.
- `asan`: AddressSanitizer's red zones round global and shared memory. Needs `asan_environment()` in its own process.

All that is needed of CUDA is headers: of a toolkit, or of `pip install cgc-kernels[emulator]`.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.once import locked

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OUTPUT = ROOT / "build" / "simt"

# Optimised little: to compile is most of what a test takes, and runs are no faster at -O2.
CXXFLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-gdwarf-4", "-g1"),  # addr2line finds the wrong file in version 5, and asks for lines alone
    "-fno-strict-aliasing",  # kernels look at one piece of memory as uint4 and as bfloat16
    *("-fno-tree-vectorize", "-fno-tree-slp-vectorize"),  # an access of the source is an access of the binary
    "-fno-gnu-unique",  # two libraries with one kernel, as mutants are, share no variable
    "-ffp-contract=fast",
]
FLAVOURS = {
    "plain": [],
    "instrumented": ["-fsanitize=thread"],
    "asan": ["-O0", "-fsanitize=address", "-fno-omit-frame-pointer"],
}


def compiler() -> str:
    """g++ of $CXX or of the path: Clang defines `__global__` & co. in another way."""
    wish = os.environ.get("CXX", "g++")
    return wish if shutil.which(wish) else "g++"


@functools.cache
def cuda_include() -> Path | None:
    """Folder with NVIDIA's headers: of the toolkit, else of the packages of the `emulator` extra."""
    nvcc = shutil.which("nvcc")
    folders = [Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    folders += [Path("/usr/local/cuda/include")]
    spec = importlib.util.find_spec("nvidia")
    folders += [Path(path) / "cu13" / "include" for path in (spec.submodule_search_locations if spec else [])]
    needed = ("cuda_fp16.h", "cuda_bf16.h", "vector_types.h", "crt/host_defines.h", "nv/target")
    return next((f for f in folders if all((f / n).exists() or (f / "cccl" / n).exists() for n in needed)), None)


def missing() -> str:
    """Why the emulator cannot be built here, with the remedy; empty if it can."""
    if shutil.which(compiler()) is None:
        return "the emulator needs g++"
    if cuda_include() is None:
        return "the emulator needs NVIDIA's headers: a CUDA toolkit, or pip install 'cgc-kernels[emulator]'"
    return ""


def build(
    source: str | Path,
    flavour: str = "plain",
    *,
    defines: Iterable[str] = (),
    include: Iterable[str | Path] = (),
    portable: bool = False,
) -> Path:
    """Library of one CUDA source and the emulator, compiled if no earlier call has made it.

    source: a .cu file, relative to the repository or absolute, with `extern "C"` launchers. flavour: see above.
    defines: macros, "NAME" or "NAME=value". include: folders searched before csrc/cuda, csrc/common and csrc, but after
        this one, whose simt.h takes the place of csrc's.
    portable: switch threads without assembly, as on processors other than x86-64.
    """
    source = ROOT / source
    folders = [HERE, source.parent, *include, *(ROOT / "csrc" / name for name in ("cuda", "common", ""))]
    command = [
        *(compiler(), *CXXFLAGS, *FLAVOURS[flavour], *(f"-D{each}" for each in defines)),
        *(f"-I{ROOT / each}" for each in folders),
        *("-isystem", str(cuda_include()), "-isystem", str(cuda_include() / "cccl")),
    ]
    runtime = _runtime(portable)
    # Headers come from the compiler's own list, so that the key changes with any of them.
    key = _key(command, str(runtime), *_sources([*command, "-x", "c++", str(source)]))
    target = OUTPUT / f"{source.stem}-{flavour}-{key}.so"
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            object_file = target.with_suffix(".o")
            _run([*command, "-x", "c++", "-c", str(source), "-o", str(object_file)])
            libraries = [str(runtime), f"-Wl,-rpath,{OUTPUT}", "-Wl,-Bsymbolic"]
            sanitizer = FLAVOURS[flavour] if flavour == "asan" else []
            _link([compiler(), *sanitizer, "-shared", str(object_file), *libraries], target)
            object_file.unlink()
    return target


def asan_environment() -> dict[str, str]:
    """Environment of a process that loads an `asan` library: the sanitizer has to come first."""
    library = subprocess.check_output([compiler(), "-print-file-name=libasan.so"], text=True).strip()
    standard = subprocess.check_output([compiler(), "-print-file-name=libstdc++.so"], text=True).strip()
    # Python's own leaks are not ours; fibers leave their stacks in ways that fake stacks do not follow.
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    return {**os.environ, "LD_PRELOAD": f"{library} {standard}", "ASAN_OPTIONS": options}


def _runtime(portable: bool) -> Path:
    """The emulator's own library, one for all flavours."""
    sources = sorted(HERE.glob("*.cpp"))
    command = [compiler(), "-std=c++17", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-isystem", str(cuda_include())]
    command += ["-DSIMT_UCONTEXT"] if portable else []
    target = OUTPUT / f"libsimt-{_key(command, *sources, *sorted(HERE.glob('*.h')))}.so"
    if not target.exists():
        whole = "".join(f'#include "{source}"\n' for source in sources)  # the standard headers are read once
        _link([*command, f"-Wl,-soname,{target.name}", "-shared", "-x", "c++", "-", "-ldl"], target, whole)
    return target


def _sources(command: list[str]) -> list[Path]:
    """What a compilation reads, system headers apart."""
    rule = _run([*command, "-MM"]).replace("\\\n", " ")
    return [Path(name) for name in rule.split(":", 1)[1].split()]


def _key(*parts: list[str] | str | Path) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return digest.hexdigest()[:16]


def _link(command: list[str], target: Path, source: str = "") -> None:
    """The library is there whole or not at all."""
    unfinished = target.with_suffix(f".{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    _run([*command, "-o", str(unfinished)], source)
    unfinished.replace(target)


def _run(command: list[str], source: str = "") -> str:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    done = subprocess.run([*nice, *command], input=source, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
