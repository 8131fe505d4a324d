"""What holds for every test: no GPU test without a GPU, no deadline for hypothesis."""

import os

import hypothesis
import pytest
import torch

# A shared machine is slow at times, which is no fault of the code; what fails in CI must fail again on every rerun.
hypothesis.settings.register_profile("cgc", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("cgc")


def pytest_make_parametrize_id(val) -> str | None:
    """Dtypes, memory formats, and tuples of such and of words, by name: `-k float32` chooses them."""
    if isinstance(val, (torch.dtype, torch.memory_format)):
        return str(val).removeprefix("torch.")
    if isinstance(val, tuple):
        parts = [str(part) if isinstance(part, (str, int)) else pytest_make_parametrize_id(part) for part in val]
        return "-".join(parts) if parts and None not in parts else None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device: run `make gpu` where there is one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def single_thread():
    """For small tensors, whose threads would only wait for each other; random numbers are the same in every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
