"""`make gpu` as a whole: what it records, and that one part's failure hides no other."""

import re
import subprocess
import sys
import time

import pytest
import torch

from bench import gpu_run
from bench.gpu_run import Part

PYTEST = """........s.                                                               [100%]
=========================== short test summary info ============================
SKIPPED [3] tests/cuda/test_gpu.py:200: needs two CUDA devices
FAILED tests/cuda/test_gpu.py::test_opcheck[cuda-check_cam-pooled] - AssertionError
1 failed, 210 passed, 3 skipped in 63.74s (0:01:03)
"""


def part(name, code, summary=str.strip):
    return Part(name, [sys.executable, "-c", code], summary)


def test_all_parts_are_recorded_whatever_becomes_of_one(tmp_path, capfd):
    every = [
        part("First", "print('one')"),
        part("Second", "print('two'); raise SystemExit(3)"),
        part("Third", "import time; print('three', flush=True); time.sleep(60)"),
        part("Fourth", "print('four')"),
    ]
    target = tmp_path / "gpu.md"
    target.write_text("# What was there\n")
    start = time.monotonic()
    assert gpu_run.record(every, target, limit=4) == 1
    assert time.monotonic() - start < 30
    record = target.read_text().removeprefix("# What was there\n\n")
    assert record in capfd.readouterr().out  # for a machine whose files are lost
    assert record.startswith("### 20")
    without_times = re.sub(r"\d+ s\n", "", record)
    assert without_times.count("**") == 8
    assert "**First**: \none\n" in without_times
    assert "**Second**: FAILED with 3, \ntwo\n" in without_times
    assert "**Third**: DID NOT END, \nthree\n" in without_times
    assert "**Fourth**: \nfour\n" in without_times


def test_a_second_run_is_appended(tmp_path):
    target = tmp_path / "gpu.md"
    for name in ("first", "second"):
        assert gpu_run.record([part("Part", f"print('{name}')")], target, limit=30) == 0
    text = target.read_text()
    assert text.count("### ") == 2
    assert text.index("first") < text.index("second")


def test_the_record_is_there_after_every_part(tmp_path):
    """A machine that is taken away in the middle keeps what had run."""
    target = tmp_path / "gpu.md"
    looks = f"import pathlib; print('seen' if 'one' in pathlib.Path({str(target)!r}).read_text() else 'nothing')"
    gpu_run.record([part("First", "print('one')"), part("Second", looks)], target, limit=30)
    assert "seen" in target.read_text()


def test_the_head_says_what_ran_on_what(monkeypatch):
    monkeypatch.setattr(gpu_run, "driver", lambda: "580.1")
    monkeypatch.setattr(gpu_run, "commit", lambda: "abc1234")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    title, _, versions = gpu_run.head().splitlines()
    assert title.endswith(": NVIDIA H100, commit abc1234")
    assert versions.startswith(f"driver 580.1, torch {torch.__version__}, triton ")
    assert ", CUDA " in versions
    assert ", Python 3." in versions


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=root, check=True, text=True, capture_output=True).stdout


def test_the_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    assert gpu_run.commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "gpu.md").write_text("")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    short = git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    assert gpu_run.commit(tmp_path) == short
    (tmp_path / "docs" / "gpu.md").write_text("a record of an earlier run")
    assert gpu_run.commit(tmp_path) == short
    (tmp_path / "new.py").touch()
    assert gpu_run.commit(tmp_path) == f"{short} + changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_run.commit(tmp_path) == "unknown"


def test_the_driver_is_unknown_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_run.driver() == "unknown"


def test_what_pytest_says_is_summed_up():
    lines = gpu_run.test_summary(PYTEST).splitlines()
    assert lines[0] == "- 1 failed, 210 passed, 3 skipped in 63.74s (0:01:03)"
    assert lines[1] == "- SKIPPED [3] tests/cuda/test_gpu.py:200: needs two CUDA devices"
    assert lines[2].startswith("- FAILED tests/cuda/test_gpu.py::test_opcheck[cuda-check_cam-pooled]")
    assert gpu_run.test_summary("...\nSegmentation fault\n") == "- Segmentation fault"


def test_the_benchmarks_tables_are_kept_and_its_noise_is_not():
    assert gpu_run.benchmark_summary("a warning\n| case | ms |\n|---|---|\n") == "| case | ms |\n|---|---|"
    assert gpu_run.benchmark_summary("Traceback\nRuntimeError: no device\n") == "- RuntimeError: no device"


def test_what_the_sanitizer_says_is_summed_up():
    output = (
        "---- memcheck\n16 passed in 3s\nmemcheck: clean\n---- racecheck\nracecheck: compute-sanitizer found 2 errors\n"
    )
    said = gpu_run.sanitizer_summary(output)
    assert said == "- memcheck: clean\n- racecheck: compute-sanitizer found 2 errors"
    assert gpu_run.sanitizer_summary("compute-sanitizer is not there\n") == "- compute-sanitizer is not there"
    assert gpu_run.sanitizer_summary("") == "- it printed nothing"


def test_without_xdist_the_tests_run_one_after_another(monkeypatch):
    assert "-n" in gpu_run.parts()[0].command
    monkeypatch.setattr(gpu_run.importlib.util, "find_spec", lambda name: None)
    assert "-n" not in gpu_run.parts()[0].command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_ends_at_once(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_run"])
    with pytest.raises(SystemExit) as ended:
        gpu_run.main()
    assert ended.value.code != 0
    assert "make gpu needs a CUDA device" in capsys.readouterr().err
