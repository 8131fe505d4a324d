"""Stage cam: features, gradients -> heatmaps, of one view."""

import pytest

from .workloads import LAYOUTS, WEIGHTINGS, Workload, grid, with_backends

DEFAULT = [
    *grid(Workload("cam"), weighting=WEIGHTINGS),
    *grid(Workload("cam", layout="channels_last"), weighting=("elementwise", "pooled")),
    Workload("cam", backward=False),
]
EXHAUSTIVE = grid(
    Workload("cam"),
    shape=((64, 2048, 7, 7), (64, 512, 7, 7), (32, 512, 14, 14), (16, 384, 16, 16), (256, 512, 7, 7)),
    weighting=WEIGHTINGS,
    layout=LAYOUTS,
    dtype=("float32", "bfloat16"),
    backward=(True, False),
)


@pytest.mark.parametrize(("workload", "backend"), with_backends(DEFAULT + EXHAUSTIVE), ids=str)
def test_cam(measured, workload, backend):
    measured(workload, backend)
