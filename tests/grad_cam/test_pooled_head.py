"""The closed form with reshape, and models whose output has the logits in it."""

from collections import namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch import nn

from cgc_kernels import GradCAM, tokens_to_map
from tests.grad_cam.cases import CHANNELS, CLASSES, Head, assert_close, cam_loss, parameter_gradients, tiny, views
from tests.support.models import TinyNet

pytestmark = pytest.mark.usefixtures("single_thread")


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


def permute(x):
    return x.permute(0, 3, 1, 2)


def copied(x):
    return permute(x).contiguous()


class TestClosedFormOfOtherLayouts:
    """The pool is a mean over the middle dimensions, and reshape makes a map of the layer's output."""

    CASES = MappingProxyType(
        {
            "channels last": (ChannelsLast, lambda x: x.mean((1, 2)), permute),
            "channels last, negative": (ChannelsLast, lambda x: x.mean(dim=[-2, -3]), permute),
            "channels last, copied": (ChannelsLast, lambda x: x.mean((1, 2)), copied),
            "tokens": (Tokens, lambda x: x.mean(1), tokens_to_map(4, 3, prefix=0)),
            "tokens, negative": (Tokens, lambda x: x.mean(dim=-2), tokens_to_map(4, 3, prefix=0)),
            "maps": (nn.Identity, lambda x: x.mean((2, 3)), torch.clone),
        }
    )

    @staticmethod
    def net(layout, pool):
        return tiny(Head(lambda m, x: m.fc(pool(m.last(x))), last=layout()))

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("batched", [False, True])
    def test_equals_autograd(self, case, batched):
        layout, pool, reshape = self.CASES[case]
        net, inputs = self.net(layout, pool), [torch.randn(2, 3, 8, 6, dtype=torch.float64) for _ in range(3)]
        closed, by_autograd = (
            GradCAM(net, "head.last", reshape=reshape, closed_form=chosen) for chosen in (True, False)
        )
        extra = inputs[2:]
        got, want = (cam(*inputs[:2], extra=extra, batched=batched) for cam in (closed, by_autograd))
        for one, other in zip(got[:2], want, strict=False):
            gradients = one.cam.gradients
            assert gradients.shape == ((2, CHANNELS) if reshape not in (copied, torch.clone) else (2, CHANNELS, 4, 3))
            full = gradients if gradients.ndim == 4 else gradients[:, :, None, None].expand(-1, -1, 4, 3)
            assert_close(full, other.cam.gradients)
            assert_close(one.cam.features, other.cam.features)
        got, want = (parameter_gradients(net, cam_loss(outputs[:2])) for outputs in (got, want))
        for name, gradient in want.items():
            assert_close(got[name], gradient)

    def test_other_dimensions_are_refused(self):
        """A mean over the channels of [B, C, H, W] is read as one over tokens."""
        net = tiny(Head(lambda m, x: m.wide(x.mean(1).flatten(1)), wide=nn.Linear(12, CLASSES)))
        with pytest.raises(
            ValueError, match=r"must have 3 dimensions, of which \(1,\) are averaged, got .*closed_form="
        ):
            GradCAM(net, "body", reshape=torch.clone)(torch.randn(2, 3, 8, 6, dtype=torch.float64))

    def test_in_one_compiled_graph(self):
        net = self.net(Tokens, lambda x: x.mean(1))
        cam, x = GradCAM(net, "head.last", reshape=tokens_to_map(4, 3, prefix=0)), torch.randn(2, 3, 8, 6).double()
        (got,), (want,) = torch.compile(cam, backend="eager", fullgraph=True)(x), cam(x)
        assert want.cam.gradients.ndim == 2
        assert_close(got.cam.gradients, want.cam.gradients)

    def test_without_reshape_there_is_none(self):
        net = self.net(ChannelsLast, lambda x: x.mean((1, 2)))
        assert "mean is over dimensions (1, 2), and no reshape= makes" in GradCAM(net, "head.last").gradient_path


Answer = namedtuple("Answer", ["loss", "logits"])


@dataclass
class Output:
    logits: torch.Tensor
    hidden: object = None


class ReturnsDict(TinyNet):
    def forward(self, x):
        return {"logits": super().forward(x), "loss": None}


class ReturnsNamedTuple(TinyNet):
    def forward(self, x):
        return Answer(None, super().forward(x))


class ReturnsDataclass(TinyNet):
    def forward(self, x):
        return Output(super().forward(x))


class ReturnsNamespace(TinyNet):
    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x))


@dataclass
class Doubled:
    logits: torch.Tensor

    def __post_init__(self):
        self.logits = 2 * self.logits


class TwiceLogits(dict):
    def __getitem__(self, name):
        return 2 * super().__getitem__(name)

    def get(self, name, default=None):
        return self[name]


class ReturnsDoubled(TinyNet):
    def forward(self, x):
        return Doubled(super().forward(x))


class ReturnsTwice(TinyNet):
    def forward(self, x):
        return TwiceLogits(logits=super().forward(x))


class ReturnsChanged(TinyNet):
    def forward(self, x):
        output = {"logits": super().forward(x)}
        output["logits"] = 2 * output["logits"]
        return output


class TestLogitsInAnOutput:
    """As Hugging Face's models return them, and torchvision's GoogLeNet in training."""

    @pytest.mark.parametrize("kind", [ReturnsDict, ReturnsNamedTuple, ReturnsDataclass, ReturnsNamespace])
    @pytest.mark.parametrize("closed_form", [True, False])
    @pytest.mark.parametrize("batched", [False, True])
    def test_are_found(self, kind, closed_form, batched):
        net = kind().double()
        bare = tiny()
        bare.load_state_dict(net.state_dict())
        first, second, extra = views(3)
        got = GradCAM(net, "body", closed_form=closed_form)(first, second, extra=(extra,), batched=batched)
        want = GradCAM(bare, "body", closed_form=closed_form)(first, second, extra=(extra,), batched=batched)
        for one, other in zip(got, want, strict=True):
            assert_close(one.logits, other.logits)
        assert_close(got[1].cam.gradients, want[1].cam.gradients)

    @pytest.mark.parametrize("kind", [ReturnsDoubled, ReturnsTwice, ReturnsChanged])
    def test_outputs_that_change_them_go_by_autograd(self, kind):
        net = kind().double()
        cam = GradCAM(net, "body")
        assert not cam.closed_form
        (out,) = cam(*views(1))
        rows = 2 * net.fc.weight[out.logits.argmax(1), :, None, None] / out.cam.features[0, 0].numel()
        assert_close(out.cam.gradients, rows.expand_as(out.cam.features))

    def test_other_outputs_are_refused(self):
        class Other(TinyNet):
            def forward(self, x):
                return {"out": super().forward(x)}

        with pytest.raises(TypeError, match=r"must return logits \[B, K\], got dict without logits in it"):
            GradCAM(Other().double(), "body")(*views())

    def test_hugging_face(self):
        transformers = pytest.importorskip("transformers", reason="for the recipes alone")
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)
        net = transformers.ResNetForImageClassification(config).eval()
        cam = GradCAM(net, "resnet.encoder.stages.1")
        assert "the source of the forward of the model cannot be read" in cam.gradient_path  # it is decorated
        x = torch.rand(2, 3, 64, 64)
        (out,) = cam(x)
        assert torch.equal(out.logits, net(x).logits)
        rows = net.classifier[-1].weight[out.logits.argmax(1), :, None, None] / 64
        torch.testing.assert_close(out.cam.gradients, rows.expand(-1, -1, 8, 8))
