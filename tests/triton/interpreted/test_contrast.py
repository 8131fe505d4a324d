"""Stage contrast as Triton kernels."""

import pytest
import torch

from cgc_kernels import backends
from cgc_kernels.backends.triton.kernels import cam, cgc, contrast
from cgc_kernels.ops.cgc import saved_bytes
from cgc_kernels.options import OBJECTIVES
from tests.loss import test_contrast
from tests.operators import test_ops
from tests.support.compare import assert_close, assert_same_bits
from tests.triton.interpreter import program_order

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


def test_what_is_symmetric_takes_one_product():
    """Rows and keys that are images of one map under a symmetric matrix: the gradient of the map is that by both."""
    generator = torch.Generator().manual_seed(4)
    rows, matrix = torch.rand(37, 9, generator=generator).double(), torch.rand(9, 9, generator=generator).double()
    matrix = matrix @ matrix.T
    keys, positives = rows @ matrix, torch.rand(37, generator=generator).double()
    loss, row_losses = torch.ops.cgc_kernels_triton.contrast(rows, keys, positives, 0, 37, 2.0)
    given = torch.ones_like(loss), rows, keys, positives, row_losses
    grads = torch.ops.cgc_kernels_triton.contrast_backward(*given, 0, 37, 2.0)
    together, nothing, of_positives = torch.empty_like(rows), rows.new_empty(0), torch.empty_like(positives)
    launch = contrast.gradients_launch(*rows.shape, 0, 37, rows.dtype, symmetric=True)
    launch(*given, together, nothing, of_positives, 2.0, 0.0)
    assert_close(together, grads[0] + grads[1] @ matrix, 1e-12)
    assert_same_bits(of_positives, grads[2])


@pytest.mark.parametrize("objective", range(len(OBJECTIVES)))
def test_the_workspace_of_many_rows_is_small(objective):
    """Beside what is saved, for 65,536 samples with maps of 7 x 7 in float32."""
    of = cam.Features(2, torch.Size([65536, 8, 7, 7]), torch.float32, 0, torch.device("cpu"))
    saved = sum(saved_bytes(of, False, objective))
    settings = cam.POOLED.value, (1,) * 5, (224, 224), objective
    for chain in (cgc._Forward(of, *settings), cgc._Backward(of, *settings, 15, saved)):
        assert chain.saved.bytes == saved
        assert chain.workspace.bytes < 64 * 2**20


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
