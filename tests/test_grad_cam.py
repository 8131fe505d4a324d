"""GradCAM: right gradients on both paths, the closed form exactly where it holds, and no trace left on the model."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from models import ResNet18, TinyNet, TinyViT
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from cgc_kernels.grad_cam import CAM, GradCAM, GradCAMOutput, tokens_to_map

CHANNELS, CLASSES = 6, 5


@pytest.fixture(autouse=True)
def seed_and_threads():
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def views(count=2, batch=3, size=8):
    return [torch.randn(batch, 3, size, size, dtype=torch.float64) for _ in range(count)]


def tiny(head=None):
    return TinyNet(head).double()


def both_paths(net=None, layer="body"):
    net = net or tiny()
    closed, by_autograd = GradCAM(net, layer, closed_form=True), GradCAM(net, layer, closed_form=False)
    assert closed.closed_form
    assert not by_autograd.closed_form
    return closed, by_autograd


def cam_loss(outputs):
    """A scalar that depends on every part of every CAM and is nonlinear in the gradients."""
    total = 0.0
    for output in outputs:
        features, gradients = output.cam
        pooled = gradients.mean((2, 3)) if gradients.ndim == 4 else gradients
        total = total + F.relu((pooled[:, :, None, None] * features).sum(1)).square().sum()
        total = total + F.cross_entropy(output.logits, output.logits.argmax(1))
    return total


def parameter_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(got, want, atol=1e-12):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=atol)


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def linear():
    return nn.Linear(CHANNELS, CLASSES)


class Head(nn.Module):
    """A head from a function of (features, fc)."""

    def __init__(self, function, **modules):
        super().__init__()
        self.fc = linear()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


POOLED_HEADS = {
    "modules": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear()),
    "pair": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1), linear()),
    "identity": lambda: nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Flatten(), linear()),
    "dropout0": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), linear()),
    "no bias": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES, bias=False)),
    "functions": lambda: Head(lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))),
    "keywords": lambda: Head(
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(input=x, output_size=1), start_dim=1))
    ),
    "flatten method": lambda: Head(lambda m, x: m.fc(F.adaptive_avg_pool2d(x, [1, 1]).flatten(1))),
    "mean": lambda: Head(lambda m, x: m.fc(x.mean((2, 3)))),
    "mean negative": lambda: Head(lambda m, x: m.fc(x.mean(dim=[-1, -2]))),
    "mean keepdim": lambda: Head(lambda m, x: m.fc(torch.mean(x, (-2, -1), keepdim=True).flatten(1, -1))),
}


class NoBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


def hooked_linear():
    fc = linear()
    fc.register_forward_hook(lambda module, args, output: output * 2)
    return fc


def backward_hooked_linear():
    fc = linear()
    fc.register_full_backward_hook(lambda module, grads, outs: tuple(2 * g for g in grads))
    return fc


def patched_linear():
    fc = linear()
    fc.forward = lambda x: F.linear(x, 3 * fc.weight)
    return fc


def pruned_linear():
    fc = linear()
    prune.l1_unstructured(fc, "weight", amount=0.5)
    return fc


def hooked_sequential():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear())
    head.register_forward_hook(lambda module, args, output: output * 2)
    return head


def pooled(*tail):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail)


NEAR_MISSES = {
    "dropout": lambda: pooled(nn.Dropout(0.5), linear()),
    "batch norm": lambda: pooled(nn.BatchNorm1d(CHANNELS), linear()),
    "relu": lambda: nn.Sequential(nn.ReLU(), pooled(linear())),
    "max pool": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear()),
    "pool to 2x2": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, CLASSES)),
    "function pool to 2x2": lambda: Head(
        lambda m, x: m.wide(F.adaptive_avg_pool2d(x, 2).flatten(1)), wide=nn.Linear(4 * CHANNELS, CLASSES)
    ),
    "no pool": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16 * CHANNELS, CLASSES)),
    "mean over one axis": lambda: Head(lambda m, x: m.wide(x.mean(2).flatten(1)), wide=nn.Linear(24, CLASSES)),
    "mean over channels": lambda: Head(lambda m, x: m.wide(x.mean((1, 2))), wide=nn.Linear(4, CLASSES)),
    "two linear": lambda: pooled(nn.Linear(CHANNELS, CHANNELS), linear()),
    "weight norm": lambda: pooled(parametrizations.weight_norm(linear())),
    "pruned": lambda: pooled(pruned_linear()),
    "subclass": lambda: pooled(NoBias(CHANNELS, CLASSES)),
    "patched forward": lambda: pooled(patched_linear()),
    "forward hook on fc": lambda: pooled(hooked_linear()),
    "backward hook on fc": lambda: pooled(backward_hooked_linear()),
    "hook on the head": hooked_sequential,
    "scaled logits": lambda: Head(lambda m, x: 2 * m.fc(x.mean((2, 3)))),
    "softmax": lambda: pooled(linear(), nn.Softmax(1)),
    "features twice": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) + x.sum((1, 2, 3))[:, None]),
    "pooled twice": lambda: Head(lambda m, x: (lambda v: m.fc(v) + v[:, :1])(x.mean((2, 3)))),
    "fc applied twice": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) + m.fc(x.amax((2, 3)))),
    "in-place on pooled": lambda: Head(lambda m, x: (lambda v: (v.mul_(2), m.fc(v))[1])(x.mean((2, 3)))),
    "functional linear": lambda: Head(lambda m, x: F.linear(x.mean((2, 3)), m.fc.weight)),
    "detached logits of fc": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) + 0 * m.fc(x.mean((2, 3))).detach()),
    "dropout in training only": lambda: Head(
        lambda m, x: m.fc(F.dropout(x.mean((2, 3)), 0.5) if m.training else x.mean((2, 3)))
    ),
    "scaled in evaluation only": lambda: Head(
        lambda m, x: m.fc(x.mean((2, 3))) if m.training else 2 * m.fc(x.mean((2, 3)))
    ),
    "control flow": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) * (1 if x.sum() > -1e9 else 0)),
}


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

    def test_on_request_and_reshape_take_autograd(self):
        assert "closed_form=False" in GradCAM(tiny(), "body", closed_form=False).gradient_path
        assert "reshape" in GradCAM(tiny(), "body", reshape=torch.clone).gradient_path

    def test_path_is_told(self):
        net = ResNet18(width=4)
        path = GradCAM(net, "layer4").gradient_path
        assert path == "closed form: avgpool -> flatten -> fc; gradients = fc.weight[target] / (H * W)"
        assert "layer4" in repr(GradCAM(net, "layer4"))
        path = GradCAM(net, "layer3").gradient_path
        assert path == "autograd: the output of layer3 is used 2 times"
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


class TestConstructionLeavesTheModelAlone:
    def test_forward_with_side_effects(self):
        class Counting(TinyNet):
            def __init__(self):
                super().__init__()
                self.register_buffer("steps", torch.zeros(()))
                self.last = None

            def forward(self, x):
                self.steps.add_(1)
                self.last = self.body(x)
                return self.fc(self.last.mean((2, 3)))

        net = Counting().double().eval()
        net.body.train()
        GradCAM(net, "body")
        assert net.steps == 0
        assert net.last is None
        assert [net.training, net.body.training, net.body[1].training, net.fc.training] == [False, True, True, False]

    def test_parameters_mode_and_statistics(self):
        net = tiny()
        before = copy.deepcopy(net.state_dict())
        cam = GradCAM(net, "body")
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert {id(p) for p in cam.parameters()} == {id(p) for p in net.parameters()}
        assert [name for name, _ in cam.named_parameters()] == [f"model.{name}" for name, _ in net.named_parameters()]


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
        net.body.register_forward_pre_hook(lambda module, args: seen.append(cam._capture.armed))
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
        assert cam._capture.output is None

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_after_a_failing_forward_nothing_is_held_and_grad_mode_is_back(self, closed_form):
        class Failing(TinyNet):
            fail = True

            def forward(self, x):
                x = self.body(x)
                if self.fail and not isinstance(x, torch.fx.Proxy):
                    raise KeyError("inside the model")
                return self.fc(x.mean((2, 3)))

        net = Failing().double()
        cam = GradCAM(net, "body", closed_form=closed_form)
        with torch.no_grad():
            with pytest.raises(KeyError, match="inside the model"):
                cam(*views())
            assert not torch.is_grad_enabled()
        assert not cam._capture.armed
        assert cam._capture.output is None
        net.fail = False
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
        assert not cam._capture.armed


class TestGradMode:
    @pytest.mark.parametrize("closed_form", [True, False])
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, mode, closed_form):
        net = tiny().eval()
        cam = GradCAM(net, "body", closed_form=closed_form)
        inputs, target = views(), torch.tensor([1, 2, 3])
        want = cam(*inputs), cam(*inputs, target=target)
        with mode():
            inner = [view.clone() for view in inputs]
            results = cam(*inner, extra=inner[:1]), cam(*inner, target=target.clone())
            assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        for got, expected in zip(results, want, strict=True):
            for out, reference in zip(got, expected, strict=False):
                for tensor, other in zip((out.logits, *out.cam), (reference.logits, *reference.cam), strict=True):
                    assert not tensor.requires_grad
                    assert_close(tensor, other.detach())
        assert not results[0][2].logits.requires_grad

    def test_inference_view_that_the_model_reads_again(self):
        class Skip(TinyNet):
            def forward(self, x):
                features = self.body(x)
                return self.fc((features * x[:, :1, ::2, ::2]).mean((2, 3)))

        net = Skip().double().eval()
        cam = GradCAM(net, "body")
        (view,) = views(1)
        (want,) = cam(view)
        with torch.inference_mode():
            (out,) = cam(view.clone())
        assert_close(out.cam.gradients, want.cam.gradients.detach())

    def test_no_graph_up_to_the_target_layer(self):
        net = tiny()
        states = []
        net.body[0].register_forward_hook(lambda module, args, output: states.append(torch.is_grad_enabled()))
        net.fc.register_forward_hook(lambda module, args, output: states.append(torch.is_grad_enabled()))
        with torch.no_grad():
            GradCAM(net, "body")(*views(1))
        assert states == [False, True]

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_frozen_model(self, closed_form):
        net = tiny().eval()
        cam = GradCAM(net, "body", closed_form=closed_form)
        inputs = views()
        want = cam(*inputs)
        net.requires_grad_(False)
        for out, reference in zip(cam(*inputs), want, strict=True):
            assert not out.cam.features.requires_grad
            assert_close(out.cam.gradients.detach(), reference.cam.gradients.detach())

    @pytest.mark.parametrize("closed_form", [True, False])
    @pytest.mark.parametrize("how", ["requires_grad", "no_grad"])
    def test_frozen_backbone_trains_the_head(self, how, closed_form):
        class NoGradBody(TinyNet):
            def forward(self, x):
                with torch.no_grad():
                    x = self.body(x)
                return self.fc(x.mean((2, 3)))

        trained = tiny()
        net = NoGradBody().double() if how == "no_grad" else tiny()
        net.load_state_dict(trained.state_dict())
        if how == "requires_grad":
            net.body.requires_grad_(False)
        inputs = views()
        cam_loss(GradCAM(trained, "body", closed_form=closed_form)(*inputs)).backward()
        outputs = GradCAM(net, "body", closed_form=closed_form)(*inputs)
        assert not outputs[0].cam.features.requires_grad
        cam_loss(outputs).backward()
        assert torch.is_grad_enabled()
        assert_close(net.fc.weight.grad, trained.fc.weight.grad)
        assert_close(net.fc.bias.grad, trained.fc.bias.grad)
        assert all(parameter.grad is None for parameter in net.body.parameters())

    def test_view_that_requires_grad_keeps_its_graph(self):
        net = tiny().requires_grad_(False)
        (view,) = views(1)
        view.requires_grad_()
        (out,) = GradCAM(nn.Sequential(nn.Identity(), net), "0")(view)
        (grad,) = torch.autograd.grad(out.cam.features.sum(), view)
        assert_close(grad, torch.ones_like(view))

    @pytest.mark.parametrize("closed_form", [True, False])
    def test_autocast(self, closed_form):
        net = TinyNet()
        cam = GradCAM(net, "body", closed_form=closed_form)
        view = torch.randn(3, 3, 8, 8)
        (want,) = cam(view, target=torch.tensor([0, 1, 2]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = cam(view, view, target=torch.tensor([0, 1, 2]))
        for out in outputs:
            assert out.cam.features.dtype == torch.bfloat16
            assert out.cam.gradients.dtype == (torch.float32 if closed_form else torch.bfloat16)
            torch.testing.assert_close(out.cam.features.float(), want.cam.features, rtol=0, atol=0.05)
            torch.testing.assert_close(out.cam.gradients.float(), want.cam.gradients, rtol=0.02, atol=1e-4)
        cam_loss([GradCAMOutput(out.logits.float(), CAM(*(t.float() for t in out.cam))) for out in outputs]).backward()
        assert net.body[0].weight.grad.abs().max() > 0

    def test_autocast_does_not_reach_the_backward(self):
        """A model that is an island of float32 gives the same inside autocast as outside."""

        class Island(TinyNet):
            def forward(self, x):
                with torch.autocast("cpu", enabled=False):
                    return self.fc(self.body(x).mean((2, 3)).tanh())

        cam, view = GradCAM(Island().eval(), "body"), torch.randn(3, 3, 8, 8)
        (want,) = cam(view)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (out,) = cam(view)
        assert torch.equal(out.cam.gradients, want.cam.gradients)


class TestInPlace:
    def test_later_modification_is_an_error_with_a_remedy(self):
        cam = GradCAM(ResNet18(width=4), "layer4.1.bn2")
        with pytest.raises(RuntimeError, match=r"'layer4.1.bn2' must stay as it is.*in-place.*inplace=False"):
            cam(torch.randn(2, 3, 32, 32))

    def test_it_is_an_error_on_the_closed_form_too(self):
        class Late(TinyNet):
            def forward(self, x):
                x = self.body(x)
                out = self.fc(self.act(x).mean((2, 3)))
                x.mul_(2)
                return out

        net = Late()
        net.act = nn.Identity()
        cam = GradCAM(net, "act")
        assert cam.closed_form
        with torch.no_grad(), pytest.raises(RuntimeError, match="'act' must stay as it is"):
            cam(torch.randn(2, 3, 8, 8))

    def test_without_gradients_the_capture_is_a_stand_in(self):
        class Relu(TinyNet):
            def forward(self, x):
                return self.fc(self.body(x).relu_().mean((2, 3)))

        net = Relu().double().eval()
        (view,) = views(1)
        with torch.no_grad():
            (out,) = GradCAM(net, "body")(view)
            features = net.body(view)
        assert_close(out.cam.features, features)
        weight = net.fc.weight[out.logits.argmax(1)][:, :, None, None] / 16
        assert_close(out.cam.gradients, (weight * (features > 0)).detach())


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
            ([0, 1, 2], TypeError, r"target must be a tensor \[B\] of int64, got list"),
            (torch.tensor([0, 1, 2], dtype=torch.int32), TypeError, "target must be int64, got torch.int32"),
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


class TestLifetime:
    def test_close(self):
        net = tiny()
        cam = GradCAM(net, "body")
        assert hooks_on(net) == 1
        cam.close()
        cam.close()
        assert hooks_on(net) == 0
        with pytest.raises(RuntimeError, match="GradCAM must be open to be called, got a closed one"):
            cam(*views())

    def test_context_manager(self):
        net = tiny()
        with GradCAM(net, "body") as cam:
            cam(*views())
            assert hooks_on(net) == 1
        assert hooks_on(net) == 0

    def test_garbage_collection(self):
        net = tiny()
        cam = GradCAM(net, "body")
        cam(*views())
        cam.load_state_dict(cam.state_dict())
        gone = weakref.ref(cam)
        gc.collect()
        gc.disable()
        try:
            del cam
            assert gone() is None
            assert hooks_on(net) == 0
        finally:
            gc.enable()

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda cam: pickle.loads(pickle.dumps(cam))])
    @pytest.mark.parametrize("closed_form", [True, False])
    def test_copy_is_independent(self, duplicate, closed_form):
        cam = GradCAM(tiny(), "body", closed_form=closed_form)
        inputs = views()
        cam.eval()
        want = cam(*inputs)
        twin = duplicate(cam)
        assert hooks_on(twin.model) == hooks_on(cam.model) == 1
        assert twin._capture is not cam._capture
        with torch.no_grad():
            cam.model.fc.weight.zero_()
        for out, reference in zip(twin(*inputs), want, strict=True):
            assert_close(out.cam.gradients, reference.cam.gradients)
        cam.close()
        assert hooks_on(twin.model) == 1
        twin(*inputs)
        assert twin.closed_form == closed_form
        net = twin.model
        del twin
        gc.collect()
        assert hooks_on(net) == 0

    def test_copy_of_a_closed_one_is_closed(self):
        cam = GradCAM(tiny(), "body")
        cam.close()
        twin = copy.deepcopy(cam)
        assert hooks_on(twin.model) == 0
        with pytest.raises(RuntimeError, match="must be open"):
            twin(*views())

    def test_averaged_model(self):
        cam = GradCAM(tiny(), "body").eval()
        average = AveragedModel(cam, use_buffers=True)
        average.update_parameters(cam)
        with torch.no_grad():
            cam.model.fc.weight.mul_(3)
        average.update_parameters(cam)
        target = torch.tensor([0, 1, 2])
        out, _ = average.eval()(*views(), target=target)
        assert_close(out.cam.gradients, 2 / 3 * cam.model.fc.weight[target] / 16)
        assert list(average.state_dict()) == ["n_averaged"] + ["module." + key for key in cam.model.state_dict()]


class Wrapper(nn.Module):
    """A model with a child of the name GradCAM itself uses."""

    def __init__(self):
        super().__init__()
        self.model = tiny()
        self.scale = nn.Linear(CLASSES, CLASSES).double()

    def forward(self, x):
        return self.scale(self.model(x))


class TestStateDict:
    @pytest.mark.parametrize(
        ("make", "layer"), [(tiny, "body"), (Wrapper, "model.body"), (lambda: ResNet18(width=4), "layer4")]
    )
    def test_keys_values_and_metadata_are_the_models(self, make, layer):
        net, other = make(), make()
        state, plain = GradCAM(net, layer).state_dict(), net.state_dict()
        assert list(state) == list(plain)
        assert state._metadata == plain._metadata
        assert all(torch.equal(state[key], plain[key]) for key in plain)
        assert str(GradCAM(other, layer).load_state_dict(plain)) == "<All keys matched successfully>"
        assert all(torch.equal(value, plain[key]) for key, value in other.state_dict().items())
        make().load_state_dict(state)

    def test_nested(self):
        net, other = Wrapper(), Wrapper()
        nest = nn.Sequential(nn.Identity(), GradCAM(net, "model.body"), nn.Linear(2, 2))
        twin = nn.Sequential(nn.Identity(), GradCAM(other, "model.body"), nn.Linear(2, 2))
        state = nest.state_dict()
        assert set(state) == {"1." + key for key in net.state_dict()} | {"2.weight", "2.bias"}
        assert state._metadata == nn.Sequential(nn.Identity(), net, nn.Linear(2, 2)).state_dict()._metadata
        kept = dict(state)
        twin.load_state_dict(state)
        assert dict(state).keys() == kept.keys()
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in other.state_dict().items())

    def test_neighbours_keep_their_keys(self):
        net, neighbour = tiny(), Wrapper()
        state = nn.ModuleDict({"xcam": neighbour, "cam": GradCAM(net, "body")}).state_dict()
        assert list(state) == [f"xcam.{key}" for key in neighbour.state_dict()] + [
            f"cam.{key}" for key in net.state_dict()
        ]

    @pytest.mark.parametrize("nested", [True, False])
    def test_mismatches_are_told_in_the_models_keys(self, nested):
        cam = GradCAM(tiny(), "body")
        holder, prefix = (nn.Sequential(cam), "0.") if nested else (cam, "")
        state = holder.state_dict()
        state[prefix + "head.weight"] = state.pop(prefix + "fc.weight")
        report = holder.load_state_dict(state, strict=False)
        assert report.missing_keys == [prefix + "fc.weight"]
        assert report.unexpected_keys == [prefix + "head.weight"]
        with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{prefix}fc.weight"'):
            holder.load_state_dict(state)


@pytest.fixture(scope="class")
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
class TestDistributed:
    @pytest.mark.parametrize("closed_form", [True, False])
    @pytest.mark.parametrize("static_graph", [True, False])
    def test_ddp_gives_the_same_gradients(self, closed_form, static_graph):
        net = tiny()
        plain = GradCAM(copy.deepcopy(net), "body", closed_form=closed_form)
        cam = nn.parallel.DistributedDataParallel(
            GradCAM(net, "body", closed_form=closed_form), static_graph=static_graph
        )
        assert list(cam.state_dict()) == ["module." + key for key in net.state_dict()]
        for _ in range(2):
            inputs, target = views(3), torch.tensor([0, 3, 1])
            want = parameter_gradients(plain.model, _step_loss(plain, inputs, target))
            got = parameter_gradients(net, _step_loss(cam, inputs, target))
            for name, grad in want.items():
                assert_close(got[name], grad)
        cam.load_state_dict({"module." + key: value for key, value in plain.model.state_dict().items()})


def _step_loss(cam, inputs, target):
    *outputs, extra = cam(*inputs[:2], target=target, extra=inputs[2:])
    return cam_loss(outputs) + extra.logits.square().sum()


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    def test_closed_form_is_one_graph(self):
        net = tiny(POOLED_HEADS["modules"]())
        cam = GradCAM(net, "body", closed_form=True)
        compiled = torch.compile(cam, fullgraph=True, backend="aot_eager")
        # Twice: the second call must not find what the first one left.
        for _ in range(2):
            inputs = views(3)
            for target in (None, torch.tensor([0, 3, 1])):
                state = copy.deepcopy(net.state_dict())
                want = parameter_gradients(net, _step_loss(cam, inputs, target))
                net.load_state_dict(state)
                got = parameter_gradients(net, _step_loss(compiled, inputs, target))
                for name, grad in want.items():
                    assert_close(got[name], grad)
        assert not cam._capture.armed
        assert cam._capture.output is None

    def test_hook_from_before_compilation_is_noticed(self):
        net = tiny()
        cam = GradCAM(net, "body")
        net.fc.register_forward_hook(lambda module, args, output: 3 * output)
        target = torch.tensor([0, 1, 2])
        (out,) = torch.compile(cam, backend="aot_eager")(*views(1), target=target)
        assert_close(out.cam.gradients.mean((2, 3)), 3 * net.fc.weight[target] / 16)

    def test_autograd_path_runs_outside_the_graph(self):
        net = tiny(Head(lambda m, x: m.fc(x.mean((2, 3))).tanh()))
        net.eval()
        cam = GradCAM(net, "body")
        inputs = views()
        want = parameter_gradients(net, cam_loss(cam(*inputs)))
        compiled = torch.compile(cam, backend="aot_eager")
        got = parameter_gradients(net, cam_loss(compiled(*inputs)))
        for name, grad in want.items():
            assert_close(got[name], grad)
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="needs eager mode"):
            torch.compile(cam, fullgraph=True, backend="aot_eager")(*inputs)


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
