"""Every check of user input, made once, above the backends.

Ranks, shapes, dtypes, devices and scalars are always checked. Values inside tensors are read only where that costs no
device synchronisation and breaks no graph: CPU tensors in eager mode.
"""

import functools
import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .grad_cam import CAM, GradCAMOutput
from .options import CONSISTENCY, OBJECTIVES, WEIGHTINGS, Options
from .tensors import described, is_dense, misplaced
from .transforms import CropFlip, check_structure
from .transforms.checks import check_boxes, height_width

FEATURE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HEATMAP_DTYPES = (torch.float32, torch.float64)


def options(image_size, temperature, weighting="gradcam", objective="released", consistency=0.0, eps=1e-8) -> Options:
    """Validate the scalar settings; raises TypeError or ValueError naming the argument. See :func:`sized` for an
    image_size of None."""
    given = image_size, temperature, weighting, objective, consistency, eps
    known = None
    # Not a pair of sizes: 1 and True would be the same there.
    if (image_size is None or type(image_size) is int) and not torch.compiler.is_compiling():
        try:
            known = _known_options(*given)
        except TypeError:  # what cannot be hashed is wrong
            known = None
    return known or _options(*given)


def _options(image_size, temperature, weighting, objective, consistency, eps) -> Options:
    checked = Options(
        None if image_size is None else height_width(image_size),
        scalar("temperature", temperature),
        choice("weighting", weighting, WEIGHTINGS),
        choice("objective", objective, (*OBJECTIVES, CONSISTENCY)),
        scalar("consistency", consistency, inclusive=True),
        scalar("eps", eps),
    )
    if objective == CONSISTENCY and consistency:
        raise ValueError(f"consistency must be 0 with the objective of that name, got {consistency!r}; weigh the loss")
    return checked


# The same settings come at every step.
_known_options = functools.lru_cache(maxsize=64, typed=True)(_options)


def sized(options: Options, cam=None, aug_cam=None) -> Options:
    """`options` with the size of the views: the one given must be that which the CAMs carry, if they carry one."""
    given, seen = options.image_size, _size_seen(cam, aug_cam)
    if seen is None:
        if given is None:
            raise TypeError("image_size must be an int or (height, width) unless a GradCAM made the CAMs, got NoneType")
        return options
    if seen == given:
        return options
    seen = height_width(seen)
    if given not in (seen, None):
        raise ValueError(
            f"image_size must be the size of the views that GradCAM saw, {seen}, or be left out, got {given}"
        )
    return Options(seen, *options[1:])


def _size_seen(cam, aug_cam):
    """Pixels of the views that these are of, (height, width), or None where neither carries it."""
    size = cam.image_size if isinstance(cam, CAM) else None
    aug_size = aug_cam.image_size if isinstance(aug_cam, CAM) else None
    if size is None or aug_size is None:
        return aug_size if size is None else size
    if size != aug_size:
        raise ValueError(f"aug_cam must be of views as large as cam's, {size}, got {aug_size}")
    return size


def choice(name: str, value, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`, else ValueError."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def group(given, even) -> None:
    """Validate a process group of torch.distributed, of which this process must be a rank, or None; and `even`."""
    if not isinstance(even, bool):
        raise TypeError(f"even must be a bool, got {described(even)}")
    if given is None:
        return
    if dist.is_available() and given == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must be a process group that this process is a rank of, got one without it")
    if not dist.is_available() or not isinstance(given, dist.ProcessGroup):
        raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, got {described(given)}")


def views(cam, aug_cam) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Validate two views' (features [B, C, H, W], gradients [B, C, H, W] or pooled [B, C]), which must be of one kind;
    returns the four tensors."""
    features, gradients = _pair(cam, "cam")
    features_and_gradients(features, gradients, "cam.")
    aug_features, aug_gradients = _pair(aug_cam, "aug_cam")
    if not (_alike(aug_features, features) and _alike(aug_gradients, gradients)):
        features_and_gradients(aug_features, aug_gradients, "aug_cam.")
        same_kind("aug_cam.features", aug_features, "cam.features", features)
        same_kind("aug_cam.gradients", aug_gradients, "cam.gradients", gradients)
    return features, gradients, aug_features, aug_gradients


def _pair(given, name: str):
    if isinstance(given, CAM):
        return given.features, given.gradients
    try:
        features, gradients = given
    except (TypeError, ValueError):
        raise _no_pair(given, name) from None
    if isinstance(given, GradCAMOutput) or isinstance(features, GradCAMOutput):
        raise _no_pair(given, name)
    return features, gradients


def _no_pair(given, name: str) -> TypeError:
    """The error, with what to write instead of other things that GradCAM returns."""
    got, remedy = described(given), ""
    if given is None:
        remedy = "; views given as extra= have no cam: give this one as one of the first arguments of GradCAM"
    elif isinstance(given, GradCAMOutput):
        got, remedy = "a GradCAMOutput", "; write cgc_loss(out.cam, out_aug.cam, ...)"
    elif isinstance(given, tuple) and any(isinstance(output, GradCAMOutput) for output in given):
        got, remedy = "what GradCAM returns", "; write out, out_aug = cam(x, x_aug), then out.cam and out_aug.cam"
    return TypeError(f"{name} must be a pair (features, gradients), got {got}{remedy}")


def _alike(tensor, other: torch.Tensor) -> bool:
    """Whether it is such a tensor as the other one, which was checked."""
    return (
        isinstance(tensor, torch.Tensor)
        and not tensor.is_nested
        and tensor.shape == other.shape
        and tensor.dtype == other.dtype
        and tensor.device == other.device
        and tensor.layout == other.layout
    )


def features_and_gradients(features, gradients, prefix: str = "") -> None:
    """Validate ranks, shapes, dtypes and devices of one view's tensors; prefix: of their names."""
    _tensor(features, FEATURE_DTYPES, "features", prefix)
    shape = features.shape
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"{prefix}features must be [B, C, H, W] with no empty dimension, got {described(features)}")
    _tensor(gradients, (features.dtype, torch.float32), "gradients", prefix)
    if gradients.shape not in (shape, shape[:2]):
        raise ValueError(
            f"{prefix}gradients must be {list(shape)} like the features, or pooled {list(shape[:2])}, "
            f"got {described(gradients)}"
        )
    _same_device(gradients, features.device, "gradients", prefix)


def heatmaps(maps, name: str = "heatmaps") -> torch.Tensor:
    """Validate heatmaps [B, H, W]."""
    _tensor(maps, HEATMAP_DTYPES, name)
    if maps.dim() != 3 or 0 in maps.shape:
        raise ValueError(f"{name} must be [B, H, W] with no empty dimension, got {described(maps)}")
    if _readable(maps) and (maps < 0).any():
        raise ValueError(f"{name} must be non-negative, got {maps.min().item()}")
    return maps


def same_kind(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Both views must share shape, dtype and device."""
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        raise ValueError(
            f"{name} must have the shape and dtype of {other_name}, {described(other)}, got {described(tensor)}"
        )
    _same_device(tensor, other.device, name)


def crop(given: CropFlip, like: torch.Tensor, image_size: tuple[int, int]) -> None:
    """Validate the crops of a batch like that of the tensor `like`, on its device."""
    check_structure(given)  # all fields as the first
    top = given.top
    if top.shape[0] != like.shape[0]:
        raise ValueError(f"transform must hold one crop per image, {like.shape[0]}, got {top.shape[0]}")
    _same_device(top, like.device, "transform.top")
    if _readable(top):
        check_boxes(given, *image_size)


def crop_of_rows(rows: torch.Tensor) -> CropFlip:
    """The CropFlip of integers [B, 5], whose last is 0 or 1."""
    crop = CropFlip.from_rows(rows)
    if _readable(rows) and not ((rows[:, 4] == 0) | (rows[:, 4] == 1)).all():
        raise ValueError(f"transform[:, 4], the flips, must be 0 or 1, got {rows[:, 4].tolist()}")
    return crop


def matrix(given, like: torch.Tensor) -> torch.Tensor:
    """Validate matrices for the batch of the tensor `like`, on its device; returns them as [B, 3, 3]."""
    batch = like.shape[0]
    if not isinstance(given, torch.Tensor):
        raise TypeError(
            "transform must be a CropFlip or a matrix [B, 2, 3] or [B, 3, 3], or rows [B, 5] of a CropFlip, "
            f"got {described(given)}"
        )
    _dense(given, "transform")
    if tuple(given.shape) not in ((batch, 2, 3), (batch, 3, 3)):
        raise ValueError(f"transform must be a matrix [{batch}, 2, 3] or [{batch}, 3, 3], got {described(given)}")
    _tensor(given, FEATURE_DTYPES, "transform")
    _same_device(given, like.device, "transform")
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
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _tensor(value, dtypes: Sequence[torch.dtype], name: str, prefix: str = "") -> None:
    """prefix: of the name; the two are put together for a message alone, and so below."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{prefix}{name} must be a torch.Tensor, got {described(value)}")
    _dense(value, name, prefix)
    if value.dtype not in dtypes:
        names = " or ".join(dict.fromkeys(map(str, dtypes)))
        raise TypeError(f"{prefix}{name} must be {names}, got {value.dtype}")


def _dense(tensor: torch.Tensor, name: str, prefix: str = "") -> None:
    if not is_dense(tensor):
        got = "a nested one" if tensor.is_nested else f"layout {tensor.layout}"
        raise TypeError(f"{prefix}{name} must be a dense (strided) tensor, got {got}")


def _same_device(tensor: torch.Tensor, device: torch.device, name: str, prefix: str = "") -> None:
    if tensor.device != device:
        raise RuntimeError(misplaced(prefix + name, tensor, device, "the first view"))


def scalar(name: str, value, inclusive: bool = False) -> float:
    """Validate a finite number > 0, or >= 0 where inclusive."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    try:
        number = float(value)
    except OverflowError:  # of an integer or a fraction
        value = number = math.inf
    if not 0 < number < math.inf and not (inclusive and number == 0):  # so of NaN
        raise ValueError(f"{name} must be finite and {'>=' if inclusive else '>'} 0, got {value!r}")
    return number
