"""What all parallel workers of a test run share: made by the first that asks, while the others wait."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock's file stays."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(factory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name, filled by `make` at the first call; `factory`: pytest's tmp_path_factory.

    Whoever changes what is in it works on a copy. Where `make` raises, the next call makes it anew.
    """
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder
