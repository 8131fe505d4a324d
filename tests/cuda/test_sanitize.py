"""`make gpu` fails when compute-sanitizer finds something, and when it checks nothing."""

import re
import subprocess
import sys
from itertools import pairwise, product

import pytest

from tests.cuda import sanitize

CLEAN = "3 passed\n========= ERROR SUMMARY: 0 errors\n"
RACES = "========= RACECHECK SUMMARY: {} hazards displayed (0 errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("returncode", "output", "fault"),
    [
        (0, CLEAN, ""),
        (0, RACES.format(0), ""),
        (0, "3 passed\n", "printed no summary"),
        (0, "", "printed no summary"),
        (1, "========= ERROR SUMMARY: 12 errors\n", "found 12 errors"),
        (0, RACES.format(2), "found 2 errors"),
        (1, "1 failed\n========= ERROR SUMMARY: 0 errors\n", "ended with 1"),
        (5, "no tests ran\n========= ERROR SUMMARY: 0 errors\n", "ended with 5"),
    ],
)
def test_verdict(returncode, output, fault):
    said = sanitize.verdict(returncode, output)
    assert (said == "") == (fault == "")
    assert fault in said


@pytest.mark.parametrize(("silent", "status"), [("none", 0), ("synccheck", 1)])
def test_all_tools_run_and_one_that_is_silent_fails(tmp_path, silent, status):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\n[ "$2" = {silent} ] || echo "========= ERROR SUMMARY: 0 errors"\n')
    tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, sanitize.__file__], env=environment, text=True, capture_output=True)
    assert done.returncode == status, done.stdout
    for name in sanitize.TOOLS:
        expected = "compute-sanitizer printed no summary: it checked nothing" if name == silent else "clean"
        assert f"{name}: {expected}" in done.stdout


def test_tools_side_by_side_have_ports_of_their_own():
    lines = [sanitize.command("compute-sanitizer", tool, []) for tool in sanitize.TOOLS]
    ports = sorted(int(line[line.index("--port") + 1]) for line in lines)
    assert min(b - a for a, b in pairwise(ports)) >= 10


def test_a_missing_sanitizer_fails(monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "sanitizer", lambda: None)
    assert sanitize.main([]) == 1
    assert "compute-sanitizer is not on the path" in capsys.readouterr().err


def test_the_toolkits_sanitizer_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    tool = tmp_path / "cuda" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.touch(0o755)
    assert sanitize.sanitizer() == str(tool)


def test_the_subset_is_chosen_by_readable_names():
    """Both backends and memory formats, two dtypes, two objectives."""
    command = sanitize.command("", "memcheck", sanitize.SUBSET)
    pytest_alone = command[command.index("-m") - 1 :]
    done = subprocess.run([*pytest_alone, "--collect-only"], cwd=sanitize.ROOT, text=True, capture_output=True)
    names = set(re.findall(r"^tests/cuda/test_gpu.py::\w+\[(.*)\]$", done.stdout, re.MULTILINE))
    formats, dtypes, objectives = ("contiguous_format", "channels_last"), ("float32", "bfloat16"), ("released", "mse")
    assert names == set(map("-".join, product(("cuda", "triton"), formats, dtypes, objectives))), done.stdout
