"""Networks for the tests: a standard ResNet-18 (torchvision's layer names and order), a tiny conv net, a tiny ViT."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016); in-place ReLU and ``+=`` as in common implementations."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


class ResNet18(nn.Module):
    """[B, 3, S, S] -> logits [B, classes]; ``width`` channels in layer1 (64 in the paper), 8 * width in layer4."""

    def __init__(self, classes: int = 10, width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class TinyNet(nn.Module):
    """[B, 3, h, w] -> ``head`` (any callable; pool and ``fc`` if None) of the [B, 6, h/2, w/2] output of ``body``."""

    def __init__(self, head: Callable[[Tensor], Tensor] | None = None, channels: int = 6, classes: int = 5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, channels, 3, 2, padding=1), nn.BatchNorm2d(channels), nn.Tanh())
        self.head = head
        if head is None:
            self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.head is not None:
            return self.head(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class TinyViT(nn.Module):
    """[B, 3, 4*h, 4*w] -> logits [B, classes]: patch embedding, class token, pre-norm blocks, head on the token."""

    def __init__(self, height: int = 3, width: int = 4, channels: int = 8, classes: int = 5, depth: int = 2):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.position = nn.Parameter(torch.randn(1, 1 + height * width, channels))
        self.blocks = nn.ModuleList(ViTBlock(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x)[:, 0])


class ViTBlock(nn.Module):
    """Attention (two heads) and MLP on tokens [B, T, C], each after a LayerNorm."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        # Written out: the fused attention kernels of PyTorch have no double backward.
        attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))
