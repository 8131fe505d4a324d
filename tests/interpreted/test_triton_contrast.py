"""Stage contrast as Triton kernels."""

import pytest
import test_contrast
import test_ops
import torch
from compare import assert_close, assert_same_bits
from interpreter import program_order

from cgc_kernels import backends

pytestmark = test_ops.pytestmark

triton, peer = backends.named("triton"), backends.named("torch")


def rows_and_positives(batch, length):
    generator = torch.Generator().manual_seed(batch)
    rows, keys = torch.rand(2, batch, length, generator=generator, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True), keys / keys.norm(dim=1, keepdim=True), rows[:, 0].clone()


def both(batch, length, temperature):
    results = []
    for backend in (triton, peer):
        leaves = [t.clone().requires_grad_() for t in rows_and_positives(batch, length)]
        loss = backend.contrast(*leaves, temperature)
        results.append([loss.detach(), *torch.autograd.grad(2.5 * loss, leaves)])
    return results


@pytest.mark.parametrize("temperature", [0.005, 0.5])
@pytest.mark.parametrize(("batch", "length"), [(1, 4), (2, 1), (15, 49), (17, 33), (63, 31), (65, 130), (130, 3)])
def test_equals_torch(batch, length, temperature):
    names = ("loss", "rows", "keys", "positives")
    for ours, theirs, what in zip(*both(batch, length, temperature), names, strict=True):
        assert_close(ours, theirs, 1e-12, floor=1.0 if what == "loss" else 1e-3 / batch, what=what)


@pytest.mark.parametrize("sizes", [(1, 1), (17, 3, 70)])
def test_shares_of_the_samples(sizes):
    test_contrast.check_shares(triton, sizes)


def test_large_logits_do_not_overflow():
    rows = torch.eye(4, 5)
    loss = triton.contrast(rows, rows.flip(0), torch.zeros(4, dtype=torch.float64), 1e-3)
    assert_close(loss, torch.tensor(1000.0), 1e-6)


def test_any_order_of_programs_gives_the_same_bits():
    rows, keys, positives = rows_and_positives(70, 9)
    first = triton.contrast(rows, keys, positives, 0.1)
    for seed in range(5):
        with program_order(seed):
            assert_same_bits(triton.contrast(rows, keys, positives, 0.1), first)


@pytest.mark.parametrize("given", test_ops.CONTRASTS)
def test_opcheck(given):
    test_ops.check_contrast(lambda name: getattr(torch.ops.cgc_kernels_triton, name).default, given)
