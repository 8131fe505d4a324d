"""Target layers that cannot be explained are refused: maps that no logit reads, layouts that are not [B, C, H, W]."""

import pytest
import torch
from torch import nn

from cgc_kernels import GradCAM, tokens_to_map
from cgc_kernels.grad_cam.layer_checks import check_layout
from tests.grad_cam.cases import CLASSES, Head, tiny, views
from tests.support.models import TinyViT

pytestmark = pytest.mark.usefixtures("single_thread")


def vit_views(count=2):
    return [torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


class TestMapThatNoLogitReads:
    """Of a ViT's last block only the class token is read, and tokens_to_map drops it."""

    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("grad", [True, False])
    @pytest.mark.parametrize("layer", ["blocks.1", "norm", "blocks.1.norm2"])
    def test_is_refused_and_the_layer_named_instead_works(self, layer, grad, mode):
        net = TinyViT().train(mode == "train")
        message = f"target layer '{layer}', got a gradient that is zero everywhere.*'blocks.1.norm1' works"
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=message):
            GradCAM(net, layer, reshape=tokens_to_map(3, 4))(*vit_views())
        assert net.training == (mode == "train")
        assert not any(module._forward_hooks for module in net.norm.modules())
        (out,) = GradCAM(net, "blocks.1.norm1", reshape=tokens_to_map(3, 4))(*vit_views(1))
        assert out.cam.gradients.any()

    def test_is_refused_with_frozen_parameters_and_while_anomalies_are_looked_for(self):
        cam = GradCAM(TinyViT().requires_grad_(False), "blocks.1", reshape=tokens_to_map(3, 4))
        with torch.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match=r"'blocks.1.norm1' works"):
            cam(*vit_views())

    def test_batched(self):
        with pytest.raises(RuntimeError, match=r"'blocks.1.norm1' works"):
            GradCAM(TinyViT(), "blocks.1", reshape=tokens_to_map(3, 4))(*vit_views(), batched=True)

    def test_no_other_layer_has_the_shape(self):
        class Once(TinyViT):
            def forward(self, x):
                return self.fc(self.act(self.patches(x).flatten(2).transpose(1, 2))[:, 0])

        net = Once()
        net.act = nn.Tanh()
        with pytest.raises(RuntimeError, match=r"zero everywhere.*; choose an earlier layer"):
            GradCAM(net, "act", reshape=tokens_to_map(1, 11))(*vit_views())

    @pytest.mark.parametrize("start", ["head", "branches", "dead"])
    def test_a_gradient_that_is_zero_by_chance_is_no_fault(self, start):
        """A head or residual branches that start at zero, a ReLU that is dead for the whole batch."""
        net = TinyViT()
        if start == "head":
            nn.init.zeros_(net.fc.weight)
        elif start == "branches":
            for branch in (net.blocks[1].proj, net.blocks[1].mlp[2]):
                nn.init.zeros_(branch.weight)
        else:
            net.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
            nn.init.constant_(net.fc[0].bias, -1e3)
        cam = GradCAM(net, "blocks.0", reshape=tokens_to_map(3, 4))
        for _ in range(2):
            (out,) = cam(*vit_views(1))
            assert not out.cam.gradients.any()
        assert not cam._map_is_read
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        assert cam(*vit_views(1))[0].cam.gradients.any()

    def test_is_not_looked_for_again(self, monkeypatch):
        cam = GradCAM(TinyViT(), "blocks.0", reshape=tokens_to_map(3, 4))
        cam(*vit_views(1))
        monkeypatch.setattr("cgc_kernels.grad_cam.autograd_path.is_map_read", None)
        cam(*vit_views())


def channels_last_net():
    """A head on [B, H, W, C], as timm's Swin has."""
    return tiny(Head(lambda m, x: m.fc(m.act(m.last(x)).mean((1, 2))), last=ChannelsLast(), act=nn.Tanh()))


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class TestLayout:
    @pytest.mark.parametrize("size", [(8, 8), (8, 12), (16, 8)])
    def test_channels_last_is_refused(self, size):
        x = torch.randn(3, 3, *size, dtype=torch.float64)
        message = r"'head.last' must be \[B, C, H, W\], got \[3, \d, \d, 6\], which .* looks like \[B, H, W, C\]"
        with pytest.raises(ValueError, match=message):
            GradCAM(channels_last_net(), "head.last")(x)

    def test_what_the_closed_form_proves_is_not_doubted(self):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, (2, 4), padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
        )
        x = torch.randn(2, 3, 8, 8)
        assert GradCAM(net, "0")(x)[0].cam.features.shape == (2, 4, 4, 2)
        with pytest.raises(ValueError, match=r"looks like \[B, H, W, C\]"):
            GradCAM(net, "0", closed_form=False)(x)

    def test_channels_last_through_reshape(self):
        net = channels_last_net()
        x = views(1)
        got = GradCAM(net, "head.last", reshape=lambda x: x.permute(0, 3, 1, 2))(*x)[0]
        want = GradCAM(net, "body")(*x)[0]
        torch.testing.assert_close(got.cam.features, want.cam.features)
        torch.testing.assert_close(got.cam.gradients, want.cam.gradients)

    @pytest.mark.parametrize(
        "shape", [(768, 7, 7), (7, 7, 7), (2, 7, 7), (96, 7, 3), (64, 1, 7), (64, 8, 9), (3, 7, 6)]
    )
    @pytest.mark.parametrize("view", [(224, 224), (224, 96), (32, 224), (224, 200)])
    def test_maps_pass(self, shape, view):
        """Also with few channels, and with rounded sides, where one reading fits no better than the other."""
        height, width = shape[1:]
        if abs(height / width - view[0] / view[1]) < 0.2 * height / width:
            check_layout(torch.empty(2, *shape), torch.empty(2, 3, *view), "layer")

    def test_views_that_are_no_images_are_not_compared(self):
        check_layout(torch.empty(2, 7, 7, 768), torch.empty(2, 5), "layer")

    def test_torchvisions_swin(self):
        models = pytest.importorskip("torchvision.models")
        net = models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [2, 2], num_classes=CLASSES)
        with pytest.raises(ValueError, match=r"target layer 'features' must be .* looks like"):
            GradCAM(net, "features")(torch.rand(2, 3, 32, 32))

    def test_timms_swin(self):
        timm = pytest.importorskip("timm")
        net = timm.models.swin_transformer.SwinTransformer(
            img_size=32, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=CLASSES
        )
        with pytest.raises(ValueError, match=r"target layer 'layers.1' must be .* looks like"):
            GradCAM(net, "layers.1")(torch.rand(2, 3, 32, 32))
