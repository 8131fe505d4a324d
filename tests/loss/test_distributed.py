"""Negatives from every rank: loss and gradients of 1, 2, 3, 4 gloo processes equal those of one with all samples."""

import pytest
import torch

from cgc_kernels import CGCLoss
from tests.loss.distributed_worker import (
    BACKENDS,
    CASES,
    EVEN,
    FUNCTIONS,
    LENGTH,
    RANKS,
    SHARES,
    make_case,
    network_inputs,
    share,
    step,
)
from tests.support.compare import assert_close, assert_same_bits
from tests.support.rank_processes import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the four processes found, by key."""
    return run_ranks("loss/distributed_worker.py", RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("function", [*FUNCTIONS, "even"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", SHARES)
def test_equals_the_single_process(ranks, world, name, backend, function):
    """Every rank has the loss of all samples, and W times its gradient for the samples of its own."""
    sizes = EVEN[world] if function == "even" else SHARES[world]
    case = make_case(name, sizes)
    tol = 1e-5 if case.views[0].dtype == torch.float32 else 1e-10
    loss, *grads = FUNCTIONS.get(function, FUNCTIONS["cgc_loss"])(case, backend)
    for rank in range(world):
        actual_loss, *actual = ranks[rank][f"{world}/{name}/{backend}/{function}"]
        assert_close(actual_loss, loss, tol, what=f"loss of rank {rank}")
        whole = case._replace(views=tuple(grads))
        for grad, expected in zip(actual, share(whole, sizes, rank).views, strict=True):
            largest = max(float(g.abs().max()) for g in grads) * world
            assert_close(grad, world * expected, tol, floor=largest * 1e-2, what=f"gradient of rank {rank}")


def test_every_rank_has_the_same_loss_to_the_last_bit(ranks):
    for world in SHARES:
        for key in (key for key in ranks[0] if key.startswith(f"{world}/")):
            for rank in range(1, world):
                assert_same_bits(ranks[rank][key][0], ranks[0][key][0], key)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_no_rank_does_the_work_of_another(ranks, backend):
    """Products with all keys and rows, of the own samples alone: one forward, at most four backward, of any group."""
    for world, sizes in SHARES.items():
        for rank in range(world):
            once = sizes[rank] * sum(sizes) * LENGTH
            assert 4 * once <= ranks[rank][f"work/{world}/{backend}"] <= 5 * once, (world, rank)


def test_ddp_averages_to_the_true_gradient(ranks):
    """Features of other ranks never travel, yet every parameter has the gradient of the whole batch."""
    expected = step(*network_inputs())
    assert any(grad.abs().max() > 1e-3 for grad in expected.values())
    for rank in ranks:
        for name, grad in expected.items():
            assert_close(rank["ddp"][name], grad, 1e-10, floor=1e-3, what=name)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("type", "TypeError: group must be a torch.distributed.ProcessGroup or None, got str 'WORLD'"),
        ("even", "TypeError: even must be a bool, got int 1"),
        ("double", "RuntimeError: cgc_kernels has no second derivatives"),
        ("forward", "RuntimeError: a loss with group= must be differentiated in reverse mode"),
    ],
)
def test_misuse_is_refused(ranks, what, message):
    assert ranks[0]["refusals"][what].startswith(message)


def test_a_rank_outside_the_group_is_refused(ranks):
    assert ranks[1]["outsider"]["outsider"].startswith("ValueError: group must be a process group that this process")


def test_the_module_says_how_many_ranks(ranks):
    assert "ranks=4, even=True" in ranks[2]["repr"]
    assert "ranks" not in repr(CGCLoss(image_size=8))
