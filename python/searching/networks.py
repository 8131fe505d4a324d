"""EfficientNet-Lite0 in two parts: what stays as it is, and what is trained."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from driver import models
from torch import Tensor, nn

from . import sizes


def network(seed: int, classes: int = 8) -> tuple[nn.Module, nn.Module]:
    """EfficientNet-Lite0's stages that stay as they are, and :class:`Head`; BatchNorm keeps its statistics."""
    torch.manual_seed(seed)
    wanted = SimpleNamespace(model=models.LITE, pretrained=True, init="", target_layer="", image_size=sizes.SIZE)
    model = models.create(wanted, classes).model.eval().to(memory_format=torch.channels_last)
    return nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:-1]), Head(model)


class Head(nn.Module):
    """The last stage, the last convolution and the classifier: frozen features -> logits, class maps, features."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.features = nn.Sequential(model.blocks[-1], model.conv_head, model.bn2)
        self.classifier = model.classifier
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, frozen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, C, H, W] -> [N, K], [N, K, H, W] (Grad-CAM before the ReLU; their sum is the logit), [N, D, H, W]."""
        features = self.features(channels_last(frozen))
        maps = F.conv2d(features, self.classifier.weight[:, :, None, None]) / features[0, 0].numel()
        return maps.sum((2, 3)) + self.classifier.bias, maps, features


def channels_last(images: Tensor) -> Tensor:
    """Images [N, C, H, W] in that memory format."""
    return images.contiguous(memory_format=torch.channels_last)
