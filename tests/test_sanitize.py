"""`make gpu` fails when compute-sanitizer finds something, and when it checks nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import sanitize

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


def test_a_missing_sanitizer_fails(tmp_path):
    done = subprocess.run(
        [sys.executable, sanitize.__file__], env={"PATH": str(tmp_path)}, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "compute-sanitizer is not on the path" in done.stderr


def test_some_tests_are_meant_for_it():
    assert "pytest.mark.sanitizer" in (Path(__file__).parent / "test_gpu.py").read_text()
