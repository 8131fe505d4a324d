"""Stage contrast: rows, keys, positives -> loss, against cross-entropy of the dense logits."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cgc_kernels import backends
from tests.support.cases import BACKENDS, CPP, EVERY_BACKEND, examples, generators
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits
from tests.support.dispatched import Dispatched

# Around the sizes of vectors, of blocks and of strips of keys.
BATCHES = [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513]
TEMPERATURES = (0.005, 0.012, 0.1, 0.5, 10.0)


def inputs(batch, length, seed=0, dtype=torch.float64):
    """Unit rows and keys with cosines in [0, 1] as non-negative maps have them, and positives in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    rows, keys = (F.normalize(torch.rand(batch, length, generator=generator, dtype=torch.float64)) for _ in range(2))
    positives = torch.rand(batch, generator=generator, dtype=torch.float64)
    return rows.to(dtype), keys.to(dtype), positives.to(dtype)


def loss_and_grads(contrast, tensors, temperature, upstream=1.0):
    leaves = [t.detach().requires_grad_() for t in tensors]
    loss = contrast(*leaves, temperature)
    return loss.detach(), torch.autograd.grad(loss * upstream, leaves)


def dense(rows, keys, positives, temperature, reduction="mean"):
    """The whole matrix of logits, float64."""
    similarities = rows.double() @ keys.double().T
    logits = (
        torch.where(torch.eye(len(rows), dtype=torch.bool), positives.double()[:, None], similarities) / temperature
    )
    return F.cross_entropy(logits, torch.arange(len(rows)), reduction=reduction)


def check_against_dense(backend, tensors, temperature, upstream=1.0):
    stage = backends.choose(backend, torch.device("cpu")).contrast
    loss, grads = loss_and_grads(stage, tensors, temperature, upstream)
    expected, expected_grads = loss_and_grads(dense, [t.double() for t in tensors], temperature, upstream)
    assert_close(loss.double(), expected, 1e-12, floor=1, what="loss")
    for name, grad, exact in zip(("rows", "keys", "positives"), grads, expected_grads, strict=True):
        assert_close(grad, exact, 1e-11, floor=1e-6 / temperature, what=name)


def check_shares(backend, sizes, length=5, temperature=0.1):
    """What ranks of those sizes compute is, put together, what one process computes."""
    tensors = inputs(sum(sizes), length)
    exact = dense(*tensors, temperature, reduction="none")
    _, exact_grads = loss_and_grads(dense, tensors, temperature, upstream=-1.7)
    upstream, first = torch.tensor(-1.7, dtype=torch.float64), 0
    for count in sizes:
        own = slice(first, first + count)
        losses = backend.row_losses(*tensors, first, count, temperature)
        assert_close(losses, exact[own], 1e-12, floor=1, what=f"losses of {own}")
        grads = backend.row_gradients(upstream, *tensors, exact, first, count, temperature)
        for name, grad, exact_grad in zip(("rows", "keys", "positives"), grads, exact_grads, strict=True):
            assert_close(grad, exact_grad[own], 1e-11, floor=1e-6 / temperature, what=f"{name} of {own}")
        first += count


SHARES = [(1,), (1, 1), (2, 1, 4), (5, 63, 1, 4, 70), (64, 64, 300), (300, 3)]


@pytest.mark.parametrize("sizes", SHARES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_of_the_samples(backend, sizes):
    check_shares(backends.named(backend), sizes)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_batch_sizes(backend, batch):
    for length in (1, 3, 9):
        check_against_dense(backend, inputs(batch, length, seed=batch), 0.07, upstream=-1.7)


@pytest.mark.parametrize("batch", [1000, pytest.param(4097, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_batches(backend, batch):
    check_against_dense(backend, inputs(batch, 4), 0.5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_temperatures(backend, temperature):
    check_against_dense(backend, inputs(20, 5), temperature)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_input(backend):
    @examples
    @given(generators(), st.integers(1, 40), st.integers(1, 20), st.sampled_from(TEMPERATURES), st.floats(-3, 3))
    def check(generator, batch, length, temperature, upstream):
        """Rows need not be units, nor cosines positive."""
        rows, keys = torch.randn(2, batch, length, generator=generator, dtype=torch.float64)
        check_against_dense(
            backend, (rows, keys, torch.randn(batch, generator=generator, dtype=torch.float64)), temperature, upstream
        )

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32(backend):
    """As exact as torch: logits carry the rounding of a cosine over tau."""
    stage = backends.choose(backend, torch.device("cpu")).contrast
    peer = backends.choose("torch", torch.device("cpu")).contrast
    for batch in (2, 17, 65, 300):
        for temperature in TEMPERATURES:
            tensors = inputs(batch, 9, dtype=torch.float32)
            loss, grads = loss_and_grads(stage, tensors, temperature)
            peer_loss, peer_grads = loss_and_grads(peer, tensors, temperature)
            exact, exact_grads = loss_and_grads(dense, [t.double() for t in tensors], temperature)
            slack = 2 + 1 / temperature
            assert loss.dtype == torch.float32
            assert_close(loss.double(), exact, 1e-6, floor=1, what="loss")
            assert_close(peer_loss.double(), exact, 1e-6, floor=1, what="loss of torch")
            assert all(grad.dtype == torch.float32 for grad in grads)
            for grad, peer_grad, exact_grad in zip(grads, peer_grads, exact_grads, strict=True):
                assert_low_precision(grad, peer_grad, exact_grad, f"{batch} {temperature}", ulps=slack)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_batch_of_one_is_zero(backend):
    stage = backends.choose(backend, torch.device("cpu")).contrast
    loss, grads = loss_and_grads(stage, inputs(1, 5), 0.5)
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_permuting_the_batch(backend):
    stage = backends.choose(backend, torch.device("cpu")).contrast
    tensors = inputs(19, 5)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0))
    loss, grads = loss_and_grads(stage, tensors, 0.1)
    permuted, permuted_grads = loss_and_grads(stage, [t[order] for t in tensors], 0.1)
    assert_close(permuted, loss, 1e-13)
    for grad, permuted_grad in zip(grads, permuted_grads, strict=True):
        assert_close(permuted_grad, grad[order], 1e-12)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_logits_that_overflow_an_exponential(backend):
    """1 / tau = 5000: far beyond what exp can take in either precision without the shift."""
    stage = backends.choose(backend, torch.device("cpu")).contrast
    for dtype in (torch.float32, torch.float64):
        rows, keys, positives = inputs(300, 4, dtype=dtype)
        for value in (0.0, 1.0):
            loss, grads = loss_and_grads(stage, (rows, keys, torch.full_like(positives, value)), 2e-4)
            exact = dense(rows, keys, torch.full_like(positives, value), 2e-4)
            assert_close(loss.double(), exact, 2 * torch.finfo(dtype).eps / 2e-4, floor=1)
            assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nan_is_never_swallowed(backend, where):
    stage = backends.choose(backend, torch.device("cpu")).contrast
    for dtype in (torch.float32, torch.float64):
        for batch in (2, 300):
            for sample in (0, batch // 2, batch - 1):
                tensors = inputs(batch, 4, dtype=dtype)
                tensors[where][sample] = float("nan")
                assert stage(*tensors, 0.5).isnan(), f"sample {sample} of {batch}"


@pytest.mark.parametrize("chunk", [1, 40, 111, 5000])
def test_chunks_of_torch_change_nothing(monkeypatch, chunk):
    monkeypatch.setattr(import_module("cgc_kernels.backends.torch.contrast"), "CHUNK_ELEMENTS", chunk)
    for batch in (1, 2, 37):
        check_against_dense("torch", inputs(batch, 5), 0.1)
    check_shares(backends.named("torch"), (5, 30, 2))


@pytest.mark.parametrize("backend", [CPP])
def test_reruns_and_threads_are_equal_to_the_last_bit(backend):
    stage = backends.choose(backend, torch.device("cpu")).contrast
    tensors = inputs(130, 7, dtype=torch.float32)
    first = loss_and_grads(stage, tensors, 0.1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(10):
                again = loss_and_grads(stage, tensors, 0.1)
                for one, other in zip((again[0], *again[1]), (first[0], *first[1]), strict=True):
                    assert_same_bits(one, other)
    finally:
        torch.set_num_threads(before)


def test_blocks_of_torch_on_a_gpu_are_large():
    """4096 samples are one block, and of many none holds more elements than that one."""
    contrast = import_module("cgc_kernels.backends.torch.contrast")
    assert contrast._blocks(torch.empty(4096, 1, device="meta"), 0, 4096, 4096) == [(0, 4096)]
    blocks = contrast._blocks(torch.empty(65536, 1, device="meta"), 5, 65536, 65536)
    assert [begin for begin, _ in blocks] == [5, *(end for _, end in blocks[:-1])]
    assert {end - begin for begin, end in blocks[:-1]} == {256}


def test_few_operators_of_torch():
    """Of one block: similarities, exponentials and their products, and little else; most of a small batch's time."""
    stage = backends.named("torch").contrast
    leaves = [t.requires_grad_() for t in inputs(64, 49)]
    with Dispatched() as dispatched:
        torch.autograd.grad(stage(*leaves, 0.5), leaves)
    operators = [str(operator) for operator in dispatched.operators if not operator.is_view]
    assert len(operators) <= 14, operators


@pytest.mark.parametrize("backend", [CPP])
def test_the_operator_does_not_specialise_on_the_batch(backend):
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    stage = torch.compile(backends.named(backend).contrast, backend=counting, fullgraph=True, dynamic=True)
    for batch in (7, 10, 12):
        stage(*inputs(batch, 5), 0.5)
    assert len(graphs) == 1


MEMORY = """
import re, sys, torch
from pathlib import Path
from cgc_kernels import backends
torch.set_num_threads(1)
contrast = backends.choose(sys.argv[1], torch.device("cpu")).contrast
def leaves(batch):
    rows, keys = torch.rand(2, batch, 49).unbind()
    return [t.requires_grad_() for t in (rows, keys, torch.rand(batch))]
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
contrast(*leaves(1100), 0.5).backward()  # torch imports what a chunk needs on its first one
tensors = leaves(int(sys.argv[2]))
Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
before = peak()
contrast(*tensors, 0.5).backward()
print(peak() - before - sum(t.grad.nbytes for t in tensors))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("batch", [8192, pytest.param(65536, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_square_of_the_batch_is_never_stored(backend, batch):
    assert_memory_is_small(backend, batch)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_the_reference_stores_the_square_of_the_batch():
    """The bound can fail."""
    with pytest.raises(AssertionError, match="MiB"):
        assert_memory_is_small("reference", 8192)


def assert_memory_is_small(backend, batch):
    """Beside inputs and gradients: torch's blocks, and so many bytes a sample; 64 MiB in all for 65,536 samples.

    [B, B] in float32 would be 256 MiB and 16 GiB.
    """
    command = [sys.executable, "-c", MEMORY, backend, str(batch)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < (40 << 20) + batch * (24 << 20) // 65536, f"{int(run.stdout) / 2**20:.1f} MiB"
