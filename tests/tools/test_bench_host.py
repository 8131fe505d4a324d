"""The benchmark of the host's time: what it measures is the package of the checkout that it names."""

import contextlib
import shutil
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from bench import host, host_worker
from cgc_kernels import info


@pytest.fixture
def worker():
    with contextlib.closing(host.Worker(host.ROOT, "cpu", 16)) as running:
        yield running


def test_every_backend_is_timed_beside_the_no_op(worker):
    served = [name for name in ("cpp", "torch", "reference") if info()["backends"][name]["available"]]
    assert worker.candidates == ["no-op", *served]
    seconds = host.measure({"this": worker}, rounds=2)
    assert {(key.name, key.backward) for key in seconds} == {(n, b) for n in worker.candidates for b in (False, True)}
    for name in worker.candidates:
        forward, both = (seconds[host.Key("this", name, backward)] for backward in (False, True))
        assert len(forward) == len(both) == 2
        assert (forward > 0).all()
        assert (both > 0).all()
    lines = host.table(seconds, "cpu", None).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == worker.candidates
    assert "1.00 [1.00-1.00]" in lines[2]


@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_triton_is_timed_without_a_gpu():
    """Its kernels are compiled, but none is launched."""
    with contextlib.closing(host.Worker(host.ROOT, host.UNLAUNCHED, 16)) as running:
        assert running.candidates == ["no-op", "triton"]
        seconds = host.measure({"this": running}, rounds=2)
    for name in running.candidates:
        assert all((seconds[host.Key("this", name, backward)] > 0).all() for backward in (False, True))


@pytest.mark.parametrize(("backward", "expected"), [(False, ["forward"] * 3), (True, ["forward", "backward"] * 3)])
def test_a_call_is_made_as_often_as_asked_for(monkeypatch, backward, expected):
    made, leaf = [], torch.ones(2, requires_grad=True)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, leaves: made.append("backward"))

    def call():
        made.append("forward")
        return leaf.sum()

    assert host_worker.seconds(call, [leaf], backward, 3) > 0
    assert made == expected


def test_ratios_are_of_one_round():
    seconds = {
        host.Key("this", host.NO_OP, False): np.array([1e-6, 1e-6]),
        host.Key("this", host.NO_OP, True): np.array([2e-6, 4e-6]),
        host.Key("this", "cpp", False): np.array([3e-6, 3e-6]),
        host.Key("this", "cpp", True): np.array([6e-6, 12e-6]),
        host.Key("before", "cpp", True): np.array([24e-6, 48e-6]),
    }
    no_op, cpp = host.table(seconds, "cpu", "before").splitlines()[2:]
    assert no_op == "| cpu | no-op | 1.0 | 3.0 | 1.00 [1.00-1.00] | - | - |"
    assert cpp == "| cpu | cpp | 3.0 | 9.0 | 3.00 [3.00-3.00] | 36.0 | 0.25 [0.25-0.25] |"


def test_another_package_than_that_of_the_checkout_is_not_measured(tmp_path):
    shutil.copytree(host.ROOT / "cgc_kernels", tmp_path / "other" / "cgc_kernels")
    (tmp_path / "empty").mkdir()
    with contextlib.closing(host.Worker(tmp_path / "other", "cpu", 16)) as running:
        assert "no-op" in running.candidates
    with pytest.raises(RuntimeError, match="must"):
        host.Worker(tmp_path / "empty", "cpu", 16)


@pytest.mark.skipif(
    not shutil.which("git") or subprocess.run(["git", "-C", host.ROOT, "rev-parse", "HEAD"]).returncode != 0,
    reason="needs git and a repository",
)
def test_a_commit_is_checked_out_and_removed():
    with host.checkout("HEAD", build=False) as root:
        assert (root / "cgc_kernels" / "loss.py").exists()
        assert not root.is_relative_to(host.ROOT)
        kept = root
    assert not kept.exists()
    listed = subprocess.run(["git", "-C", host.ROOT, "worktree", "list"], capture_output=True, text=True, check=True)
    assert str(kept) not in listed.stdout
