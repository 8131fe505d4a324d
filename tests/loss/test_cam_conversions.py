"""Stage cam: every value of bfloat16 and float16 is read exactly, and gradients are rounded to them as torch does."""

import pytest
import torch

from cgc_kernels import gradcam
from tests.loss.test_cam import FORMATS, LOW
from tests.support.cases import CPP, lay_out, strides
from tests.support.compare import assert_same_bits


def every_pattern(dtype):
    """All 65536 values of a 16-bit dtype."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("backend", [CPP])
def test_every_16_bit_value_loads_exactly(backend, dtype, sign, layout):
    """The ReLU hides half of them: the sign of the gradients shows the other half."""
    values = every_pattern(dtype)
    features = lay_out(values.view(1, 1, 256, 256), layout)
    expected = torch.relu(values.float() * sign).view(1, 256, 256)
    weights = torch.full((1, 1), sign)
    assert_same_bits(gradcam(features, weights, backend=backend), expected)
    assert_same_bits(gradcam(features, weights.to(dtype), backend=backend), expected)
    spread = lay_out(weights.to(dtype)[:, :, None, None].expand(features.shape), layout)
    assert_same_bits(gradcam(features, spread, weighting="elementwise", backend=backend), expected)


def values_that_round(dtype):
    """float32 numbers at and beside every boundary of rounding to `dtype`, both signs, and those that overflow."""
    finite = every_pattern(dtype)
    finite = finite[finite.isfinite() & (finite >= 0)].float().sort().values
    middle = (finite[:-1].double() + finite[1:].double()).div(2).float()
    beyond = torch.tensor(
        [65504.0, 65519.9961, 65520.0, 65536.0, 1e6, 3.3895314e38, 3.4e38, 3.4028235e38, float("inf")]
    )
    tiny = torch.tensor([1e-45, 1e-44, 1e-40, 1.1754944e-38, 2.98e-8, 5.96e-8, 6.1e-5])
    base = torch.cat([finite, middle, beyond, tiny])
    up, down = base.nextafter(torch.tensor(torch.inf)), base.nextafter(torch.tensor(-torch.inf))
    nan = torch.tensor([0x7FC00000, 0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    every = torch.cat([base, up, down, nan])
    return torch.cat([every, -every])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("weighting", ["pooled", "elementwise"])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("backend", [CPP])
def test_rounding_to_16_bits_is_torchs(backend, dtype, weighting, layout):
    """Through the gradient of the features: weight 1 times an upstream gradient of any float32 value."""
    values = values_that_round(dtype)
    values = values[: len(values) // 6 * 6].view(1, -1, 6)
    features = lay_out(torch.zeros(1, 1, *values.shape[1:], dtype=dtype), layout)
    weights = torch.ones(1, 1) if weighting == "pooled" else torch.ones_like(features)
    heatmaps = torch.ones_like(values)
    got = torch.ops.cgc_kernels.cam_backward(values, heatmaps, features, weights, True, False)[0]
    assert strides(got) == strides(features)
    assert_same_bits(got.flatten(), values.to(dtype).flatten())
    exact = values.to(dtype).flatten()
    assert bool((got.flatten().signbit() == exact.signbit())[~exact.isnan()].all()), "signs of zero"
