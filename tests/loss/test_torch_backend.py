"""The torch backend: how few operators it runs, what it keeps between calls, and how large its temporaries are."""

from importlib import import_module

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cgc_kernels import CropFlip, cgc_loss, heatmap_loss
from cgc_kernels.backends.torch import chunks, resample_geometry
from tests.support.cases import VIEWS, WEIGHTINGS, evaluate, simple_case
from tests.support.compare import assert_same_bits

cam_chunk = import_module("cgc_kernels.backends.torch.cam").CHUNK_ELEMENTS


class Operators(TorchDispatchMode):
    """The operators that run, views not counted, and the elements of the largest tensor each returns."""

    def __init__(self):
        super().__init__()
        self.names, self.elements = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns):
            self.names.append(function._schema.name)
            self.elements.append(max(t.numel() if isinstance(t, torch.Tensor) else 0 for t in tree_leaves(result)))
        return result


@pytest.fixture(autouse=True)
def nothing_kept():
    resample_geometry._kept_grid.cache_clear()
    yield
    resample_geometry._kept_grid.cache_clear()


def operators(case, dtype=torch.float32):
    """Of the forward and of the backward, once what is kept has been made."""
    case = case.to(dtype)
    leaves = [v.requires_grad_() for v in case.views]
    evaluate(case, "torch")
    with Operators() as forward:
        loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend="torch", **case.settings)
    with Operators() as backward:
        torch.autograd.grad(loss, leaves)
    return forward, backward


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_operators_of_a_training_step(weighting):
    pooled, name = WEIGHTINGS[weighting]
    shape = {"batch": 64, "channels": 2048, "side": (7, 7), "size": (224, 224), "dtype": torch.float32}
    forward, backward = operators(simple_case(**shape, pooled=pooled, weighting=name))
    count = len(forward.names) + len(backward.names)
    assert count <= 120, sorted(forward.names + backward.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_temporary_as_large_as_the_features(weighting, dtype):
    """As large as them are their gradients alone, each allocated once and written in place."""
    pooled, name = WEIGHTINGS[weighting]
    case = simple_case(batch=12, channels=4096, side=(7, 7), size=(9, 9), pooled=pooled, weighting=name)
    features = case.views[0].numel()
    assert features > cam_chunk
    forward, backward = operators(case, dtype)
    assert max(forward.elements) <= cam_chunk
    large = [n for n, size in zip(backward.names, backward.elements, strict=True) if size > cam_chunk]
    assert large.count("aten::empty_like") == (4 if weighting == "elementwise" else 2)
    assert set(large) <= {"aten::empty_like", "aten::mul"}


def test_a_gpu_takes_larger_chunks():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert chunks.samples(1 << 20, 1 << 18, cpu) == 4
    assert chunks.samples(1 << 20, 1 << 18, gpu) == 16
    assert chunks.samples(1, 2, cpu) == 1


# ---- What is kept between calls


def kept():
    return resample_geometry._kept_grid.cache_info().currsize


def maps_and_crop():
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return *(m.clone().requires_grad_() for m in maps), CropFlip.identity(3, (9, 11))


def loss_of(first, second, crop, size=(9, 11)):
    return heatmap_loss(first, second, crop, image_size=size, backend="torch")


def test_the_grid_is_made_once():
    like = torch.rand(3, 4, 5)
    grid = resample_geometry.grid((9, 11), like)
    assert resample_geometry.grid((9, 11), like + 1) is grid
    assert resample_geometry.grid((9, 12), like) is not grid
    assert resample_geometry.grid((9, 11), like.mT) is not grid
    limit = resample_geometry._kept_grid.cache_info().maxsize
    for size in range(1, limit + 3):
        resample_geometry.grid((size, size), like)
    assert kept() == limit


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, Operators, torch.autograd.forward_ad.dual_level])
def test_what_a_mode_makes_serves_outside_it(mode):
    """An inference tensor could not be saved for a backward."""
    first, second, crop = maps_and_crop()
    with mode():
        loss_of(first.detach(), second.detach(), crop)
    assert kept() == 1
    assert not any(t.is_inference() for t in resample_geometry.grid((9, 11), first)[2:])
    inside = torch.autograd.grad(loss_of(first, second, crop), (first, second))
    resample_geometry._kept_grid.cache_clear()
    for one, other in zip(inside, torch.autograd.grad(loss_of(first, second, crop), (first, second)), strict=True):
        assert_same_bits(one, other)


def test_of_fake_and_meta_tensors_nothing_is_kept():
    first, second, crop = maps_and_crop()
    with FakeTensorMode() as mode:
        fake = loss_of(*(mode.from_tensor(t) for t in (first, second)), CropFlip(*map(mode.from_tensor, crop)))
    assert isinstance(fake, FakeTensor)
    assert resample_geometry.grid((9, 11), first.to("meta")).share.is_meta
    assert kept() == 0
    loss_of(first, second, crop)
    with FakeTensorMode() as mode:
        loss_of(*(mode.from_tensor(t) for t in (first, second)), CropFlip(*map(mode.from_tensor, crop)))
    assert kept() == 1


# torch's own, while it compiles
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_of_a_graph_and_of_torch_func_nothing_is_kept():
    first, second, crop = maps_and_crop()
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)(first, second, crop)
    grad = torch.func.grad(loss_of)(first.detach(), second.detach(), crop)
    assert kept() == 0
    loss = loss_of(first, second, crop)
    assert torch.allclose(loss, compiled, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(loss, first)[0], grad, rtol=1e-10)
    assert kept() == 1


@pytest.mark.parametrize("side", [(3, 4), (5, 2)])
def test_a_call_after_another_size_is_its_own(side):
    """Kept matrices serve no other size."""
    case = simple_case(side=side)
    alone = evaluate(case, "torch")
    resample_geometry._kept_grid.cache_clear()
    for size in ((9, 11), (11, 9), (4, 30)):
        evaluate(simple_case(side=side[::-1], size=size), "torch")
    again = evaluate(case, "torch")
    assert_same_bits(again[0], alone[0])
    for name in VIEWS:
        assert_same_bits(again[1][name], alone[1][name])
