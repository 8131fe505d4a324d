"""bench/scaling.py, on small workloads."""

from dataclasses import replace

import pytest

from bench import scaling
from bench.workloads import Workload
from cgc_kernels.backends import unavailable


@pytest.mark.skipif(unavailable("cpp") is not None, reason="needs the C++ kernels")
def test_table_and_picture(monkeypatch, capsys, tmp_path):
    small = replace(Workload("cgc", "pooled", "channels_last", shape=(4, 8, 3, 3)), image_size=16)
    monkeypatch.setattr(scaling, "SWEEPS", {"C": [small, replace(small, shape=(4, 16, 3, 3))], "S": [small]})
    monkeypatch.setattr(scaling, "MANY", (8, 16, 10**9))
    picture = tmp_path / "scaling.png"
    scaling.main(["--rounds", "1", "--threads", "1", "--most", "16", "--picture", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[:2] for line in lines if line.startswith(("| C", "| S", "| B"))]
    assert rows == [["| C", "8"], ["| C", "16"], ["| S", "16"], *(["| B, heatmaps alone", str(b)] for b in (8, 16))]
    assert picture.stat().st_size > 0


def test_a_rank_of_many_does_the_work_of_its_own_samples():
    alone, shared = scaling._multiply_adds(256, 256, 49), scaling._multiply_adds(256, 64 * 256, 49)
    assert shared == 64 * alone
