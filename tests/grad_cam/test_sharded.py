"""GradCAM and fully_shard, whichever comes first, in two gloo processes: right, or refused by name."""

import pytest

from cgc_kernels import GradCAM
from tests.grad_cam.sharded_worker import RANKS, network, step, views
from tests.support.compare import assert_close
from tests.support.rank_processes import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process found."""
    return run_ranks("grad_cam/sharded_worker.py", RANKS, tmp_path_factory.mktemp("sharded"))


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
