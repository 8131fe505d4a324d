"""csrc/cuda/simt.h as nvcc sees it, in the sample kernels."""

import shutil
import subprocess

import pytest

from tests.cuda.simt.build import HERE, ROOT

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

ARCHITECTURES = (80, 90, 100, 120)


def nvcc(*arguments: str) -> None:
    flags = ["-std=c++17", "-Werror", "all-warnings", f"-I{ROOT / 'csrc' / 'cuda'}", str(HERE / "samples.cu")]
    done = subprocess.run(["nvcc", *flags, *arguments], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_assembles_for_every_architecture(tmp_path):
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in ARCHITECTURES]
    nvcc("-c", *targets, "-o", str(tmp_path / "samples.o"))


@pytest.mark.parametrize("architecture", [80, 90])
def test_instructions(tmp_path, architecture):
    nvcc("-ptx", f"-arch=compute_{architecture}", "-o", str(tmp_path / "samples.ptx"))
    ptx = (tmp_path / "samples.ptx").read_text()
    for instruction in (
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64",
        "ld.global.nc.L1::no_allocate.v4.u32",
        "st.global.v4.u32",
    ):
        assert instruction in ptx
    dependent = architecture >= 90
    assert ptx.count("griddepcontrol.wait") == (4 if dependent else 0)
    assert ptx.count("griddepcontrol.launch_dependents") == (2 if dependent else 0)
