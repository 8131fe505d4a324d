"""cgc_loss: the three stages fused."""

import pytest

from .workloads import LAYOUTS, WEIGHTINGS, Workload, grid, with_backends

DEFAULT = [
    *grid(Workload("cgc"), weighting=("elementwise", "pooled"), layout=LAYOUTS),
    Workload("cgc", "gradcam"),
    *grid(Workload("cgc", backward=False), weighting=("elementwise", "pooled")),
    *grid(Workload("cgc", dtype="bfloat16"), weighting=("elementwise", "pooled")),
    Workload("cgc", shape=(32, 512, 14, 14)),
]
EXHAUSTIVE = grid(
    Workload("cgc"),
    shape=((64, 2048, 7, 7), (64, 512, 7, 7), (32, 512, 14, 14), (16, 384, 16, 16), (256, 512, 7, 7)),
    weighting=WEIGHTINGS,
    layout=LAYOUTS,
    dtype=("float32", "bfloat16"),
    backward=(True, False),
)


@pytest.mark.parametrize(("workload", "backend"), with_backends(DEFAULT + EXHAUSTIVE), ids=str)
def test_cgc(measured, workload, backend):
    measured(workload, backend)
