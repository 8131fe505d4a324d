"""The library's tests against what is installed, where neither the sources nor anything beside torch is.

    python -m tests.tools.installed PYTHON [PYTHON ...] [-- PYTEST'S ARGUMENTS]

Each PYTHON is of an environment with torch, numpy, pytest, hypothesis and an installed wheel. The tests are copied to a
folder without the package, so that the installed one is imported; those are left out that are of other libraries.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("tests", "docs", "python", "README.md", "CHANGELOG.md", "pyproject.toml")
SUITES = ("tests/loss", "tests/operators", "tests/grad_cam")
# What needs torchvision, timm or matplotlib.
OTHERS = (
    *("tests/loss/test_recording.py", "tests/loss/test_crop_flip.py", "tests/loss/test_random_crop_flip.py"),
    "tests/grad_cam/test_families.py",
    *("tests/grad_cam/test_pictures.py", "tests/grad_cam/test_recipes.py"),
)
VERSIONS = """
import sys, torch, cgc_kernels
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: {cgc_kernels.__file__}")
"""


def copied(folder: Path) -> None:
    """The tests and what they read."""
    for name in PARTS:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)


def check(python: str, folder: Path, arguments: list[str]) -> int:
    """Runs the tests in one environment; returns pytest's status."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    how = {"cwd": folder, "env": environment}
    said = subprocess.run([python, "-c", VERSIONS], check=True, text=True, stdout=subprocess.PIPE, **how).stdout
    print(said, end="", flush=True)
    if str(folder) in said or str(ROOT) in said:
        raise SystemExit("the package must be the installed one, got that of the sources")
    left_out = [f"--ignore={path}" for path in OTHERS]
    command = [python, "-m", "pytest", "-q", "-m", "not slow", *left_out, *(arguments or SUITES)]
    return subprocess.run(command, **how).returncode


def main() -> int:
    """The worst status of all environments."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    if not words[:cut]:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        copied(Path(name))
        return max(check(python, Path(name), words[cut + 1 :]) for python in words[:cut])


if __name__ == "__main__":
    sys.exit(main())
