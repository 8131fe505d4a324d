"""A copy of the package without its compiled library: what it says, and what serves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cgc_kernels

PURE = """
import io, json, sys, torch
import cgc_kernels
from cgc_kernels.ops.resample import transform_tensors
from torch._subclasses import FakeTensorMode

found = {"file": cgc_kernels.__file__, "info": cgc_kernels.info()}
with FakeTensorMode():
    x = torch.empty(4, 3, 5, 6)
    crops = [torch.empty(4, dtype=torch.int64)] * 5
    outputs = torch.ops.cgc_kernels.cgc(x, x, x, x, crops, 8, 8, 0.5, False, 0, 0.0, 1e-8)
    found["shapes"] = [list(t.shape) for t in outputs]
    found["cam"] = [list(t.shape) for t in torch.ops.cgc_kernels.cam(x, x, True)]
x = torch.rand(2, 3, 4, 4)
crop = cgc_kernels.CropFlip.identity(2, 8)
def loss(name):
    return float(cgc_kernels.cgc_loss((x, x), (x, x), crop, image_size=8, backend=name))
found["losses"] = {name: loss(name) for name in ("auto", "torch", "reference")}
for key, call in {
    "cpp": lambda: loss("cpp"),
    "gradcam": lambda: cgc_kernels.gradcam(x, x, backend="cpp"),
    "operator": lambda: torch.ops.cgc_kernels.cam(x, x, True),
}.items():
    try:
        call()
        found[key] = None
    except Exception as error:
        found[key] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    """What a copy of the package without the compiled library says of itself."""
    folder = tmp_path_factory.mktemp("pure")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    shutil.copytree(Path(cgc_kernels.__file__).parent, folder / "cgc_kernels", ignore=ignore)
    env = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run([sys.executable, "-c", PURE], env=env, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stderr
    report = subprocess.run([sys.executable, "-m", "cgc_kernels"], env=env, capture_output=True, text=True, cwd=folder)
    assert report.returncode == 0, report.stderr
    found = json.loads(run.stdout)
    assert Path(found["file"]).is_relative_to(folder)
    return {**found, "report": report.stdout}


def test_schema_and_fake_exist_without_the_binary(pure):
    assert pure["shapes"] == [[], [2 * 8 * 4 + 4 * (2 * 4 * 3 + (2 + 1 + 1 + 3) * 4 * 30)]]
    assert pure["cam"] == [[4, 5, 6], [0]]
    assert pure["operator"][0] == "NotImplementedError"


def test_torch_serves_without_the_binary(pure):
    losses = pure["losses"]
    assert losses["auto"] == losses["torch"]
    assert abs(losses["auto"] - losses["reference"]) < 1e-6
    assert pure["info"]["auto"]["cpu"] == "torch"


@pytest.mark.parametrize("call", ["cpp", "gradcam"])
def test_explicit_cpp_raises_with_the_remedy_without_the_binary(pure, call):
    kind, message = pure[call]
    assert kind == "RuntimeError"
    assert "backend must be one that can serve this call, got 'cpp'" in message
    assert "were not built" in message
    assert "install a C++17 compiler and run: CGC_CPP=1 pip install" in message


def test_info_without_the_binary(pure):
    backends = pure["info"]["backends"]
    assert not backends["cpp"]["available"]
    assert "never installed" in backends["cpp"]["reason"]
    assert backends["torch"] == {"available": True, "reason": ""}
    assert pure["info"]["cpp"] == {}


def test_report_without_the_binary(pure):
    lines = pure["report"].splitlines()
    (cpp,) = (line for line in lines if line.startswith("cpp"))
    assert cpp.split()[1] == "no"
    assert "CGC_CPP=1 pip install" in cpp
    assert "backend='auto' on cpu tensors: torch" in lines
    assert not any("code on" in line for line in lines)
