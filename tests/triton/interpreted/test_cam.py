"""Stage cam as Triton kernels."""

import pytest
import torch

from cgc_kernels import gradcam
from tests.operators import test_ops
from tests.support.cases import lay_out, views
from tests.support.compare import assert_close, assert_same_bits
from tests.triton.interpreter import counting, without_races

pytestmark = test_ops.pytestmark


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize(
    ("batch", "channels", "side"), [(2, 130, (7, 7)), (1, 35, (14, 9)), (1, 5, (32, 32)), (3, 1, (1, 1))]
)
def test_equals_torch(batch, channels, side, weighting, layout):
    pooled = weighting == "pooled"
    kinds = ["ordinary", "dead", "ordinary"][:batch]
    pair = views(torch.Generator().manual_seed(0), batch, channels, *side, kinds, pooled)
    pair = [lay_out(t, layout if t.dim() == 4 else "contiguous") for t in pair]
    upstream = torch.rand(batch, *side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for backend in ("triton", "torch"):
        leaves = [t.detach().requires_grad_() for t in pair]
        maps = gradcam(*leaves, weighting="gradcam" if pooled else weighting, backend=backend)
        results.append((maps, *torch.autograd.grad(maps, leaves, upstream)))
    for ours, theirs, what in zip(*results, ("heatmaps", "features", "gradients"), strict=True):
        assert_close(ours.detach(), theirs.detach(), 1e-12, what=what)
    assert (results[0][0] > 0).any()


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
def test_splits_of_the_channels_share_nothing(weighting):
    pair = views(torch.Generator().manual_seed(0), 2, 300, 2, 3, ["ordinary"] * 2, weighting == "pooled")
    leaves = [t.detach().requires_grad_() for t in pair]
    with without_races(), counting() as counts:
        maps = gradcam(*leaves, weighting="gradcam" if weighting == "pooled" else weighting, backend="triton")
        torch.autograd.grad(maps.sum(), leaves)
    assert all(launch.grid[:2] == (2, 2) for launch in counts.launches)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_alone(wanted):
    pair = views(torch.Generator().manual_seed(1), 2, 9, 3, 4, ["ordinary"] * 2)
    both = [t.clone().requires_grad_() for t in pair]
    full = torch.autograd.grad(gradcam(*both, weighting="elementwise", backend="triton").sum(), both)
    leaves = [t.clone().requires_grad_(want) for t, want in zip(pair, wanted, strict=True)]
    (alone,) = torch.autograd.grad(
        gradcam(*leaves, weighting="elementwise", backend="triton").sum(), leaves[wanted.index(True)]
    )
    assert_same_bits(alone, full[wanted.index(True)])


def test_nan_passes_the_relu():
    features = torch.ones(1, 2, 2, 2)
    features[0, 0, 0, 0] = float("nan")
    heatmaps = gradcam(features, torch.ones(1, 2), backend="triton")
    assert heatmaps[0, 0, 0].isnan()
    assert (heatmaps.flatten()[1:] == 2).all()


@pytest.mark.parametrize("given", test_ops.CAMS)
def test_opcheck(given):
    test_ops.check_cam(lambda name: getattr(torch.ops.cgc_kernels_triton, name).default, given)
