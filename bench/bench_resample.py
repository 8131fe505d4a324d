"""Stage resample: heatmaps, transform -> unit rows and positives. Its cost depends on B, H, W and the image size."""

import pytest

from .workloads import Workload, grid, with_backends

DEFAULT = grid(Workload("resample"), backward=(True, False))
EXHAUSTIVE = grid(
    Workload("resample"),
    shape=((64, 2048, 7, 7), (256, 2048, 7, 7), (64, 512, 14, 14), (16, 384, 16, 16)),
    image_size=(64, 224, 448),
    backward=(True, False),
)


@pytest.mark.parametrize(("workload", "backend"), with_backends(DEFAULT + EXHAUSTIVE), ids=str)
def test_resample(measured, workload, backend):
    measured(workload, backend)
