"""What checks the kernels without a GPU must not outgrow what it checks."""

from tests.support import ROOT

SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh"}
PRODUCT = ("cgc_kernels/**/*", "csrc/**/*")
# Tools and the tests of the tools; what a tool's tests say of the kernels themselves is no machinery.
MACHINERY = {
    "mutants": ("tests/tools/mutants/*", "tests/tools/test_mutants.py"),
    "emulator": (
        *("tests/cuda/simt/*", "tests/cuda/kernels.cu", "tests/cuda/launchers.py", "tests/cuda/emulation.py"),
        *("tests/cuda/simt_cases.py", "tests/cuda/test_simt*.py", "tests/cuda/test_faults.py"),
    ),
    "interpreter": (
        *("tests/triton/interpreter*.py", "tests/triton/interpreted/conftest.py"),
        *("tests/triton/interpreted/kernels.py", "tests/triton/interpreted/test_interpreter.py"),
    ),
    "random calls": ("tests/tools/fuzz/*", "tests/tools/test_fuzz.py"),
    "sanitizers": ("tests/cpu/*",),
    "machine code": (
        *("bench/*codegen*.py", "bench/sass.py", "bench/occupancy.py", "tests/*/test_*codegen*.py"),
        "tests/cuda/test_sass.py",
    ),
}


def lines(patterns):
    """Of all sources that match; each pattern must match one."""
    total = 0
    for pattern in patterns:
        found = [path for path in ROOT.glob(pattern) if path.suffix in SOURCES]
        assert found, f"nothing matches {pattern}: name what it has become"
        total += sum(len(path.read_text().splitlines()) for path in found)
    return total


def test_the_machinery_is_shorter_than_the_product():
    machinery = {name: lines(patterns) for name, patterns in MACHINERY.items()}
    assert sum(machinery.values()) <= lines(PRODUCT), machinery
