"""Stage contrast as Triton kernels."""

import importlib
from collections import defaultdict

import pytest
import test_contrast
import test_ops
import torch
from compare import assert_close, assert_same_bits
from interpreter import program_order
from torch.utils._python_dispatch import TorchDispatchMode

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


class Allocated(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, results included."""

    def __enter__(self):
        self.bytes = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.bytes += result.nbytes
        return result


def test_nothing_is_kept_beside_the_results(monkeypatch):
    """But a counter: without workspace there is no [B, B], of any batch. The kernels need not run for that."""
    kernels = importlib.import_module("cgc_kernels.backends.triton.kernels.contrast")
    for name in ("contrast_kernel", "contrast_backward_kernel"):
        monkeypatch.setattr(kernels, name, defaultdict(lambda: lambda *args, **constants: None))
    rows = torch.empty(65536, 49)
    positives = torch.empty(65536, dtype=torch.float64)
    for count in (65536, 8192):
        with Allocated() as allocated:
            results = kernels.contrast(rows, rows, positives, 0, count, 0.5)
            results += kernels.contrast_backward(results[0], rows, rows, positives, positives, 0, count, 0.5)
        assert allocated.bytes <= sum(t.nbytes for t in results) + 64


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
