"""What the tests look with for code that waits for the GPU."""

import warnings

import pytest
import torch

from tests.support.waiting import never_waiting


def test_the_mode_is_put_back_whatever_happens(monkeypatch):
    """Left behind, it made every later test of a process fail."""
    modes = []

    def set_mode(mode):
        modes.append(mode)
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with never_waiting():
            pass
    with pytest.raises(ZeroDivisionError), never_waiting():
        _ = 1 / 0
    assert modes == ["error", "default"] * 2
