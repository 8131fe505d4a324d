"""The package installs with and without a compiler, says which, and its one binary fits every torch and processor."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from tests.support import ROOT

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")

# A library with the real one's files and none of its contents: builds in no time.
TINY = {
    "kernels.h": "namespace cgc::baseline { int answer(); }\n",
    "kernels.cpp": '#include "kernels.h"\nnamespace cgc::CGC_ISA { int answer() { return 42; } }\n',
    "ops.cpp": '#include "kernels.h"\nextern "C" int cgc_answer() { return cgc::baseline::answer(); }\n',
}


def copy_package(target: Path) -> Path:
    """Copies what an installation needs, without the C++ sources and anything built."""
    built = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "cgc_kernels", target / "cgc_kernels", ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, target)
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package with the tiny library."""
    cpu = copy_package(tmp_path) / "csrc" / "cpu"
    cpu.mkdir(parents=True)
    for name, text in TINY.items():
        (cpu / name).write_text(text)
    return tmp_path


@pytest.fixture
def full_tree(tmp_path: Path) -> Path:
    """A copy of the package with the real library, and with its objects where they have been compiled before."""
    copy_package(tmp_path)
    for folder in ("csrc", "build/cpp", "build/cuda"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def run(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python in the tree, where only `environment` decides about C++ and CUDA; without CUDA unless it asks."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("CGC_CPP", "CGC_CUDA_ARCH")}
    inherited["CGC_CUDA"] = "0"
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env={**inherited, **environment}, text=True, capture_output=True)


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    """Builds in place, as an editable installation does."""
    return run(tree, "setup.py", "-q", "build_ext", "--inplace", **environment)


def wheel(tree: Path, **environment: str) -> Path:
    """Builds a wheel with pip, as a plain installation does."""
    arguments = ("-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "--no-index", "-w", "dist")
    done = run(tree, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "dist").glob("*.whl")
    return path


def record(tree: Path, name: str = "cpp") -> dict:
    return json.loads((tree / "cgc_kernels" / "_build.json").read_text())[name]


def library(tree: Path, name: str = "_cpu.so") -> Path:
    return tree / "cgc_kernels" / name


def assert_pure(tree: Path, done: subprocess.CompletedProcess, reason: str) -> None:
    """The build succeeded without a library, and both its output and its record give the reason."""
    assert done.returncode == 0, done.stderr
    assert not library(tree).exists()
    assert record(tree)["built"] is False
    assert reason in record(tree)["reason"]
    assert "pure Python" in done.stderr
    assert reason in done.stderr


def objects(tree: Path) -> dict[str, int]:
    """Object file -> time of its compilation."""
    return {path.name: path.stat().st_mtime_ns for path in (tree / "build" / "cpp").glob("*.o")}


def test_pure_on_request_removes_an_earlier_library(tree):
    library(tree).touch()
    assert_pure(tree, build(tree, CGC_CPP="0"), "CGC_CPP=0")


def test_pure_when_the_compiler_does_not_exist(tree):
    assert_pure(tree, build(tree, CC="/nowhere/cc", CXX="/nowhere/c++"), "no working C++17 compiler (CXX=/nowhere/c++)")


def test_pure_when_no_compiler_is_on_the_path(tree):
    (tree / "empty").mkdir()
    done = build(tree, CC="", CXX="", PATH=str(tree / "empty"))
    assert_pure(tree, done, "no working C++17 compiler (c++, g++ and clang++)")


def test_pure_when_torch_is_too_old_for_the_stable_abi(tree):
    (tree / "old" / "torch").mkdir(parents=True)
    (tree / "old" / "torch" / "__init__.py").touch()
    assert_pure(tree, build(tree, PYTHONPATH=str(tree / "old")), "install torch 2.10 or newer")


@needs_compiler
def test_pure_when_the_sources_do_not_compile(tree):
    (tree / "csrc" / "cpu" / "kernels.cpp").write_text("this is no C++\n")
    done = build(tree)
    assert_pure(tree, done, "failed to make kernels_baseline")
    assert "this is no C++" in done.stderr


def test_explicit_request_that_cannot_be_served_fails(tree):
    done = build(tree, CGC_CPP="1", CXX="/nowhere/c++")
    assert done.returncode != 0
    assert "CGC_CPP=1" in done.stderr
    assert "no working C++17 compiler" in done.stderr


def test_unknown_request_fails(tree):
    done = build(tree, CGC_CPP="yes")
    assert done.returncode != 0
    assert "CGC_CPP must be 0, 1 or unset, got 'yes'" in done.stderr


@needs_compiler
def test_only_what_changed_is_compiled_again(tree):
    assert build(tree, CGC_CPP="1").returncode == 0
    assert record(tree)["built"] is True
    first = objects(tree)
    assert build(tree, CGC_CPP="1").returncode == 0
    assert objects(tree) == first
    (tree / "csrc" / "cpu" / "kernels.h").touch()
    assert build(tree, CGC_CPP="1").returncode == 0
    second = objects(tree)
    assert second.keys() == first.keys()
    assert all(second[name] > first[name] for name in first)


def test_pure_package_works_and_says_what_is_missing(tree):
    assert build(tree, CGC_CPP="0").returncode == 0
    done = run(tree, "-m", "cgc_kernels", PYTHONPATH=str(tree))
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("cpp"))
    assert "CGC_CPP=0 was set when this was installed" in line
    use = (
        "import torch, cgc_kernels as k; x = torch.rand(2, 3, 4, 4); "
        "crop = k.CropFlip(*torch.tensor([[0, 0], [0, 0], [8, 8], [8, 8]]), torch.tensor([True, False])); "
        "print(k.__file__); print(float(k.cgc_loss((x, x), (x, x), crop, image_size=8)))"
    )
    done = run(tree, "-c", use, PYTHONPATH=str(tree))
    assert done.returncode == 0, done.stderr
    file, loss = done.stdout.splitlines()
    assert Path(file).is_relative_to(tree)
    assert float(loss) > 0


def test_pure_wheel_fits_every_platform(tree):
    path = wheel(tree, CGC_CPP="0")
    assert path.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(path).namelist()
    assert "cgc_kernels/_build.json" in names
    assert not [name for name in names if name.endswith(".so")]


@needs_compiler
def test_wheel_fits_every_python_and_holds_the_package_alone(full_tree):
    package = {str(path.relative_to(full_tree)) for path in (full_tree / "cgc_kernels").rglob("*") if path.is_file()}
    path = wheel(full_tree, CGC_CPP="1")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert path.name.endswith(f"-py3-none-{platform}.whl")
    names = zipfile.ZipFile(path).namelist()
    package |= {"cgc_kernels/_cpu.so", "cgc_kernels/_build.json"}
    assert package == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def weak_functions(path: Path) -> set[str]:
    """Functions of an object that the linker merges with others of the same name: inline ones, templates."""
    lines = subprocess.check_output(["nm", "--defined-only", str(path)], text=True).splitlines()
    return {line.split()[2] for line in lines if line.split()[1] == "W"}


def merged(folder: Path) -> set[str]:
    """Weak functions that more than one object holds, at least one of them compiled for a special processor."""
    kernels = [weak_functions(path) for path in folder.glob("kernels_*.o")]
    others = [weak_functions(path) for path in folder.glob("ops*.o")]
    return {name for names in kernels for name in names if sum(name in n for n in [*kernels, *others]) > 1}


@needs_compiler
@needs_nm
def test_no_function_compiled_for_one_processor_can_replace_another_one(full_tree):
    assert build(full_tree, CGC_CPP="1").returncode == 0
    folder = full_tree / "build" / "cpp"
    assert len(list(folder.glob("kernels_*.o"))) == len(record(full_tree)["isas"])
    assert merged(folder) == set()


@needs_compiler
@needs_nm
def test_the_check_above_finds_a_shared_function(tree):
    header = tree / "csrc" / "cpu" / "kernels.h"
    header.write_text(header.read_text() + "__attribute__((noinline, used)) inline int shared() { return 1; }\n")
    assert build(tree, CGC_CPP="1").returncode == 0
    assert any("shared" in name for name in merged(tree / "build" / "cpp"))


@needs_compiler
@needs_nm
def test_library_asks_torch_for_the_stable_abi_only(full_tree):
    assert build(full_tree, CGC_CPP="1").returncode == 0
    nm = subprocess.check_output(["nm", "--dynamic", "--undefined-only", str(library(full_tree))], text=True)
    wanted = [line.split()[-1] for line in nm.splitlines()]
    assert any("torch_parallel_for" in name for name in wanted)
    # The stable ABI is plain C; a C++ name of torch (at::, c10::, torch::) would tie the binary to one version.
    assert [
        name for name in wanted if name.startswith("_Z") and any(n in name for n in ("2at", "3c10", "5torch"))
    ] == []


# ---- The CUDA library.

# Stands for nvcc where only its version matters.
FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  --list-gpu-code) echo sm_90 ;;
esac
"""
KERNEL = """
__global__ void twice(float* x) { x[threadIdx.x] *= 2; }
extern "C" __attribute__((visibility("default"))) int cgc_twice(float* x, cudaStream_t stream) {
  twice<<<1, 32, 0, stream>>>(x);
  return cudaGetLastError();
}
"""
CUDA_OF_TORCH = torch.version.cuda
NVCC = shutil.which(str(Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc") if "CUDA_HOME" in os.environ else "nvcc")

needs_cuda = pytest.mark.skipif(
    None in (COMPILER, NVCC, CUDA_OF_TORCH), reason="needs a C++ compiler, a CUDA toolkit and a CUDA build of torch"
)


@pytest.fixture
def cuda_tree(tree: Path) -> Path:
    """The tiny package with a kernel."""
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "twice.cu").write_text(KERNEL)
    return tree


def fake_toolkit(tree: Path) -> str:
    """Value of CUDA_HOME."""
    nvcc = tree / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    return str(tree / "toolkit")


def fake_torch(tree: Path, cuda: str | None) -> str:
    """Value of PYTHONPATH, where torch was built with that version of CUDA."""
    headers = tree / "other" / "torch" / "include" / "torch" / "csrc" / "stable"
    headers.mkdir(parents=True)
    (headers / "ops.h").touch()
    package = tree / "other" / "torch"
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"__version__ = '2.14.1'\ncuda: Optional[str] = {cuda!r}\n")
    return str(tree / "other")


def assert_no_cuda(tree: Path, reason: str, **environment: str) -> None:
    """Without a wish the package is built without CUDA and says why; CGC_CUDA=1 fails with the same reason."""
    library(tree, "_cuda.so").touch()
    done = build(tree, CGC_CPP="0", **{"CGC_CUDA": "", **environment})
    assert done.returncode == 0, done.stderr
    assert not library(tree, "_cuda.so").exists()
    assert record(tree, "cuda")["built"] is False
    assert reason in record(tree, "cuda")["reason"]
    assert f"cgc_kernels: without CUDA: {record(tree, 'cuda')['reason']}" in done.stderr
    done = build(tree, CGC_CPP="0", **{"CGC_CUDA": "1", **environment})
    assert done.returncode != 0
    assert "CGC_CUDA=1, but the CUDA library cannot be built: " in done.stderr
    assert reason in done.stderr


@needs_compiler
def test_cuda_library_names_a_missing_toolkit(cuda_tree):
    reason = "the CUDA kernels need a CUDA toolkit (set CUDA_HOME, or put its nvcc on the path)"
    assert_no_cuda(cuda_tree, reason, CUDA_HOME="/nowhere", PYTHONPATH=fake_torch(cuda_tree, "13.0"))


@needs_compiler
def test_cuda_library_names_a_missing_cuda_build_of_torch(cuda_tree):
    environment = {"CUDA_HOME": fake_toolkit(cuda_tree), "PYTHONPATH": fake_torch(cuda_tree, None)}
    assert_no_cuda(cuda_tree, "the CUDA kernels need a CUDA build of torch (the installed", **environment)


@needs_compiler
def test_cuda_library_names_both(cuda_tree):
    environment = {"CUDA_HOME": "/nowhere", "PYTHONPATH": fake_torch(cuda_tree, None)}
    assert_no_cuda(cuda_tree, "nvcc on the path) and a CUDA build of torch", **environment)


@needs_compiler
def test_cuda_library_names_different_major_versions(cuda_tree):
    environment = {"CUDA_HOME": fake_toolkit(cuda_tree), "PYTHONPATH": fake_torch(cuda_tree, "12.8")}
    assert_no_cuda(cuda_tree, "same major version: nvcc is of CUDA 13.0, torch of CUDA 12.8", **environment)


@needs_compiler
def test_cuda_library_is_not_built_on_request(cuda_tree):
    library(cuda_tree, "_cuda.so").touch()
    done = build(cuda_tree, CGC_CPP="0", CGC_CUDA="0")
    assert done.returncode == 0
    assert not library(cuda_tree, "_cuda.so").exists()
    assert "CGC_CUDA=0 was set" in record(cuda_tree, "cuda")["reason"]


@needs_compiler
def test_unknown_architecture_fails(cuda_tree):
    environment = {"CUDA_HOME": fake_toolkit(cuda_tree), "PYTHONPATH": fake_torch(cuda_tree, "13.0")}
    done = build(cuda_tree, CGC_CPP="0", CGC_CUDA="", CGC_CUDA_ARCH="8.0 hopper", **environment)
    assert done.returncode != 0
    assert "CGC_CUDA_ARCH must list architectures, as \"8.0 9.0+PTX\", got 'hopper'" in done.stderr


@needs_cuda
def test_both_libraries_are_built_and_go_into_one_wheel(cuda_tree):
    path = wheel(cuda_tree, CGC_CPP="1", CGC_CUDA="1", CGC_CUDA_ARCH="9.0+PTX")
    names = set(zipfile.ZipFile(path).namelist())
    assert {"cgc_kernels/_cpu.so", "cgc_kernels/_cuda.so", "cgc_kernels/_build.json"} <= names
    built = json.loads(zipfile.ZipFile(path).read("cgc_kernels/_build.json"))["cuda"]
    assert (built["built"], built["architectures"]) == (True, ["9.0+PTX"])
    (log,) = (cuda_tree / "build" / "cuda").glob("*.log")
    assert "0 bytes spill stores" in log.read_text()


@needs_cuda
def test_only_what_changed_of_cuda_is_compiled_again(cuda_tree):
    def times() -> list[int]:
        wish = {"CGC_CPP": "1", "CGC_CUDA": "1", "CGC_CUDA_ARCH": "9.0"}
        assert build(cuda_tree, **wish).returncode == 0
        return [p.stat().st_mtime_ns for kind in ("cpp", "cuda") for p in (cuda_tree / "build" / kind).glob("*.o")]

    first = times()
    assert times() == first
    (cuda_tree / "csrc" / "cuda" / "twice.cu").touch()
    second = times()
    assert second[:-1] == first[:-1]
    assert second[-1] > first[-1]


@needs_cuda
@needs_nm
def test_cuda_library_needs_neither_driver_nor_runtime_to_load(cuda_tree):
    assert build(cuda_tree, CGC_CPP="0", CGC_CUDA="1", CGC_CUDA_ARCH="9.0").returncode == 0
    path = library(cuda_tree, "_cuda.so")
    needed = subprocess.check_output(["readelf", "-d", str(path)], text=True)
    assert [line for line in needed.splitlines() if "NEEDED" in line and re.search(r"libcuda(rt)?\.so", line)] == []
    # The runtime inside is ours alone: a name that it exported could replace that of the runtime torch uses.
    defined = subprocess.check_output(["nm", "--dynamic", "--defined-only", str(path)], text=True)
    assert [line.split()[-1] for line in defined.splitlines()] == ["cgc_twice"]
    ctypes.CDLL(str(path))
