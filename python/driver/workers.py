"""Loading by other processes, whose errors arrive as they were raised."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader, Dataset

from .data import CorruptImage, DataError

FORESEEN = (CorruptImage, DataError)


class LostWorker(OSError):
    """A process that loads images has died."""


@contextmanager
def watched():
    """Raise :class:`LostWorker` where a loading process dies: DataLoader's error comes from a signal, at any place, or,
    where a batch was just being handed over, it is a connection's."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        reason = str(error).strip().rstrip(".")
        raise LostWorker(
            f"--workers: a process that loads images was lost, {reason}. Start again, train.py with --resume; where "
            "memory is short, with fewer --workers"
        ) from error


class _Carrying(Dataset):
    """A data set of batches that returns what it should raise: a DataLoader would make another error of it."""

    def __init__(self, batches: Dataset):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, keys: list):
        try:
            return self.batches.__getitems__(keys)
        except FORESEEN as error:
            return error


def load(batches: Dataset, **how) -> Iterator:
    """What ``batches.__getitems__`` returns for each batch of keys, by a DataLoader with the arguments ``how``."""
    for batch in DataLoader(_Carrying(batches), collate_fn=_as_it_is, **how):
        if isinstance(batch, FORESEEN):
            raise batch
        yield batch


def _as_it_is(batch):
    return batch
