"""GradCAM: what cannot be explained is an error that says so."""

import pytest
import torch
from torch import nn

from cgc_kernels.grad_cam import GradCAM
from tests.grad_cam.cases import CHANNELS, Head, tiny, views
from tests.support.models import ResNet18, TinyNet, TinyViT

pytestmark = pytest.mark.usefixtures("single_thread")


class TestErrors:
    @pytest.mark.parametrize(
        ("layer", "error", "message"),
        [
            ("layer5", ValueError, "target_layer must name a module of the model, got 'layer5'; near it: layer4"),
            ("?", ValueError, "got '[?]'; near it: conv1, bn1"),
            (nn.ReLU(), ValueError, "target_layer must be a module of the model, got a ReLU outside it"),
            (4, TypeError, "target_layer must be a module or its dotted name, got int"),
        ],
    )
    def test_target_layer(self, layer, error, message):
        with pytest.raises(error, match=message):
            GradCAM(ResNet18(width=4), layer)

    def test_constructor(self):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
            GradCAM(lambda x: x, "body")
        with pytest.raises(TypeError, match="bare network, got DataParallel"):
            GradCAM(nn.DataParallel(tiny()), "module.body")
        with pytest.raises(TypeError, match="reshape must be callable or None, got tuple"):
            GradCAM(tiny(), "body", reshape=(14, 14))
        with pytest.raises(ValueError, match="closed_form must be"):
            GradCAM(tiny(), "body", closed_form="yes")

    def test_a_map_of_one_cell(self):
        """Its heatmap is one number, which the loss divides by itself."""
        small = torch.rand(2, 3, 32, 32)
        for closed_form in (True, False):
            with pytest.raises(ValueError, match=r"more than one cell, got \[2, 32, 1, 1\].* larger views"):
                GradCAM(ResNet18(width=4).eval(), "layer4", closed_form=closed_form)(small)

    def test_labels_as_a_view(self):
        with pytest.raises(TypeError, match=r"views\[1\] must be a view .*, got int64 \[3\]; labels go to target="):
            GradCAM(tiny(), "body")(*views(1), torch.tensor([0, 1, 2]))

    def test_views_that_make_no_batch(self):
        (view,) = views(1)
        with pytest.raises(ValueError, match="views must be of one shape to be batched, got"):
            GradCAM(tiny(), "body")(view, view[..., 1:], batched=True)

    def test_a_model_without_modules(self):
        with pytest.raises(ValueError, match="got Linear of no modules"):
            GradCAM.auto(nn.Linear(3, 3))
        with pytest.raises(ValueError, match="got ''; it has none inside"):
            GradCAM(nn.Linear(3, 3), "")

    def test_layer_not_reached(self):
        net = tiny()
        net.unused = nn.Conv2d(3, 3, 1)
        with pytest.raises(RuntimeError, match="'unused' must be called once in the model's forward, got 0 calls"):
            GradCAM(net, "unused")(*views())

    def test_layer_called_twice(self):
        with pytest.raises(RuntimeError, match=r"'layer4.1.relu' must be called once .* got 2 calls"):
            GradCAM(ResNet18(width=4), "layer4.1.relu")(torch.randn(2, 3, 32, 32))

    @pytest.mark.parametrize("frozen", [True, False])
    @pytest.mark.parametrize("head", ["detached", "unrelated"])
    def test_logits_that_do_not_depend_on_the_layer(self, head, frozen):
        class Unrelated(TinyNet):
            def forward(self, x):
                features = self.body(x)
                return self.fc(features.detach().mean((2, 3)) if head == "detached" else x.new_ones(len(x), CHANNELS))

        with pytest.raises(RuntimeError, match="logits must depend on the output of target layer 'body'"):
            GradCAM(Unrelated().double().requires_grad_(not frozen), "body")(*views())

    def test_features_that_are_no_map(self):
        with pytest.raises(ValueError, match=r"'blocks.0' must be \[B, C, H, W\], got \[2, 13, 8\]; give reshape="):
            GradCAM(TinyViT(), "blocks.0")(torch.randn(2, 3, 12, 16))

    def test_output_that_is_no_tensor(self):
        net = TinyNet(Head(lambda m, x: m.fc(m.pair(x)[0].mean((2, 3))), pair=Head(lambda m, x: (x, x))))
        with pytest.raises(TypeError, match="output of the target layer must be a tensor, got tuple"):
            GradCAM(net, "head.pair")(torch.randn(2, 3, 8, 8))

    @pytest.mark.parametrize("head", [lambda x: x.mean((2, 3))[:, 0], lambda x: x, lambda x: x.mean((2, 3))[:1]])
    def test_logits_of_the_wrong_shape(self, head):
        with pytest.raises(ValueError, match=r"the model must return logits \[3, K\], got \["):
            GradCAM(tiny(head), "body")(*views())

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            ([0, 1, 2], TypeError, r"target must be a tensor \[B\] of int64, or \[B, K\] of weights, got list"),
            (torch.tensor([0, 1, 2], dtype=torch.int32), TypeError, "target must be int64, .*, got torch.int32"),
            (torch.ones(3), ValueError, r"target must have shape \[3, K\], got \[3\]"),
            (torch.ones(3, 4), ValueError, r"target must be a weight for each logit, \[3, 5\], got \[3, 4\]"),
            (torch.tensor([0, 1]), ValueError, r"target must have shape \[3\], got \[2\]"),
            (torch.tensor([[0], [1], [2]]), ValueError, r"target must have shape \[3\], got \[3, 1\]"),
            (torch.tensor([0, 5, 2]), ValueError, r"target must be in \[0, 5\), got 5 at index 1"),
            (torch.tensor([0, 1, -1]), ValueError, r"target must be in \[0, 5\), got -1 at index 2"),
            (torch.zeros(3, dtype=torch.int64, device="meta"), RuntimeError, "target must be on cpu like the logits"),
        ],
    )
    @pytest.mark.parametrize("closed_form", [True, False])
    def test_target(self, target, error, message, closed_form):
        with pytest.raises(error, match=message):
            GradCAM(tiny(), "body", closed_form=closed_form)(*views(), target=target)

    def test_views(self):
        cam = GradCAM(tiny(), "body")
        first, second = views()
        with pytest.raises(ValueError, match="views must hold at least one view, got none"):
            cam(extra=(first,))
        with pytest.raises(ValueError, match=r"views\[1\] must have a batch of 3 like views\[0\], got 2"):
            cam(first, second[:2])
        with pytest.raises(TypeError, match=r"views\[1\] must be a tensor \[B, ...\], got list"):
            cam(first, [second])
        with pytest.raises(TypeError, match="extra must be a sequence of views, got Tensor"):
            cam(first, extra=second)
        with pytest.raises(TypeError, match=r"extra\[0\] must be a tensor"):
            cam(first, extra=(None,))
        with pytest.raises(ValueError, match=r"views\[0\] must have shape"):
            cam(torch.tensor(1.0))

    def test_data_parallel_replica(self):
        with pytest.raises(RuntimeError, match=r"must not run under nn\.DataParallel"):
            GradCAM(tiny(), "body")._replicate_for_data_parallel()(*views())
