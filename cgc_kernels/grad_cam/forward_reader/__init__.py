"""What a model does with a layer's output, read from the source of its ``forward`` methods; nothing of it is run.

The reader follows one value, the target layer's output, from the call of that layer to what the model returns. All
that happens before, and beside it, may be unknown to it. Whatever touches that value, or may call the target layer,
must be understood, or the reading ends with :class:`Unreadable`, which says why.
"""

from .reader import Reader
from .values import Followed, Known, Unreadable

__all__ = ["Followed", "Known", "Reader", "Unreadable"]
