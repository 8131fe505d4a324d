"""The CPU kernels under sanitizers; ThreadSanitizer and another architecture take longer than CI has."""

import pytest

from tests.cpu import sanitize


@pytest.mark.parametrize(
    "tool",
    ["address", pytest.param("thread", marks=pytest.mark.slow), pytest.param("aarch64", marks=pytest.mark.slow)],
)
def test_the_kernels_are_clean(tool):
    if reason := sanitize.missing(tool):
        pytest.skip(reason)
    done = sanitize.run(tool, calls=40)
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().endswith("40 calls of every kernel: right")
