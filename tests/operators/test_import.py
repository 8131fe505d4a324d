"""What `import cgc_kernels` does to a process, and what is imported from it."""

import ast
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from cgc_kernels.tracing import constant_result
from tests.support import ROOT

IMPORT = """
import os, sys
import torch

before = dict(os.environ)
import cgc_kernels

assert os.environ == before
"""
STEP = """
from torch import nn
from cgc_kernels import CropFlip, GradCAM, cgc_loss

net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
out, aug = GradCAM(net, "0", closed_form=True)(*torch.rand(2, 2, 3, 10, 10))
cgc_loss(out.cam, aug.cam, CropFlip.identity(2, 10)).backward()
"""
AGAIN = """
for name in [name for name in sys.modules if name.partition(".")[0] == "cgc_kernels"]:
    del sys.modules[name]
import cgc_kernels
"""


def run(code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_the_compiler_of_torch_is_not_imported():
    """It takes longer than all else together, and sets variables of the environment."""
    done = run(IMPORT + STEP + "assert 'torch._dynamo' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_a_reload_works_and_a_second_import_is_refused_by_name():
    done = run(IMPORT + "import importlib; importlib.reload(cgc_kernels); print('reloaded')" + AGAIN)
    assert done.stdout == "reloaded\n"
    assert done.returncode != 0
    assert "ImportError: cgc_kernels must be imported once in a process" in done.stderr


def test_the_mark_of_a_constant_is_torchs():
    def ours():
        pass

    def torchs():
        pass

    assert vars(constant_result(ours)) == vars(torch.compiler.assume_constant_result(torchs)) != {}


@pytest.mark.parametrize("folder", ["python", "docs/recipes"])
def test_scripts_import_public_names_alone(folder):
    files = list((ROOT / folder).rglob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    found = [
        node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cgc_kernels")
    ]
    assert found
    for node in found:
        assert node.module in ("cgc_kernels", "cgc_kernels.metrics")
        assert {name.name for name in node.names} <= set(import_module(node.module).__all__)
