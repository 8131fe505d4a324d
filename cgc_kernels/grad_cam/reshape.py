"""From a layer's output to a map [B, C, H, W]."""

import math
from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

from torch import Tensor

from ..tensors import described, is_dense

Reshape = Callable[[Tensor], Tensor]


def tokens_to_map(height: int, width: int, prefix: int = 1) -> Callable[[Tensor], Tensor]:
    """``reshape`` for token models: drops ``prefix`` leading tokens and lays the rest out as a map.

    ``height`` and ``width``: patches per view; ``prefix``: class and register tokens before them. The callable turns
    [B, prefix + height * width, C] into [B, C, height, width], row by row, and raises ValueError for other shapes.
    Raises TypeError for what is no integer and ValueError for one that is too small.

    Example::

        >>> tokens_to_map(14, 14)(torch.rand(2, 197, 384)).shape
        torch.Size([2, 384, 14, 14])
    """
    for name, value, least in (("height", height, 1), ("width", width, 1), ("prefix", prefix, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {described(value)}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    return _TokensToMap(int(height), int(width), int(prefix))


class _TokensToMap(NamedTuple):
    # Not a closure: a GradCAM that holds it can be pickled.
    height: int
    width: int
    prefix: int

    def __call__(self, tokens: Tensor) -> Tensor:
        if not is_dense(tokens):
            raise TypeError(f"tokens must be a dense tensor, got {described(tokens)}")
        count = self.prefix + self.height * self.width
        if tokens.ndim != 3 or tokens.shape[1] != count:
            raise ValueError(
                f"tokens must have shape [B, {self.prefix} + {self.height} * {self.width}, C], got {list(tokens.shape)}"
            )
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (self.height, self.width))


class ToMap(NamedTuple):
    """``reshape`` for a family: tokens [B, prefix + H * W, C] or maps [B, H, W, C] become [B, C, H, W].

    ``prefix``: class and register tokens. ``rows``, ``columns``: the aspect of the map, H / W = rows / columns.
    ``channels_last``: 4-d outputs are [B, H, W, C]; without it they stay as they are.
    """

    prefix: int = 0
    rows: int = 1
    columns: int = 1
    channels_last: bool = False

    def __call__(self, output: Tensor) -> Tensor:
        """The map. Raises ValueError for tokens that do not fill one."""
        if output.ndim == 3:
            tokens = output[:, self.prefix :]
            return tokens.transpose(1, 2).unflatten(2, self._sides(tokens.shape[1]))
        return output.permute(0, 3, 1, 2) if self.channels_last and output.ndim == 4 else output

    def _sides(self, count: int) -> tuple[int, int]:
        height = math.isqrt(count * self.rows // self.columns)
        width = height * self.columns // self.rows
        if height * width != count or height * self.columns != width * self.rows:
            raise ValueError(
                f"the tokens of a view must fill a map of {self.rows} : {self.columns}, got {count} after a prefix of "
                f"{self.prefix}; give GradCAM(model, target_layer, reshape=tokens_to_map(height, width, prefix))"
            )
        return height, width
