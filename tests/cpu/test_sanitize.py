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


def test_the_command_line(capsys):
    assert sanitize.arguments([]).tools == ["address", "thread"]
    assert sanitize.arguments(["aarch64", "--calls", "5"]).tools == ["aarch64"]
    with pytest.raises(SystemExit):
        sanitize.arguments(["memory"])
    assert "must be one of address, thread, aarch64, got 'memory'" in capsys.readouterr().err
