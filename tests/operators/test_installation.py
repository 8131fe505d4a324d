"""What is installed: libraries that load or say why not, the devices they were built for, what Triton needs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
import torch

from cgc_kernels.backends import cuda, triton
from tests.support.cases import CPP


def test_the_module_prints_the_report():
    run = subprocess.run(
        [sys.executable, "-m", "cgc_kernels"], capture_output=True, text=True, check=True, env=environment()
    )
    assert run.stderr == ""
    for name in ("cuda", "triton", "cpp", "torch", "reference"):
        assert any(line.startswith(name) for line in run.stdout.splitlines())


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def installation(monkeypatch):
    """The module that loads the compiled libraries, as under a CUDA build of torch."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return import_module("cgc_kernels.ops.installation")


def test_triton_needs_a_compiler_and_headers_but_not_its_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(triton, "python_headers", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "triton needs a C compiler" in triton.requirement()
    assert "use backend='auto'" in triton.requirement()
    monkeypatch.setenv("CC", "cc")
    assert triton.requirement() is None
    (tmp_path / "Python.h").unlink()
    assert f"Python's headers, in {tmp_path}" in triton.requirement()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.requirement() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in triton.requirement()


def test_where_python_keeps_its_headers():
    assert triton.python_headers() == Path(sysconfig.get_path("include", "posix_prefix"))


def test_a_cuda_device_is_asked_for_its_capability(monkeypatch, installation):
    """Once: the answer is kept."""
    asked = []
    monkeypatch.setitem(installation._failures, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 7)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: asked.append(index) or (1, 0))
    monkeypatch.setattr(installation, "_PACKAGE", Path("nowhere"))  # no record: any device is served
    assert [cuda.missing(index) for index in (None, 7, 6, 6)] == [None] * 4
    assert asked == [7, 6]
    cuda._unfit.cache_clear()


LIBRARIES = pytest.mark.parametrize("name", ["cpp", "cuda"])


@LIBRARIES
def test_a_binary_that_does_not_load_is_reported(monkeypatch, tmp_path, installation, name):
    (tmp_path / installation._LIBRARIES[name]).write_bytes(b"not a library")
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path)
    assert f"do not load under torch {torch.__version__}" in installation._load(name)


def test_a_cpu_build_of_torch_has_no_use_for_the_cuda_library(monkeypatch, installation):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert installation._load("cuda") == f"the installed torch {torch.__version__} is built without CUDA"


BUILDS = (
    '{"cpp": {"built": false, "reason": "CGC_CPP=0 was set"}, "cuda": {"built": false, "reason": "CGC_CPP=0 was set"}}',
    '{"cpp": false, "reason": "an older shape"}',
    "not json",
    "{}",
    None,
)


@LIBRARIES
@pytest.mark.parametrize("content", BUILDS)
def test_the_reason_of_the_build_is_reported(monkeypatch, tmp_path, installation, name, content):
    if content is not None:
        (tmp_path / "_build.json").write_text(content)
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path)
    expected = "CGC_CPP=0 was set" if content == BUILDS[0] else "never installed"
    assert expected in installation._load(name)


@pytest.mark.parametrize("isa", ["baseline", "nonsense"])
@pytest.mark.parametrize("backend", [CPP])
def test_the_instruction_set_may_be_lowered(backend, isa):
    code = "import cgc_kernels; print(cgc_kernels.info()['cpp']['instruction_set'])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "CGC_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    order = ("baseline", "avx2", "avx512")
    assert run.stdout.strip() in (order[: order.index(isa) + 1] if isa in order else order)
    if isa == "baseline":
        assert run.stdout.strip() == "baseline"
