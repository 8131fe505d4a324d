"""Files that are either the old ones or the new ones, never half of either."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def replacing(path: Path):
    """Give a temporary path to write; when the block ends well, it takes the place of `path` in one step.

    Example:
        >>> with replacing(Path("runs/replaced.txt")) as path:
        ...     _ = path.write_text("whole")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(state: dict, path: Path) -> None:
    """torch.save in one step."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """Read what :func:`save` wrote; tensors, numbers, strings and containers only."""
    return torch.load(path, map_location=device, weights_only=True)
