"""The classifier: a residual network small enough to train from scratch in minutes on a CPU."""

from torch import Tensor, nn
from torch.nn.functional import relu

WIDTHS = (24, 48, 96)
TARGET_LAYER = "stages"  # Grad-CAM explains the output of the last stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2016)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Centred(nn.Module):
    """Images in [0, 1] as values about zero."""

    def forward(self, images: Tensor) -> Tensor:
        """The same shape, in [-2, 2]."""
        return (images - 0.5) * 4


class SmallResNet(nn.Module):
    """Stem, three stages of one BasicBlock, average pool, linear: 175 thousand parameters.

    The head is the sequence for which Grad-CAM's gradients have a closed form, so training needs no double backward.

    Example:
        >>> import torch
        >>> SmallResNet()(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        first, second, third = WIDTHS
        self.centred = Centred()
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.stages = nn.Sequential(
            BasicBlock(first, first, 1), BasicBlock(first, second, 2), BasicBlock(second, third, 1)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(third, classes)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, 64, 64] in [0, 1] -> logits [B, classes]; the target layer's map is 8 x 8."""
        features = self.stages(self.stem(self.centred(images)))
        return self.head(self.flatten(self.pool(features)))
