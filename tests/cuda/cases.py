"""Inputs for the tests of the CUDA kernels in the emulator."""

from tests.support.cases import lay_out, simple_case

LAYOUTS = ("contiguous", "channels_last")


def case_of(batch, channels, side, weighting="elementwise", layout="contiguous", **rest):
    """A case with ordinary heatmaps; weighting "pooled" is gradcam with [B, C] gradients."""
    pooled = weighting == "pooled"
    given_ = simple_case(
        batch=batch, channels=channels, side=side, pooled=pooled, weighting="gradcam" if pooled else weighting, **rest
    )
    return given_._replace(views=tuple(lay_out(v, layout) for v in given_.views))
