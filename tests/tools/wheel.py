"""Shows that one wheel serves two builds of torch: built once, installed and used in two fresh virtual environments.

    python tests/tools/wheel.py [--cpu "torch==2.13.0"] [--cuda "torch==2.14.1"]

Run it where a CUDA build of torch and a toolkit are. Each option is what pip is asked to install. The first environment
must get a CPU build, where the CPU library works and the CUDA one is left alone; in the second, a CUDA build, both are
loaded. Needs no GPU, some 6 GB of disk and what pip downloads.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Runs in a fresh environment, away from the sources.
USE = """
import json, pathlib, torch, cgc_kernels as k
generator = torch.Generator().manual_seed(0)
views = [torch.rand(4, 16, 7, 7, generator=generator) for _ in range(4)]
corners = torch.tensor([[0, 3, 5, 0], [0, 2, 0, 1], [32, 20, 9, 31], [32, 25, 30, 8]])
crop = k.CropFlip(*corners, torch.tensor([False, True, False, True]))
loss = {
    name: float(k.cgc_loss(tuple(views[:2]), tuple(views[2:]), crop, image_size=32, backend=name))
    for name in ("cpp", "reference")
}
loaded = {line.split("/")[-1] for line in pathlib.Path("/proc/self/maps").read_text().split("\\n")}
print(json.dumps({
    "file": k.__file__,
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "loss": loss,
    "backends": k.info()["backends"],
    "mapped": sorted(loaded & {"_cpu.so", "_cuda.so"}),
    "cuda_kernel": torch._C._dispatch_has_kernel_for_dispatch_key("cgc_kernels::cgc", "CUDA"),
}))
"""


def run(*command: object, **options) -> str:
    """Runs a command, shows it, and returns what it prints."""
    print("$", shlex.join(map(str, command))[:150], flush=True)
    return subprocess.run(list(map(str, command)), check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def build(folder: Path) -> Path:
    """The wheel, with both libraries."""
    environment = {**os.environ, "CGC_CPP": "1", "CGC_CUDA": "1"}
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        ROOT,
        "--no-build-isolation",
        "--no-deps",
        "-w",
        folder,
        env=environment,
    )
    (wheel,) = folder.glob("*.whl")
    libraries = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    assert libraries == {"cgc_kernels/_cpu.so", "cgc_kernels/_cuda.so"}, libraries
    return wheel


def use(wheel: Path, folder: Path, torch: str) -> dict:
    """Installs torch and the wheel in a fresh environment and reports what works there."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *shlex.split(torch))
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = json.loads(run(python, "-c", USE, cwd=folder, env=environment).splitlines()[-1])
    assert Path(found["file"]).is_relative_to(folder), found["file"]
    assert found["backends"]["cpp"]["available"], found["backends"]["cpp"]
    assert abs(found["loss"]["cpp"] - found["loss"]["reference"]) < 1e-5, found["loss"]
    return found


def show(title: str, found: dict) -> None:
    """Prints what was found in one environment."""
    print(f"\n{title}: torch {found['torch']}, CUDA {found['cuda']}")
    print(f"  loss                 {found['loss']}")
    print(f"  loaded               {', '.join(found['mapped'])}")
    print(f"  CUDA kernel of cgc   {found['cuda_kernel']}")
    for name, backend in found["backends"].items():
        print(f"  {name:10} {'yes' if backend['available'] else 'no ':3}  {backend['reason']}")
    print(flush=True)


def main() -> None:
    """Builds, installs twice, and fails unless everything is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default="torch==2.13.0", help="for pip: a CPU build of torch")
    parser.add_argument("--cuda", default="torch==2.14.1", help="for pip: a CUDA build of torch")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, sha256 {digest}")
        on_cpu = use(wheel, folder / "cpu", asked.cpu)
        show("first environment", on_cpu)
        assert on_cpu["cuda"] is None, f"{asked.cpu} is a CUDA build: add --index-url of a CPU index"
        assert (on_cpu["mapped"], on_cpu["cuda_kernel"]) == (["_cpu.so"], False)
        on_cuda = use(wheel, folder / "cuda", asked.cuda)
        show("second environment", on_cuda)
        assert on_cuda["cuda"] is not None, f"{asked.cuda} is not a CUDA build"
        assert (on_cuda["mapped"], on_cuda["cuda_kernel"]) == (["_cpu.so", "_cuda.so"], True)
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == digest
    print("one wheel, two builds of torch: works in both")


if __name__ == "__main__":
    main()
