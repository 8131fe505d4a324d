"""Stage resample as Triton kernels."""

import pytest
import torch

from cgc_kernels import CropFlip, backends
from cgc_kernels.options import OBJECTIVES
from tests.loss.test_near_blind import check_rule, check_slivers
from tests.loss.test_resample_near_dead import UNSEEN, check_unseen
from tests.operators import test_ops
from tests.support.cases import crop_flip, warp, with_inverse
from tests.support.compare import assert_close

pytestmark = test_ops.pytestmark

triton, peer = backends.named("triton"), backends.named("torch")

SIZE = (23, 34)
OUTPUTS = ("rows", "keys", "positives")


def transform(kind, batch=3):
    generator = torch.Generator().manual_seed(2)
    if kind == "warp":
        return with_inverse(warp(generator, SIZE, ["affine", "homography", "horizon"]))
    return crop_flip(generator, SIZE, ["any", "border", "pixel"])


@pytest.mark.parametrize("kind", ["crop", "warp"])
@pytest.mark.parametrize("objective", ["released", "paper"])
@pytest.mark.parametrize("side", [(4, 5), (17, 3), (3, 20), (1, 1)])
def test_equals_torch(side, objective, kind):
    maps = torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    shapes = (3, side[0] * side[1]), (3, side[0] * side[1]), (3,)
    upstream = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for backend in (triton, peer):
        leaves = [m.clone().requires_grad_() for m in maps]
        outputs = backend.resample(*leaves, transform(kind), SIZE, 1e-3, objective)
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
    for ours, theirs, what in zip(*results, (*OUTPUTS, "heatmaps", "aug_heatmaps"), strict=True):
        # A 1x1 map is constant whatever its value: its gradient is what rounding leaves of terms of order one.
        assert_close(ours.detach(), theirs.detach(), 1e-11, floor=1.0, what=what)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_norm_of_one_is_none_of_zero(objective):
    """A view of one pixel holds (1 / (1 + eps) + eps): with this eps 1, to the last bit."""
    ones = torch.ones(2, 1, 1, dtype=torch.float64)
    for found in triton.resample(ones, ones, CropFlip.identity(2, 1), (1, 1), 2.0**-30, objective):
        assert found.numel() == 0 or (found == 1).all()


@pytest.mark.parametrize("kind", ["crop", "warp"])
def test_float32_positives_of_mse_are_as_good_as_float64(kind):
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    positives = triton.resample(*maps, transform(kind), SIZE, 1e-8, "mse")[2]
    exact = peer.resample(*maps.double(), transform(kind), SIZE, 1e-8, "mse")[2]
    assert_close(positives, exact, 1e-13)


def test_near_dead_heatmaps_have_damped_gradients():
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[:, 1] *= 1e-9
    grads = []
    for backend in (triton, peer):
        leaves = [m.clone().requires_grad_() for m in maps]
        backend.resample(*leaves, transform("crop"), SIZE, 1e-8, "released")[2].sum().backward()
        grads.append([leaf.grad[i] for leaf in leaves for i in range(3)])
    for i, (ours, theirs) in enumerate(zip(*grads, strict=True)):
        if i == 2:  # a crop of one pixel is constant whatever the map: what is left is rounding of terms of order one
            assert max(ours.abs().max(), theirs.abs().max()) < 1e-13
        else:
            assert_close(ours, theirs, 1e-9, what=f"gradient {i}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_near_blind_views(dtype):
    check_rule("triton", dtype, ["dead"])
    check_slivers("triton", dtype, 2)


@pytest.mark.parametrize("transform", [CropFlip.identity(3, 7), torch.eye(3, dtype=torch.float64).expand(3, 3, 3)])
def test_a_cell_that_no_pixel_sees_has_no_share_in_any(transform):
    check_unseen("triton", torch.float32, *UNSEEN[0], transform)


@pytest.mark.parametrize("given", test_ops.RESAMPLES)
def test_opcheck(given):
    test_ops.check_resample(lambda name: getattr(torch.ops.cgc_kernels_triton, name).default, given)
