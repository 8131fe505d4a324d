"""Random calls: the invalid ones all, of the valid ones a few of each backend, and the tool itself."""

import json
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.cases import BACKENDS
from tests.tools.fuzz import invalid, valid

EACH = 100


@pytest.mark.filterwarnings("ignore")  # torch's own, of nested tensors and the like
@pytest.mark.parametrize("first", range(0, len(invalid.CALLS), EACH))
def test_invalid_calls_are_refused_in_our_words(first):
    for number in range(first, min(first + EACH, len(invalid.CALLS))):
        invalid.run("any", "", number)


def test_invalid_calls_are_distinct():
    """By what is called and with which objects."""
    keys = {
        (function, *map(id, arguments), *((name, id(value)) for name, value in named.items()))
        for function, arguments, named in invalid.CALLS
    }
    assert len(keys) >= 1500


@pytest.mark.parametrize("backend", BACKENDS)
def test_valid_calls_equal_the_reference(backend):
    for number in range(40):
        valid.run(backend, f"0:valid:{backend}:{number}", number)


@pytest.mark.parametrize("scale", [1 + 1e-2, float("nan")])
def test_a_wrong_gradient_is_found(monkeypatch, scale):
    honest = valid.Call.__call__

    def wrong(call, backend, dtype=None):
        result, grads = honest(call, backend, dtype)
        return result, grads if backend == "reference" else [g if g is None else g * scale for g in grads]

    monkeypatch.setattr(valid.Call, "__call__", wrong)
    found = 0
    for number in range(20):
        try:
            valid.run("torch", f"0:valid:torch:{number}", number)
        except AssertionError as error:
            found += "gradient" in str(error)
    assert found >= 5


def test_the_state_goes_on_and_a_crash_is_told(tmp_path):
    """In processes of their own, as from the command line."""
    command = [sys.executable, "-m", "tests.tools.fuzz", "--state", tmp_path / "state", "--backends", "torch"]
    for total in (4, 8):
        done = subprocess.run([*command, "--valid", str(total)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((tmp_path / "state").read_text())["next"] == {"valid:torch": total}
        assert f"{total} valid:torch; 0 failed" in done.stdout
