"""Folders that are one process's alone; files that are the old or the new ones, never half of either; safe reading."""

import argparse
import fcntl
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path, PosixPath

import numpy as np
import torch

LOCK = ".lock"
PART = ".part"  # of a file that is being written
# Beside tensors, numbers, strings and containers: what the scripts of others keep their settings in.
_SCALAR = np.float64(0).__reduce__()[0]  # how NumPy's numbers are made, under its name of now and of before
SAFE = [argparse.Namespace, PosixPath, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")]
SAFE += [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)]


class FileError(ValueError):
    """A file or folder that is not what it must be; the message names the flag and the file."""


class CheckpointError(FileError):
    """A file that is no checkpoint, or another's."""


@contextmanager
def claimed(folder: Path, new: bool) -> Iterator[Path]:
    """Keep a folder, made if need be, for this process alone; when it ends, however it does, others may have it.

    What killed processes were writing is removed, and a new folder that nothing was put into.

    Args:
        folder: the folder.
        new: whether it must be empty.

    Raises:
        FileError: another process has it, it is not empty, or it cannot be made or written in.
    """
    if new:
        check_new(folder)
    with _reaching(folder):
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LOCK).open("a")
    with opened as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process: not its children's, gone when it dies
        except (BlockingIOError, PermissionError):
            raise FileError(f"--output must be a folder of its own, got {folder}, which a process works in") from None
        if new:
            check_new(folder)
        if not os.fstat(lock.fileno()).st_nlink:
            raise FileError(f"--output must be a folder of its own, got {folder}, which a process has removed")
        for path in (*folder.glob(f".*{PART}"), *folder.glob(f"*/.*{PART}")):
            path.unlink()
        try:
            yield folder
        finally:
            if new and _contents(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


@contextmanager
def _reaching(folder: Path):
    """An OSError of the block becomes a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(f"--output must be a folder that can be written in, got {folder}: {error.strerror}") from error


def check_new(folder: Path, remedy: str = "") -> None:
    """Raise FileError, with a remedy, unless a folder is empty or not there."""
    with _reaching(folder):
        if folder.exists() and not folder.is_dir():
            raise FileError(f"--output must be a folder, got the file {folder}")
        if folder.exists() and set(_contents(folder)) - {LOCK}:
            raise FileError(f"--output must be a new or empty folder, got {folder}{remedy}")


def _contents(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def numbered(name: str) -> Path:
    """Make a folder of that name, or with the next number behind it that nobody has taken."""
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = Path(name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise FileError(f"--output must be given where {name} cannot be made: {error.strerror}") from error


@contextmanager
def replacing(path: Path):
    """Give a temporary path to write; when the block ends well, it takes the place of `path` in one step.

    An OSError of the block, such as one of a full disk, names `path`.

    Example:
        >>> with replacing(Path("runs/replaced.txt")) as path:
        ...     _ = path.write_text("whole")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save(state: dict, path: Path) -> None:
    """torch.save in one step; raises OSError where it cannot be written."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # its writer makes one of what the file raised, or a signal in the middle of it
            if error.__context__ is None:
                raise
            raise error.__context__ from None


def load(path: Path | str, flag: str = "the file") -> dict:
    """Read a checkpoint, onto the CPU, without running any code that it might hold.

    Args:
        path: what :func:`save` wrote, a .safetensors file, or a checkpoint from elsewhere.
        flag: what the message names.

    Raises:
        CheckpointError: it is not there, truncated, no checkpoint, or needs types that could do anything.
    """
    path = Path(path)
    if not path.is_file():
        what = "which is a folder" if path.is_dir() else "which is not there"
        raise CheckpointError(f"{flag} must be a checkpoint file, got {str(path)!r}, {what}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path) and (broken := zipfile.ZipFile(path).testzip()):
            raise OSError(f"{broken} has another checksum")  # which torch.load does not look at
        with torch.serialization.safe_globals(SAFE):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise CheckpointError(
            f"{flag} must be a checkpoint that holds tensors only, got {str(path)!r}: {_reason(path, error)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{flag} must be a checkpoint with a state_dict, got {type(state).__name__} alone in {str(path)!r}"
        )
    return state


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be read, in a line."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"it is damaged, or no checkpoint ({str(error).strip().partition(chr(10))[0] or type(error).__name__})"
    try:
        with torch.serialization.safe_globals(SAFE):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above: it may be damaged as well
        names = []
    if not names:
        return "it is damaged, or no checkpoint"
    return (
        f"it holds {', '.join(names[:3])}; if you trust it, keep its tensors alone: "
        "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
    )
