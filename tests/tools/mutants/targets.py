"""What can be mutated, and what must notice."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import cpp_source, python_source
from .common import Mutant

PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly")


@dataclass(frozen=True)
class Target:
    """A set of sources, how they are built, and the tests that judge them."""

    sources: tuple[str, ...]  # patterns
    generate: Callable[[str, str], list[Mutant]]
    # Run in turn until one fails; {stage} is the mutated file's. Patterns are expanded, missing ones left out.
    tests: tuple[tuple[str, ...], ...]
    build: tuple[str, ...] = ()  # a mutant that cannot be built is none
    ignored_files: tuple[str, ...] = ()  # patterns: what git ignores and the tests need
    environment: dict[str, str] = field(default_factory=dict)
    # Functions that choose the size of blocks or the form of a launch: they change the speed, which no result shows.
    tuning: tuple[str, ...] = ()

    def stage(self, file: str) -> str:
        """The stage whose tests judge a file first."""
        stem = Path(file).stem
        return SERVES.get(stem, stem.partition("_")[0])

    def mutants(self, root: Path) -> list[Mutant]:
        files = sorted({path for pattern in self.sources for path in root.glob(pattern)})
        if not files:
            raise FileNotFoundError(f"no file matches {', '.join(self.sources)} in {root}")
        names = [path.relative_to(root).as_posix() for path in files]
        found = [m for name, path in zip(names, files, strict=True) for m in self.generate(name, path.read_text())]
        return [mutant for mutant in found if mutant.function not in self.tuning]


BUILD = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
# The stage that a file serves, if not the one that its name begins with.
SERVES = {
    "resample_columns": "cgc",
    "tensors": "ops",
    "geometry": "resample",
    "tiles": "resample",
    "gradients": "resample",
    "dtypes": "cam",
    "exponential": "contrast",
    "stream": "cam",
}
STAGES = ("golden", "cam", "resample", "contrast", "cgc")
BINARIES = ("cgc_kernels/*.so", "cgc_kernels/_build.json", "build/**/*")

# What kernels of both devices include; the operators themselves, in operators/, are the host's.
SHARED_FORMULAS = tuple(
    f"csrc/common/{name}.h"
    for name in ("gradients", "loss", "platform", "resample_columns", "resample_crop", "resample_taps")
)

TARGETS = {
    "triton": Target(
        sources=("cgc_kernels/backends/triton/**/*.py",),
        generate=python_source.mutants,
        tests=(
            (*PYTEST, "tests/triton/interpreted/*{stage}*.py"),
            (*PYTEST, "--ignore=tests/triton/interpreted/test_interpreter.py", "tests/triton/interpreted"),
        ),
        ignored_files=BINARIES[:2],
        environment={"TRITON_INTERPRET": "1"},
    ),
    "cuda": Target(
        sources=("csrc/cuda/*.cu", "csrc/cuda/*.cuh", *SHARED_FORMULAS),
        generate=cpp_source.mutants,
        tests=((*PYTEST, "tests/cuda/test_emulated*.py"), (*PYTEST, "tests/cuda/test_faults.py")),
        ignored_files=(*BINARIES[:2], "build/simt/**/*"),
        tuning=("split_channels", "pixel_parts", "table_elements", "contrast_forward_of"),
    ),
    "cpp": Target(
        sources=("csrc/cpu/*.h", "csrc/common/**/*.h"),
        generate=cpp_source.mutants,
        tests=(
            (*PYTEST, "-k", "cpp", "tests/loss/test_{stage}.py"),
            (*PYTEST, "-k", "cpp", *(f"tests/loss/test_{stage}.py" for stage in STAGES)),
        ),
        build=BUILD,
        ignored_files=BINARIES,
        environment={"CXXFLAGS": "-O1"},  # built for each mutant
        tuning=("block_channels", "block_rows", "padded"),
    ),
}
