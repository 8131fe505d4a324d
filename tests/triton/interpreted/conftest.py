"""Tests of Triton kernels: in the repaired interpreter, so in a process of their own with TRITON_INTERPRET=1."""

import importlib.util
import os

import pytest


def reason_to_skip() -> str | None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "runs in a process of its own, with TRITON_INTERPRET=1"
    if not importlib.util.find_spec("triton"):
        return "needs triton"
    from tests.triton import interpreter

    if not (reason := interpreter.unfit()):
        interpreter.repair()
    return reason


REASON = reason_to_skip()


class SkippedModule(pytest.Module):
    """Skipped without being imported, for without the interpreter there may be no triton to import."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return SkippedModule.from_parent(parent, path=module_path) if REASON else None
