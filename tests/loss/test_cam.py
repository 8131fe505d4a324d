"""Stage cam: features, gradients -> heatmaps, and its gradients."""

import ctypes
import itertools
import mmap
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgc_kernels import gradcam
from tests.support.cases import (
    BACKENDS,
    CPP,
    EVERY_BACKEND,
    KINDS,
    LAYOUTS,
    examples,
    generators,
    lay_out,
    strides,
    views,
)
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits

FORMATS = ("contiguous", "channels_last")
LOW = (torch.bfloat16, torch.float16)
# (features, gradients)
DTYPES = [(torch.float64, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.float32)]
DTYPES += [(low, gradients) for low in LOW for gradients in (low, torch.float32)]


def heatmaps_and_grads(features, gradients, weighting, backend, upstream=None, wanted=(True, True)):
    """Heatmaps and the gradients of <upstream, heatmaps>; upstream: [B, H, W], ones by default."""
    leaves = [t.detach().requires_grad_(want) for t, want in zip((features, gradients), wanted, strict=True)]
    heatmaps = gradcam(*leaves, weighting=weighting, backend=backend)
    upstream = torch.ones_like(heatmaps) if upstream is None else upstream.to(heatmaps.dtype)
    return heatmaps.detach(), torch.autograd.grad(heatmaps, [t for t in leaves if t.requires_grad], upstream)


@st.composite
def inputs(draw, max_batch=4):
    generator = draw(generators())
    batch, channels = draw(st.integers(1, max_batch)), draw(st.integers(1, 70))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=batch, max_size=batch))
    pair = views(generator, batch, channels, height, width, kinds, pooled=draw(st.booleans()))
    layouts = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))
    upstream = torch.randn(batch, height, width, generator=generator, dtype=torch.float64)
    weighting = draw(st.sampled_from(["gradcam", "elementwise"]))
    return *map(lay_out, pair, layouts), weighting, lay_out(upstream, draw(st.sampled_from(LAYOUTS[2:])))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_reference(backend):
    @examples
    @given(inputs())
    def check(case):
        features, gradients, weighting, upstream = case
        heatmaps, grads = heatmaps_and_grads(features, gradients, weighting, backend, upstream)
        expected, expected_grads = heatmaps_and_grads(features, gradients, weighting, "reference", upstream)
        assert_close(heatmaps, expected, 1e-12, floor=1e-9, what="heatmaps")
        for name, grad, expected_grad in zip(("features", "gradients"), grads, expected_grads, strict=True):
            assert_close(grad, expected_grad, 1e-12, floor=1e-9, what=name)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_equals_the_reference(backend):
    @examples
    @given(inputs())
    def check(case):
        features, gradients, weighting, upstream = (t.float() if isinstance(t, torch.Tensor) else t for t in case)
        # A sum of near-zero terms may round to either side of the ReLU: those positions get no gradient to compare.
        exact = gradcam(features.double(), gradients.double(), weighting=weighting, backend="reference")
        upstream = torch.where(exact.abs() < 1e-5 * exact.abs().max(), 0, upstream)
        heatmaps, grads = heatmaps_and_grads(features, gradients, weighting, backend, upstream)
        pair = features.double(), gradients.double()
        expected, expected_grads = heatmaps_and_grads(*pair, weighting, "reference", upstream)
        assert_close(heatmaps, expected, 1e-5, floor=1e-6, what="heatmaps", oracle=True)
        for name, grad, expected_grad in zip(("features", "gradients"), grads, expected_grads, strict=True):
            assert_close(grad, expected_grad, 1e-5, floor=1e-6, what=name, oracle=True)

    check()


def random_pair(shape, pooled, dtypes, layout="contiguous", seed=0):
    """Features and gradients whose heatmaps are positive at about half of the positions."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator)
    gradients = torch.randn(shape[:2] if pooled else shape, generator=generator)
    return lay_out(features.to(dtypes[0]), layout), lay_out(gradients.to(dtypes[1]), layout)


def alive(features, gradients, weighting):
    """1 where the ReLU's side is beyond the rounding of any dtype, else 0, [B, H, W]."""
    f, g = features.double(), gradients.double()
    g = g if g.dim() == 4 else g[:, :, None, None]
    sums = ((g.mean(dim=(2, 3), keepdim=True) if weighting == "gradcam" else g) * f).sum(dim=1)
    return (sums.abs() > 1e-3 * sums.abs().max()).double()


def assert_near(actual, peer, exact, what):
    """The order of a long sum decides the last digits of float32 and float64, rounding alone those of 16 bits."""
    if actual.dtype in LOW:
        assert_low_precision(actual, peer, exact, what)
    else:
        assert_close(actual, exact, 1e-12 if actual.dtype == torch.float64 else 1e-5, what=what, oracle=True)


# Channels and positions around the blocks of 4 rows, of whole cache lines and of 16 KiB.
SHAPES = [(2, 1, 1, 1), (1, 3, 1, 7), (2, 5, 7, 7), (1, 67, 7, 7), (3, 300, 3, 5), (1, 2, 73, 71), (2, 130, 16, 16)]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_and_layouts(backend, dtypes, weighting, layout):
    """Values and gradients as exact as torch in the same dtype; each gradient in its input's dtype and strides."""
    pooled = weighting == "pooled"
    weighting = "gradcam" if pooled else weighting
    for shape in SHAPES:
        features, gradients = random_pair(shape, pooled, dtypes, layout)
        upstream = alive(features, gradients, weighting) * torch.rand(shape[0], *shape[2:], dtype=torch.float64)
        heatmaps, grads = heatmaps_and_grads(features, gradients, weighting, backend, upstream)
        peer, peer_grads = heatmaps_and_grads(features, gradients, weighting, "torch", upstream)
        double = features.double(), gradients.double()
        exact, exact_grads = heatmaps_and_grads(*double, weighting, "reference", upstream.to(heatmaps.dtype))
        assert heatmaps.dtype == (torch.float64 if dtypes[0] == torch.float64 else torch.float32)
        assert_near(heatmaps, peer, exact, f"heatmaps {shape}")
        for tensor, grad, *truth in zip((features, gradients), grads, peer_grads, exact_grads, strict=True):
            assert grad.dtype == tensor.dtype
            assert_near(grad, *truth, f"gradient {shape}")
        assert strides(grads[0]) == strides(features)
        if weighting == "elementwise":
            assert strides(grads[1]) == strides(gradients)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", [CPP])
def test_gradients_beyond_the_streaming_threshold(backend, dtype, layout):
    """More than 4 MiB, with samples that start off a cache line and a last block that is not full."""
    shape = (3, 1031, 27, 27) if dtype == torch.bfloat16 else (3, 525, 27, 27)
    for weighting, pooled in (("elementwise", False), ("gradcam", True)):
        features, gradients = random_pair(shape, pooled, (dtype, dtype), layout)
        assert features.numel() * features.element_size() > 4 << 20
        upstream = alive(features, gradients, weighting)
        grads = heatmaps_and_grads(features, gradients, weighting, backend, upstream)[1]
        f, g = features.double(), gradients.double()
        g = g if g.dim() == 4 else g[:, :, None, None]
        delta = (upstream * ((g * f).sum(dim=1) > 0))[:, None]
        truth = (g * delta).expand(shape), (delta * f).sum(dim=(2, 3)) if pooled else delta * f
        for grad, exact in zip(grads, truth, strict=True):
            tol = 2 * torch.finfo(dtype).eps if not (pooled and grad.dim() == 2) else 30 * torch.finfo(dtype).eps
            assert_close(grad, exact, tol, what=f"{weighting} {layout}", oracle=True)


class LastMemory:
    """Memory that ends where reading on is a segmentation fault; what is taken of it ends there."""

    def __init__(self, pages):
        self._memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        self._usable = pages * mmap.PAGESIZE
        self._protect(0)

    def take(self, shape, dtype):
        """A contiguous tensor of NaN."""
        count = torch.Size(shape).numel()
        offset = self._usable - count * dtype.itemsize
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(shape).fill_(torch.nan)

    def open(self):
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)

    def _protect(self, access):
        end = ctypes.addressof(ctypes.c_char.from_buffer(self._memory, self._usable))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), access) == 0


@pytest.fixture
def last_memories():
    memories = [LastMemory(80) for _ in range(2)]
    yield memories
    for memory in memories:
        memory.open()


def small_integers(shape, least, largest, dtype, layout, memory):
    values = torch.randint(least, largest + 1, shape, generator=torch.Generator().manual_seed(sum(shape)))
    if layout == "channels_last" and len(shape) == 4:
        return memory.take((shape[0], *shape[2:], shape[1]), dtype).permute(0, 3, 1, 2).copy_(values)
    return memory.take(shape, dtype).copy_(values)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("weighting", ["pooled", "elementwise"])
@pytest.mark.parametrize("backend", [CPP])
def test_every_number_of_positions_at_the_end_of_memory(last_memories, backend, weighting, dtype, layout):
    """Exact, of integers so small that no sum of them rounds; at any alignment, and nothing is read behind them."""
    for positions in range(1, 258):
        shape = 2, 1 + positions * 29 % 71, 1, positions
        features = small_integers(shape, 0, 3, dtype, layout, last_memories[0])
        weights_shape = shape[:2] if weighting == "pooled" else shape
        weights = small_integers(weights_shape, -1, 2, dtype, layout, last_memories[1])
        delta = torch.arange(2 * positions).view(2, 1, positions) % 5 - 2.0
        heatmaps, grads = heatmaps_and_grads(
            features, weights, "gradcam" if weighting == "pooled" else weighting, backend, delta
        )
        f, w = features.double(), weights.double()
        w = w[:, :, None, None] if weighting == "pooled" else w
        exact = (w * f).sum(dim=1)
        assert_same_bits(heatmaps, exact.relu().to(heatmaps.dtype), str(shape))
        d = (delta * (exact > 0))[:, None]
        expected = w * d, (f * d).sum(dim=(2, 3)) if weighting == "pooled" else f * d
        for grad, truth in zip(grads, expected, strict=True):
            assert torch.equal(grad.double(), truth.to(dtype).double()), shape


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradients_only_where_asked(backend, weighting, pooled):
    features, gradients = random_pair((2, 5, 3, 4), pooled, (torch.float64, torch.float64))
    _, full = heatmaps_and_grads(features, gradients, weighting, backend)
    for index in (0, 1):
        wanted = (index == 0, index == 1)
        (grad,) = heatmaps_and_grads(features, gradients, weighting, backend, wanted=wanted)[1]
        assert_same_bits(grad, full[index])
    assert not gradcam(features, gradients, weighting=weighting, backend=backend).requires_grad
    with torch.no_grad():
        assert not gradcam(features.requires_grad_(), gradients, weighting=weighting, backend=backend).requires_grad


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_upstream_gradient_of_any_stride(backend):
    features, gradients = random_pair((2, 5, 3, 4), False, (torch.float64, torch.float64))
    dense = torch.randn(2, 3, 4, dtype=torch.float64)
    wide = torch.full((2, 3, 9), float("nan"), dtype=torch.float64)
    wide[:, :, 1::2] = dense
    expected = heatmaps_and_grads(features, gradients, "gradcam", backend, dense)[1]
    for upstream in (wide[:, :, 1::2], dense.mT.contiguous().mT, dense.permute(2, 1, 0).contiguous().permute(2, 1, 0)):
        assert not upstream.is_contiguous()
        for grad, same in zip(
            heatmaps_and_grads(features, gradients, "gradcam", backend, upstream)[1], expected, strict=True
        ):
            assert_same_bits(grad, same)
    ones = heatmaps_and_grads(features, gradients, "gradcam", backend, torch.ones(2, 3, 4))[1]
    leaf = features.clone().requires_grad_()
    gradcam(leaf, gradients, backend=backend).sum().backward()  # an upstream of stride 0
    assert_same_bits(leaf.grad, ones[0])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradient_of_the_mean_is_constant_over_space(backend):
    features, gradients = random_pair((2, 5, 3, 4), False, (torch.float64, torch.float64))
    grad = heatmaps_and_grads(features, gradients, "gradcam", backend)[1][1]
    assert grad.shape == gradients.shape
    assert_same_bits(grad.contiguous(), grad[:, :, :1, :1].expand_as(grad).contiguous())
    leaf = gradients.clone().requires_grad_()
    for _ in range(2):  # a gradient of stride 0 must not become a .grad that is written in place
        gradcam(features, leaf, backend=backend).sum().backward()
    assert_close(leaf.grad, 2 * grad, 1e-14)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
def test_pooled_stands_for_gradients_constant_over_space(backend, weighting):
    features, pooled = random_pair((2, 5, 3, 4), True, (torch.float64, torch.float64))
    spread = pooled[:, :, None, None].expand(2, 5, 3, 4)
    heatmaps, grads = heatmaps_and_grads(features, pooled, weighting, backend)
    expected, expected_grads = heatmaps_and_grads(features, spread, weighting, backend)
    assert_close(heatmaps, expected, 1e-13)
    assert_close(grads[0], expected_grads[0], 1e-13)
    assert_close(grads[1], expected_grads[1].sum(dim=(2, 3)), 1e-13)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("shape", [(3, 5, 3, 4), (3, 40, 7, 7)], ids=str)
def test_nan_stays_in_its_sample(backend, shape, weighting, layout):
    """Neither swallowed by the ReLU, forward or backward, nor spread to other samples or to the channels beside it."""
    for which in (0, 1):
        pair = random_pair(shape, False, (torch.float64, torch.float64), layout)
        pair[which][1, 2, 0, 1] = float("nan")
        heatmaps, grads = heatmaps_and_grads(*pair, weighting, backend)
        assert heatmaps[1, 0, 1].isnan()
        assert heatmaps[[0, 2]].isfinite().all()
        assert grads[1 - which][1].isnan().any(), "a NaN must reach the gradient of the other factor"
        _, expected = heatmaps_and_grads(*pair, weighting, "reference")
        for grad, expected_grad in zip(grads, expected, strict=True):
            assert grad[[0, 2]].isfinite().all()
            assert torch.equal(grad.isnan(), expected_grad.isnan())
            assert_close(grad.nan_to_num(), expected_grad.nan_to_num(), 1e-12)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_relu_has_no_gradient_at_zero(backend):
    features = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    features[0, :, 0, 0] = torch.tensor([1.0, -1.0])  # cancels exactly
    gradients = torch.ones(1, 2, dtype=torch.float64)
    for grad in heatmaps_and_grads(features, gradients, "gradcam", backend)[1]:
        assert (grad == 0).all()


@pytest.mark.parametrize("backend", [CPP])
def test_channels_last_gradients_beside_contiguous_features(backend):
    features, gradients = random_pair((2, 5, 3, 4), False, (torch.float64, torch.float64))
    expected, expected_grads = heatmaps_and_grads(features, gradients, "elementwise", backend)
    for layouts in itertools.product(LAYOUTS, LAYOUTS):
        heatmaps, grads = heatmaps_and_grads(*map(lay_out, (features, gradients), layouts), "elementwise", backend)
        assert_close(heatmaps, expected, 1e-14)
        assert_close(grads[0], expected_grads[0], 1e-14)
        assert_close(grads[1], expected_grads[1], 1e-14)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_strides_of_dimensions_of_length_one_mean_nothing(backend):
    """x[0][None] of a channels_last x, which is channels_last too."""
    features, gradients = random_pair((2, 5, 3, 4), False, (torch.float64, torch.float64), "channels_last")
    expected, expected_grads = heatmaps_and_grads(features[:1], gradients[:1], "elementwise", backend)
    one, other = features[0][None], gradients[0][None]
    assert one.stride()[0] != features.stride()[0]
    assert one.is_contiguous(memory_format=torch.channels_last)
    heatmaps, grads = heatmaps_and_grads(one, other, "elementwise", backend)
    assert_same_bits(heatmaps, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_same_bits(grad, expected_grad)


@pytest.mark.parametrize("chunk", [1, 30, 61, 1000])
def test_chunks_of_torch_change_nothing(monkeypatch, chunk):
    for weighting, pooled in (("gradcam", False), ("gradcam", True), ("elementwise", False)):
        pair = random_pair((5, 5, 3, 4), pooled, (torch.float64, torch.float64))
        whole = heatmaps_and_grads(*pair, weighting, "torch")
        monkeypatch.setattr(import_module("cgc_kernels.backends.torch.cam"), "CHUNK_ELEMENTS", chunk)
        parts = heatmaps_and_grads(*pair, weighting, "torch")
        monkeypatch.undo()
        for part, expected in zip((parts[0], *parts[1]), (whole[0], *whole[1]), strict=True):
            assert_same_bits(part, expected)
