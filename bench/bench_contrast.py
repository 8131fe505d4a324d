"""Stage contrast: rows, keys, positives -> loss. Its cost depends on B and H * W."""

import pytest

from .cases import Case, entries, grid

DEFAULT = [
    *grid(Case("contrast"), backward=(True, False)),
    Case("contrast", shape=(1024, 2048, 7, 7)),
]
EXHAUSTIVE = grid(
    Case("contrast"),
    shape=((64, 2048, 7, 7), (256, 2048, 7, 7), (1024, 2048, 7, 7), (4096, 2048, 7, 7), (64, 512, 14, 14)),
    backward=(True, False),
)


@pytest.mark.parametrize(("case", "backend"), entries(DEFAULT + EXHAUSTIVE), ids=str)
def test_contrast(measured, case, backend):
    measured(case, backend)
