"""GradCAM and fully_shard, whichever comes first, in two gloo processes: right, or refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compare import assert_close
from sharded_worker import RANKS, network, step, views

from cgc_kernels import GradCAM

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, WORKER, folder / "store"]
    processes = [
        subprocess.Popen([*command, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def expected():
    """The mean over ranks of what one process finds for the samples of each."""
    net = network()
    cam = GradCAM(net, "layer4")
    for rank in range(RANKS):
        step(cam, rank)
    return {name: parameter.grad / RANKS for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("way", ["before", "after", "root is the GradCAM"])
def test_gradients_are_those_of_one_process(ranks, expected, way):
    assert any(grad.abs().max() > 1e-2 for grad in expected.values())
    for rank in ranks:
        assert isinstance(rank[way], dict), rank[way]
        for name, grad in expected.items():
            assert_close(rank[way][name], grad, 1e-10, floor=1e-3, what=name)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("autograd", "a model under fully_shard must have a closed form"),
        ("sharded head", "the weight of fc must be whole after the model's forward, got a sharded one"),
    ],
)
def test_the_rest_is_refused_by_name(ranks, way, message):
    assert all(rank[way].startswith(message) for rank in ranks)


def test_the_model_works_after_a_grad_cam_came_and_went(ranks):
    for index, rank in enumerate(ranks):
        assert_close(rank["closed again"], network()(views(index)[0]).detach(), 1e-12)
