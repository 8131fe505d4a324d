"""What all scripts share: output on any terminal, and a parser without docstrings."""

import io
import os
import subprocess
import sys

import pytest
from driver import flags

from tests.support import ROOT


def test_what_a_terminal_cannot_show_is_written_as_an_escape(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", written)
    with pytest.raises(SystemExit) as stop:
        flags.run_script(lambda: print("54.2 ± 1.2, caf\u00e9, \udcff"))
    assert stop.value.code is None
    written.flush()
    assert written.buffer.getvalue() == b"54.2 \\xb1 1.2, caf\\xe9, \\udcff\n"


def test_a_script_without_a_docstring_has_a_parser():
    """As under python -OO."""
    assert flags.documented_parser("a.py", "FILE", None).format_help().startswith("usage: a.py FILE")


@pytest.mark.slow
def test_scripts_run_without_docstrings():
    code = "import evaluate, explain, experiments; evaluate.make_parser(), explain.make_parser(), experiments._parser()"
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
