"""Attention that can be differentiated twice: the fused kernels of PyTorch cannot."""

import threading
from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel


class _Unfused:
    """Switches ``scaled_dot_product_attention`` to its plain form while anyone asks for it.

    PyTorch's switch is one for the process: it is thrown by the first who asks and put back by the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._switch: AbstractContextManager | None = None

    def ask(self) -> None:
        """From here on attention is plain."""
        with self._lock:
            if self._asking == 0:
                self._switch = sdpa_kernel(SDPBackend.MATH)
                self._switch.__enter__()
            self._asking += 1

    def release(self) -> None:
        """Once for every :meth:`ask`."""
        with self._lock:
            self._asking -= 1
            if self._asking == 0:
                self._switch.__exit__(None, None, None)


unfused = _Unfused()
