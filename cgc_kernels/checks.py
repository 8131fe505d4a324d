"""Every check of user input, made once, above the backends.

Ranks, shapes, dtypes, devices and scalars are always checked. Values inside tensors are read only where that costs no
device synchronisation and breaks no graph: CPU tensors in eager mode.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .options import OBJECTIVES, WEIGHTINGS, Options
from .transforms import CropFlip, check_structure, check_values

FEATURE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST_IMAGE = 1 << 16
HEATMAP_DTYPES = (torch.float32, torch.float64)


def options(image_size, temperature, weighting="gradcam", objective="released", consistency=0.0, eps=1e-8) -> Options:
    """Validate the scalar settings; raises TypeError or ValueError naming the argument."""
    return Options(
        image_size=_image_size(image_size),
        temperature=_scalar("temperature", temperature, minimum=0.0, inclusive=False),
        weighting=choice("weighting", weighting, WEIGHTINGS),
        objective=choice("objective", objective, OBJECTIVES),
        consistency=_scalar("consistency", consistency, minimum=0.0, inclusive=True),
        eps=_scalar("eps", eps, minimum=0.0, inclusive=False),
    )


def choice(name: str, value, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`, else ValueError."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def group(given, even) -> None:
    """Validate a process group of torch.distributed, of which this process must be a rank, or None; and `even`."""
    if not isinstance(even, bool):
        raise TypeError(f"even must be a bool, got {_describe(even)}")
    if given is None:
        return
    if dist.is_available() and given == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must be a process group that this process is a rank of, got one without it")
    if not dist.is_available() or not isinstance(given, dist.ProcessGroup):
        raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, got {_describe(given)}")


def cam(pair, name: str = "cam") -> tuple[torch.Tensor, torch.Tensor]:
    """Validate one view's (features [B, C, H, W], gradients [B, C, H, W] or pooled [B, C]) and return the two."""
    try:
        features, gradients = pair
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair (features, gradients), got {_describe(pair)}") from None
    return features_and_gradients(features, gradients, f"{name}.")


def features_and_gradients(features, gradients, prefix: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Validate ranks, shapes, dtypes and devices of one view's tensors."""
    _tensor(f"{prefix}features", features, FEATURE_DTYPES)
    if features.dim() != 4 or 0 in features.shape:
        raise ValueError(f"{prefix}features must be [B, C, H, W] with no empty dimension, got {_describe(features)}")
    _tensor(f"{prefix}gradients", gradients, (features.dtype, torch.float32))
    if gradients.shape not in (features.shape, features.shape[:2]):
        raise ValueError(
            f"{prefix}gradients must be {list(features.shape)} like the features, or pooled "
            f"{list(features.shape[:2])}, got {_describe(gradients)}"
        )
    _same_device(f"{prefix}gradients", gradients, features.device)
    return features, gradients


def heatmaps(maps, name: str = "heatmaps") -> torch.Tensor:
    """Validate heatmaps [B, H, W]."""
    _tensor(name, maps, HEATMAP_DTYPES)
    if maps.dim() != 3 or 0 in maps.shape:
        raise ValueError(f"{name} must be [B, H, W] with no empty dimension, got {_describe(maps)}")
    if _readable(maps) and (maps < 0).any():
        raise ValueError(f"{name} must be non-negative, got {maps.min().item()}")
    return maps


def same_kind(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Both views must share shape, dtype and device."""
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        raise ValueError(
            f"{name} must have the shape and dtype of {other_name}, {_describe(other)}, got {_describe(tensor)}"
        )
    _same_device(name, tensor, other.device)


def transform(given, batch: int, image_size: tuple[int, int], device: torch.device) -> CropFlip | torch.Tensor:
    """Validate the transform of the augmented view; returns a CropFlip or a matrix [B, 3, 3]."""
    if isinstance(given, CropFlip):
        check_structure(given)
        if given.top.shape[0] != batch:
            raise ValueError(f"transform must hold one crop per image, {batch}, got {given.top.shape[0]}")
        for name, field in zip(given._fields, given, strict=True):
            _same_device(f"transform.{name}", field, device)
        if _readable(given.top):
            check_values(given, image_size)
        return given
    return _matrix(given, batch, device)


def _matrix(given, batch: int, device: torch.device) -> torch.Tensor:
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"transform must be a CropFlip or a matrix [B, 2, 3] or [B, 3, 3], got {_describe(given)}")
    if tuple(given.shape) not in ((batch, 2, 3), (batch, 3, 3)):
        raise ValueError(f"transform must be a matrix [{batch}, 2, 3] or [{batch}, 3, 3], got {_describe(given)}")
    _tensor("transform", given, FEATURE_DTYPES)
    _same_device("transform", given, device)
    matrix = given.detach()
    if matrix.shape[1] == 2:
        matrix = F.pad(matrix, (0, 0, 0, 1))
        matrix[:, 2, 2].fill_(1)  # made where the matrix is: a copy from the host would wait for the device
    if _readable(matrix):
        _check_invertible(matrix)
    return matrix


def _check_invertible(matrix: torch.Tensor) -> None:
    determinant = torch.linalg.det(matrix.double())
    bad = ~determinant.isfinite() | (determinant == 0) | ~matrix.isfinite().all(dim=(1, 2))
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"transform must hold finite, invertible matrices, got {matrix[index].tolist()} at index {index}"
        )


def _readable(tensor: torch.Tensor) -> bool:
    """Whether values may be read: eager mode, a CPU tensor that holds data."""
    return not torch.compiler.is_compiling() and type(tensor) is torch.Tensor and tensor.device.type == "cpu"


def _tensor(name: str, value, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_describe(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if value.dtype not in dtypes:
        names = " or ".join(dict.fromkeys(map(str, dtypes)))
        raise TypeError(f"{name} must be {names}, got {value.dtype}")


def _same_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise RuntimeError(f"{name} must be on {device} like the first view, got {tensor.device}")


def _scalar(name: str, value, minimum: float, inclusive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_describe(value)}")
    above = value >= minimum if inclusive else value > minimum  # False for NaN
    if not (above and value < math.inf):
        sign = ">=" if inclusive else ">"
        raise ValueError(f"{name} must be finite and {sign} {minimum:g}, got {value!r}")
    return float(value)


def _image_size(value) -> tuple[int, int]:
    size = (value, value) if isinstance(value, Integral) else value
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(_is_integer, size)):
        raise TypeError(f"image_size must be an int or (height, width), got {_describe(value)}")
    if min(size) < 1:
        raise ValueError(f"image_size must be at least 1 pixel each way, got {value!r}")
    if max(size) > LARGEST_IMAGE:
        raise ValueError(f"image_size must be at most {LARGEST_IMAGE} pixels each way, got {value!r}")
    return int(size[0]), int(size[1])


def _is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _describe(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str, bool)) else type(value).__name__
