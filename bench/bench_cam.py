"""Stage cam: features, gradients -> heatmaps, of one view."""

import pytest

from .cases import Case, entries, grid

WEIGHTINGS = ("elementwise", "pooled", "gradcam")
LAYOUTS = ("contiguous", "channels_last")
DEFAULT = [
    *grid(Case("cam"), weighting=WEIGHTINGS),
    *grid(Case("cam", layout="channels_last"), weighting=("elementwise", "pooled")),
    Case("cam", backward=False),
]
EXHAUSTIVE = grid(
    Case("cam"),
    shape=((64, 2048, 7, 7), (64, 512, 7, 7), (32, 512, 14, 14), (16, 384, 16, 16), (256, 512, 7, 7)),
    weighting=WEIGHTINGS,
    layout=LAYOUTS,
    dtype=("float32", "bfloat16"),
    backward=(True, False),
)


@pytest.mark.parametrize(("case", "backend"), entries(DEFAULT + EXHAUSTIVE), ids=str)
def test_cam(measured, case, backend):
    measured(case, backend)
