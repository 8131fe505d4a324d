"""Stage contrast: rows, keys, positives -> loss. Its cost depends on B and H * W."""

import pytest

from .workloads import Workload, grid, with_backends

DEFAULT = [
    *grid(Workload("contrast"), backward=(True, False)),
    Workload("contrast", shape=(1024, 2048, 7, 7)),
]
EXHAUSTIVE = grid(
    Workload("contrast"),
    shape=((64, 2048, 7, 7), (256, 2048, 7, 7), (1024, 2048, 7, 7), (4096, 2048, 7, 7), (64, 512, 14, 14)),
    backward=(True, False),
)


@pytest.mark.parametrize(("workload", "backend"), with_backends(DEFAULT + EXHAUSTIVE), ids=str)
def test_contrast(measured, workload, backend):
    measured(workload, backend)
