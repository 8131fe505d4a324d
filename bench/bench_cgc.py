"""cgc_loss: the three stages fused."""

import pytest

from .cases import Case, entries, grid

WEIGHTINGS = ("elementwise", "pooled", "gradcam")
LAYOUTS = ("contiguous", "channels_last")
DEFAULT = [
    *grid(Case("cgc"), weighting=("elementwise", "pooled"), layout=LAYOUTS),
    Case("cgc", "gradcam"),
    *grid(Case("cgc", backward=False), weighting=("elementwise", "pooled")),
    *grid(Case("cgc", dtype="bfloat16"), weighting=("elementwise", "pooled")),
    Case("cgc", shape=(32, 512, 14, 14)),
]
EXHAUSTIVE = grid(
    Case("cgc"),
    shape=((64, 2048, 7, 7), (64, 512, 7, 7), (32, 512, 14, 14), (16, 384, 16, 16), (256, 512, 7, 7)),
    weighting=WEIGHTINGS,
    layout=LAYOUTS,
    dtype=("float32", "bfloat16"),
    backward=(True, False),
)


@pytest.mark.parametrize(("case", "backend"), entries(DEFAULT + EXHAUSTIVE), ids=str)
def test_cgc(measured, case, backend):
    measured(case, backend)
