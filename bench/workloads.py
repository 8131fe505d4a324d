"""What is measured: a stage, on inputs of one kind and shape."""

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from cgc_kernels import CropFlip

BACKENDS = ("torch", "cpp")
WEIGHTINGS = ("elementwise", "pooled", "gradcam")
LAYOUTS = ("contiguous", "channels_last")
STAGES = ("cgc", "cam", "resample", "contrast")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Workload:
    """One stage on inputs of one kind. weighting: "gradcam", "elementwise" or "pooled" (gradients [B, C])."""

    stage: str
    weighting: str = "elementwise"
    layout: str = "contiguous"
    dtype: str = "float32"
    shape: tuple[int, int, int, int] = (64, 2048, 7, 7)
    image_size: int = 224
    backward: bool = True

    def __str__(self) -> str:
        passes = "forward+backward" if self.backward else "forward"
        batch, channels, height, width = self.shape
        size = f"B{batch}-C{channels}-{height}x{width}-S{self.image_size}"
        if self.stage in ("resample", "contrast"):
            return f"{self.stage}-{size}-{passes}"
        return f"{self.stage}-{self.weighting}-{self.layout}-{self.dtype}-{size}-{passes}"

    @property
    def feature_bytes(self) -> int:
        """Bytes of one feature tensor."""
        return torch.Size(self.shape).numel() * _DTYPES[self.dtype].itemsize


def grid(workload: Workload, **choices: tuple) -> list[Workload]:
    """`workload` with every combination of the given values of its fields."""
    return [replace(workload, **dict(zip(choices, values, strict=True))) for values in product(*choices.values())]


def with_backends(workloads: list[Workload]) -> list[tuple[Workload, str]]:
    """(workload, backend) for every backend, those of a workload together; a workload given twice counts once."""
    return [(workload, backend) for workload in dict.fromkeys(workloads) for backend in BACKENDS]


def view(workload: Workload, seed: int) -> tuple[Tensor, Tensor]:
    """Features as after a ReLU, and gradients of a logit: small, of both signs. Leaves that require grad."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels = workload.shape[:2]
    pooled = workload.weighting == "pooled"
    features = torch.randn(workload.shape, generator=generator).relu_()
    gradients = torch.randn((batch, channels) if pooled else workload.shape, generator=generator) * 1e-3 + 1e-4
    return tuple(_leaf(tensor, workload) for tensor in (features, gradients))


def _leaf(tensor, workload):
    tensor = tensor.to(_DTYPES[workload.dtype])
    if workload.layout == "channels_last" and tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.requires_grad_()


def random_crop(batch: int, size: int) -> CropFlip:
    """Crops of 20 to 100 percent of the view's area, half of them flipped."""
    generator = torch.Generator().manual_seed(2)
    share = torch.empty(2, batch).uniform_(0.2, 1, generator=generator).sqrt()
    height, width = (share * size).round().long().clamp(1, size)
    top, left = (torch.rand(2, batch, generator=generator) * (size + 1 - torch.stack((height, width)))).long()
    return CropFlip(top, left, height, width, torch.rand(batch, generator=generator) < 0.5)


def heatmaps(workload: Workload) -> list[Tensor]:
    """Heatmaps of both views, [B, H, W] each."""
    batch, _, height, width = workload.shape
    maps = torch.rand(2, batch, height, width, generator=torch.Generator().manual_seed(4))
    return [m.clone().requires_grad_() for m in maps]
