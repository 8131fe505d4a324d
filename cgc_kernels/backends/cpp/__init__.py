"""The loss as fused C++ kernels on the CPU (csrc/cpu), through the operators of :mod:`cgc_kernels.ops`."""

from ... import ops
from ...ops import installation
from ..backend import Backend

_REASON = installation.unavailable("cpp")


def missing(index: int | None) -> str | None:
    """Why the kernels cannot serve in this installation, with the remedy; None if they can."""
    return _REASON


BACKEND = Backend("cpp", **ops.compiled._asdict(), device_types=("cpu",), missing=missing)
