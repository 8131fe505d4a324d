"""Runs CUDA kernels on the CPU: `build` compiles a source with the emulator, `Emulator` runs and watches it."""

from .build import asan_environment, build, missing
from .emulator import Emulator, Traffic

__all__ = ["Emulator", "Traffic", "asan_environment", "build", "missing"]
