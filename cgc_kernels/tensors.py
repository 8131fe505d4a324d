"""What checks say and ask of a value that should be a tensor."""

import torch


def is_dense(value) -> bool:
    """Whether it is a tensor with a shape and strides: not nested, sparse or of another layout."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested


def described(value) -> str:
    """A value in a message: dtype and shape of a tensor."""
    if isinstance(value, torch.Tensor):
        if not is_dense(value):
            return "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str, bool)) else type(value).__name__


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """A context without autocast on the tensor's device."""
    kind = tensor.device.type
    return torch.autocast("cpu" if kind == "meta" else kind, enabled=False)  # of meta tensors there is none


def misplaced(name: str, tensor: torch.Tensor, device: torch.device, like: str) -> str:
    """What to say of a tensor that is not on `device`, where the one called `like` is."""
    return f"{name} must be on {device} like {like}, got {tensor.device}"
