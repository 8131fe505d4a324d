"""GradCAM: right gradients on both paths, and the closed form exactly where it holds."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from cgc_kernels.grad_cam import CAM, GradCAM, GradCAMOutput, tokens_to_map
from tests.grad_cam.cases import (
    CHANNELS,
    NEAR_MISSES,
    POOLED_HEADS,
    Head,
    assert_close,
    both_paths,
    cam_loss,
    linear,
    parameter_gradients,
    tiny,
    views,
)
from tests.support.models import ResNet18, TinyNet, TinyViT

pytestmark = pytest.mark.usefixtures("single_thread")


class TestWeightsOfTheLogits:
    """A target [B, K] explains a weighted sum of the logits."""

    @pytest.mark.parametrize("batched", [False, True])
    def test_a_class_less_the_mean_of_all(self, batched):
        inputs, labels = views(), torch.tensor([0, 3, 1])
        weights = F.one_hot(labels, 5).double() - 1 / 5
        for cam in both_paths():
            of_class = [maps_of(cam, inputs, torch.full((3,), k), batched) for k in range(5)]
            expected = torch.stack([of_class[k][:, i] for i, k in enumerate(labels)], 1)
            expected = expected - torch.stack(of_class).mean(0)
            assert_close(maps_of(cam, inputs, weights, batched), expected)

    def test_one_hot_weights_are_the_class(self):
        inputs, labels = views(), torch.tensor([0, 3, 1])
        for cam in both_paths():
            assert_close(maps_of(cam, inputs, F.one_hot(labels, 5).float()), maps_of(cam, inputs, labels))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_weights_are_not_rounded_to_the_precision_of_autocast(self, dtype):
        net, (view,) = TinyNet(), views(1)
        cam, view = GradCAM(net, "body", closed_form=True), view.float()
        weights = torch.tensor([[0.999, -0.001, 0.1, 0.3, 0.7]] * 3, dtype=dtype)
        (exact,) = cam(view, target=weights)
        with torch.autocast("cpu", torch.bfloat16):
            (output,) = cam(view, target=weights)
        torch.testing.assert_close(output.cam.gradients, exact.cam.gradients, rtol=0, atol=0)


def maps_of(cam, inputs, target, batched=False):
    """Signed maps of all views, [V, B, H, W]."""
    outputs = cam(*inputs, target=target, batched=batched)
    pooled = [out.cam.gradients.reshape(*out.cam.features.shape[:2], -1).mean(2) for out in outputs]
    return torch.stack(
        [(w[:, :, None, None] * out.cam.features).sum(1) for w, out in zip(pooled, outputs, strict=True)]
    )


class TestClosedForm:
    def test_resnet18_equals_autograd(self):
        net = ResNet18(width=4).double()
        closed, by_autograd = both_paths(net, "layer4")
        inputs = views(size=64)
        results = []
        for cam in (closed, by_autograd):
            outputs = cam(*inputs)
            results.append((outputs, parameter_gradients(net, cam_loss(outputs))))
        (outputs, grads), (expected, expected_grads) = results
        for got, want in zip(outputs, expected, strict=True):
            assert got.cam.gradients.shape == (3, 32)
            assert want.cam.gradients.shape == got.cam.features.shape == (3, 32, 2, 2)
            assert_close(got.logits, want.logits)
            assert_close(got.cam.features, want.cam.features)
            spread = got.cam.gradients[:, :, None, None].expand_as(want.cam.gradients)
            assert_close(spread, want.cam.gradients)
        for name, grad in expected_grads.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-12, atol=1e-12, msg=name)

    @pytest.mark.parametrize("name", POOLED_HEADS)
    def test_pooled_heads(self, name):
        net = tiny(POOLED_HEADS[name]())
        cam = GradCAM(net, "body")
        assert cam.closed_form, cam.gradient_path
        assert cam.gradient_path.startswith("closed form: ")
        _, by_autograd = both_paths(net)
        inputs = views()
        for got, want in zip(cam(*inputs), by_autograd(*inputs), strict=True):
            assert_close(got.cam.gradients, want.cam.gradients.mean((2, 3)))
            assert want.cam.gradients.std((2, 3)).max() < 1e-15

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("name", NEAR_MISSES)
    def test_near_misses_take_autograd(self, name, training):
        net = tiny(NEAR_MISSES[name]())
        net.train(training)
        cam = GradCAM(net, "body")
        assert not cam.closed_form, cam.gradient_path
        assert cam.gradient_path.startswith("autograd: ")
        assert cam(*views())[1].cam.gradients.shape == (3, CHANNELS, 4, 4)
        with pytest.raises(RuntimeError, match="closed_form must not be True for this model: "):
            GradCAM(net, "body", closed_form=True)

    @pytest.mark.parametrize("name", ["scaled logits", "max pool", "patched forward", "forward hook on fc"])
    def test_autograd_path_against_the_two_halves_by_hand(self, name):
        net = tiny(NEAR_MISSES[name]())
        net.eval()
        (view,) = views(1)
        features = net.body(view)
        logits = net.head(features)
        rows = torch.arange(3)
        (want,) = torch.autograd.grad(logits[rows, logits.argmax(1)].sum(), features)
        (out,) = GradCAM(net, "body")(view)
        assert_close(out.cam.gradients, want)
        assert_close(out.cam.features, features)

    def test_optional_arguments_keep_their_defaults(self):
        class Masked(TinyNet):
            def forward(self, x, mask=None, scale=1.0):
                logits = super().forward(x)
                if mask is not None:
                    logits = logits + mask
                return logits if scale == 1.0 else scale * logits

        assert GradCAM(Masked(), "body").closed_form

    def test_model_that_returns_more_than_logits(self):
        class Pair(TinyNet):
            def forward(self, x):
                return (super().forward(x),)

        cam = GradCAM(Pair().double(), "body")
        assert not cam.closed_form
        with pytest.raises(TypeError, match=r"must return logits \[B, K\], got tuple"):
            cam(*views())

    def test_target_called_twice_in_the_model_is_not_closed(self):
        class Twice(TinyNet):
            def forward(self, x):
                return self.fc(self.act(self.act(self.body(x))).mean((2, 3)))

        net = Twice().double()
        net.act = nn.Tanh()
        assert not GradCAM(net, "act").closed_form

    def test_autograd_on_request(self):
        assert "closed_form=False" in GradCAM(tiny(), "body", closed_form=False).gradient_path

    def test_path_is_told(self):
        net = ResNet18(width=4)
        path = GradCAM(net, "layer4").gradient_path
        assert path == "closed form: avgpool -> flatten -> fc; gradients = fc.weight[target] / (H * W)"
        assert "layer4" in repr(GradCAM(net, "layer4"))
        path = GradCAM(net, "layer3").gradient_path
        assert path == "autograd: layer4.0.downsample.0 is not a step of average pool, flatten, linear"
        path = GradCAM(net, "layer4.1.bn1").gradient_path
        assert path == "autograd: layer4.1.relu is not a step of average pool, flatten, linear"

    def test_hook_that_comes_later_is_noticed(self):
        net = tiny(POOLED_HEADS["modules"]())
        cam, strict = GradCAM(net, "body"), GradCAM(net, "body", closed_form=True)
        (view,) = views(1)
        handle = net.head[2].register_forward_hook(lambda module, args, output: 3 * output)
        assert not cam.closed_form
        assert cam.gradient_path == "autograd: head.2 was changed or got a hook"
        target = torch.tensor([0, 1, 2])
        (out,) = cam(view, target=target)
        want = (3 * net.head[2].weight[target] / 16)[:, :, None, None].expand(3, CHANNELS, 4, 4)
        assert_close(out.cam.gradients, want)
        with pytest.raises(RuntimeError, match=r"closed_form must not be True for this model: head.2"):
            strict(view)
        handle.remove()
        assert cam.closed_form
        net.head[2] = nn.Sequential(nn.Dropout(), linear()).double()
        assert not cam.closed_form

    def test_later_hook_on_the_target_is_noticed(self):
        net = tiny()
        cam = GradCAM(net, "body")
        net.body.register_forward_hook(lambda module, args, output: 3 * output)
        assert cam.gradient_path == "autograd: body got another forward hook"
        (out,) = cam(*views(1), target=torch.tensor([0, 1, 2]))
        assert_close(out.cam.gradients.mean((2, 3)), 3 * net.fc.weight[:3] / 16)

    def test_two_on_one_layer_do_not_disturb_each_other(self):
        net = tiny()
        first, second = GradCAM(net, "body"), GradCAM(net, "body")
        assert first.closed_form
        assert second.closed_form
        (view,) = views(1)
        assert_close(first(view)[0].cam.gradients, second(view)[0].cam.gradients)


class TestForward:
    @pytest.mark.parametrize("closed_form", [True, False])
    def test_class_is_the_first_views_argmax(self, closed_form):
        net = tiny()
        cam = GradCAM(net, "body", closed_form=closed_form)
        first, second, third = views(3, batch=16)
        outputs = cam(first, second, third)
        classes = [out.logits.argmax(1) for out in outputs]
        assert not torch.equal(classes[0], classes[1])
        want = net.fc.weight[classes[0]] / 16
        for out in outputs:
            gradients = out.cam.gradients if closed_form else out.cam.gradients.mean((2, 3))
            assert_close(gradients, want)

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_target_is_used_for_every_view(self, closed_form):
        net = tiny()
        target = torch.tensor([4, 0, 3])
        for out in GradCAM(net, "body", closed_form=closed_form)(*views(), target=target):
            gradients = out.cam.gradients if closed_form else out.cam.gradients.mean((2, 3))
            assert_close(gradients, net.fc.weight[target] / 16)

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_views_in_order_then_extra_views_without_cam(self, closed_form):
        net = tiny().eval()
        cam = GradCAM(net, "body", closed_form=closed_form)
        seen = []
        net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        first, second, unlabeled = *views(), *views(1, batch=7)
        outputs = cam(first, second, extra=(unlabeled, first))
        assert all(a is b for a, b in zip(seen, (first, second, unlabeled, first), strict=True))
        assert all(isinstance(out, GradCAMOutput) for out in outputs)
        assert [out.cam is None for out in outputs] == [False, False, True, True]
        assert isinstance(outputs[1].cam, CAM)
        for out, view in zip(outputs, (first, second, unlabeled, first), strict=True):
            assert_close(out.logits, net(view))
        assert all(out.logits.requires_grad for out in outputs)

    @pytest.mark.parametrize("by_label", [False, True])
    @pytest.mark.parametrize("path", [0, 1])
    def test_views_in_one_batch_give_what_they_give_apart(self, path, by_label):
        """In eval mode; every class is that of the first view, or the target."""
        net = tiny().eval()
        cam, (*pair, extra) = both_paths(net)[path], views(3)
        target = torch.tensor([4, 0, 2]) if by_label else None
        apart = cam(*pair, target=target, extra=[extra, extra[:1]])
        expected = parameter_gradients(net, cam_loss(apart[:2]))
        together = cam(*pair, target=target, extra=[extra, extra[:1]], batched=True)
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one.logits, other.logits)
        for one, other in zip(together[:2], apart[:2], strict=True):
            torch.testing.assert_close(one.cam, other.cam)
        assert [output.cam for output in together[2:]] == [None, None]
        torch.testing.assert_close(parameter_gradients(net, cam_loss(together[:2])), expected)

    def test_one_batch_mixes_the_statistics_of_batch_norm(self):
        net = tiny()
        GradCAM(net, "body")(*views(2), extra=views(1), batched=True)
        assert net.body[1].num_batches_tracked == 1

    def test_extra_views_are_not_captured(self):
        net = tiny()
        cam = GradCAM(net, "body")
        seen = []
        net.body.register_forward_pre_hook(lambda module, args: seen.append(cam._capture.kept.armed))
        cam(*views(), extra=views(1))
        assert seen == [True, True, False]

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_statistics_move_once_per_view(self, closed_form):
        net = tiny()
        plain = copy.deepcopy(net)
        inputs = views()
        GradCAM(net, "body", closed_form=closed_form)(*inputs, extra=inputs[:1])
        for view in (*inputs, inputs[0]):
            plain(view)
        assert net.body[1].num_batches_tracked == 3
        assert_close(net.body[1].running_mean, plain.body[1].running_mean)

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_no_trace_is_left(self, closed_form):
        net = tiny().eval()
        cam = GradCAM(net, "body", closed_form=closed_form)
        outputs = cam(*views())
        assert all(parameter.grad is None for parameter in net.parameters())
        assert not net.training
        features = weakref.ref(outputs[0].cam.features)
        del outputs
        gc.collect()
        assert features() is None

    def test_model_alone_is_not_captured(self):
        net = tiny()
        cam = GradCAM(net, "body")
        (view,) = views(1)
        kept = []
        net.body.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
        net(view)
        assert kept[0]() is None
        assert cam._capture.kept.output is None

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_after_a_failing_forward_nothing_is_held_and_grad_mode_is_back(self, closed_form):
        fail = [True]

        class Failing(TinyNet):
            def forward(self, x):
                x = self.body(x)
                if fail[0]:
                    raise KeyError("inside the model")
                return self.fc(x.mean((2, 3)))

        net = Failing().double()
        cam = GradCAM(net, "body", closed_form=closed_form)
        with torch.no_grad():
            with pytest.raises(KeyError, match="inside the model"):
                cam(*views())
            assert not torch.is_grad_enabled()
        assert not cam._capture.kept.armed
        assert cam._capture.kept.output is None
        fail[0] = False
        cam(*views())

    def test_layer_given_as_module(self):
        net = ResNet18(width=4)
        assert GradCAM(net, net.layer4[1]).target_layer == "layer4.1"
        assert GradCAM(net, net.layer4[1]).closed_form

    def test_checkpointed_blocks(self):
        class Checkpointed(TinyNet):
            def forward(self, x):
                x = checkpoint(self.body, x, use_reentrant=False)
                return self.fc(x.mean((2, 3))).tanh()

        net, inputs = Checkpointed().double(), views()
        plain = tiny(Head(lambda m, x: m.fc(x.mean((2, 3))).tanh()))
        plain.load_state_dict(net.state_dict(), strict=False)
        plain.head.fc.load_state_dict(net.fc.state_dict())
        cam, plain_cam = GradCAM(net, "body"), GradCAM(plain, "body")
        assert not cam.closed_form
        cam_loss(cam(*inputs)).backward()
        cam_loss(plain_cam(*inputs)).backward()
        assert_close(net.body[0].weight.grad, plain.body[0].weight.grad)
        assert not cam._capture.kept.armed


class TestTokens:
    def test_vit(self):
        net = TinyViT(3, 4).double().eval()
        cam = GradCAM(net, net.blocks[1].norm1, reshape=tokens_to_map(3, 4))
        assert not cam.closed_form
        inputs = [torch.randn(2, 3, 12, 16, dtype=torch.float64) for _ in range(2)]
        tokens = []
        handle = net.blocks[1].norm1.register_forward_hook(lambda module, args, output: tokens.append(output))
        logits = net(inputs[1])
        handle.remove()
        outputs = cam(*inputs, target=torch.tensor([2, 4]))
        (want,) = torch.autograd.grad(logits[0, 2] + logits[1, 4], tokens[0])
        for got, flat in ((outputs[1].cam.features, tokens[0]), (outputs[1].cam.gradients, want)):
            assert got.shape == (2, 8, 3, 4)
            for row in range(3):
                for column in range(4):
                    assert_close(got[:, :, row, column], flat[:, 1 + 4 * row + column])
        cam_loss(outputs).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    def test_prefix_and_shape(self):
        tokens = torch.arange(2 * 9 * 5).reshape(2, 9, 5)
        assert torch.equal(tokens_to_map(3, 2, prefix=3)(tokens)[1, :, 2, 1], tokens[1, 8])
        assert torch.equal(tokens_to_map(3, 3, prefix=0)(tokens)[0, :, 0, 0], tokens[0, 0])
        for wrong in (tokens, tokens[0]):
            with pytest.raises(ValueError, match=r"tokens must have shape \[B, 1 \+ 3 \* 3, C\], got \["):
                tokens_to_map(3, 3)(wrong)

    def test_copies(self):
        cam = GradCAM(TinyViT(), "blocks.0", reshape=tokens_to_map(3, 4))
        view = torch.randn(2, 3, 12, 16)
        twin = pickle.loads(pickle.dumps(cam))
        assert_close(twin(view)[0].cam.gradients, cam(view)[0].cam.gradients)
