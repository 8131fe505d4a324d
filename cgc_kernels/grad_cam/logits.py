"""What a classifier returns, and the logits in it."""

from collections.abc import Mapping
from typing import Any


def logits_of(output: Any) -> Any:
    """The logits in what a classifier returned: its entry or attribute ``logits``, or the output itself."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)
