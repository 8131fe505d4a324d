"""Stage resample: heatmaps, transform -> unit rows and positives. Its cost depends on B, H, W and the image size."""

import pytest

from .cases import Case, entries, grid

DEFAULT = grid(Case("resample"), backward=(True, False))
EXHAUSTIVE = grid(
    Case("resample"),
    shape=((64, 2048, 7, 7), (256, 2048, 7, 7), (64, 512, 14, 14), (16, 384, 16, 16)),
    image_size=(64, 224, 448),
    backward=(True, False),
)


@pytest.mark.parametrize(("case", "backend"), entries(DEFAULT + EXHAUSTIVE), ids=str)
def test_resample(measured, case, backend):
    measured(case, backend)
