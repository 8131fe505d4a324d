"""On which device tensors must be."""

import torch


def misplaced(name: str, tensor: torch.Tensor, device: torch.device, like: str) -> str:
    """What to say of a tensor that is not on `device`, where the one called `like` is."""
    return f"{name} must be on {device} like {like}, got {tensor.device}"
