"""GradCAM in every mode of PyTorch: grad modes, autocast, compiled, distributed."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from cgc_kernels.grad_cam import CAM, GradCAM, GradCAMOutput
from tests.grad_cam.cases import POOLED_HEADS, Head, assert_close, cam_loss, parameter_gradients, tiny, views
from tests.support.models import TinyNet

pytestmark = pytest.mark.usefixtures("single_thread")


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
                pairs = zip((out.logits, *out.cam[:2]), (reference.logits, *reference.cam[:2]), strict=True)
                for tensor, other in pairs:
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
        cams = [CAM(*(tensor.float() for tensor in out.cam[:2])) for out in outputs]
        cam_loss([GradCAMOutput(out.logits.float(), cam) for out, cam in zip(outputs, cams, strict=True)]).backward()
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


# Dynamo looks at every input of a graph, and hides the warning, but not from those that make it an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
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
        assert not cam._capture.kept.armed
        assert cam._capture.kept.output is None

    def test_hook_from_before_compilation_is_noticed(self):
        net = tiny()
        cam = GradCAM(net, "body")
        net.fc.register_forward_hook(lambda module, args, output: 3 * output)
        target = torch.tensor([0, 1, 2])
        (out,) = torch.compile(cam, backend="aot_eager")(*views(1), target=target)
        assert_close(out.cam.gradients.mean((2, 3)), 3 * net.fc.weight[target] / 16)

    @pytest.mark.parametrize("layer", ["head.stage", "head.stage.1"])
    def test_what_comes_before_the_layer_is_compiled(self, layer):
        """In parts, of an extra view too; what follows the layer runs eagerly."""
        net, graphs = staged(), []
        cam = GradCAM(net, layer)

        def backend(graph, inputs):
            graphs.append([str(getattr(node.target, "__name__", node.target)) for node in graph.graph.nodes])
            return aot_eager(graph, inputs)

        compiled, inputs = torch.compile(cam, backend=backend), views(3)
        for training in (True, False):
            net.train(training)
            twin = copy.deepcopy(cam)
            want = parameter_gradients(twin.model, _step_loss(twin, inputs, None))
            got = parameter_gradients(net, _step_loss(compiled, inputs, None))
            for name, grad in want.items():
                assert_close(got[name], grad)
        # The body, whose batch norm has two modes, and the stage or its halves.
        assert len(graphs) == 2 + (1 if layer == "head.stage" else 2)
        assert all("tanh" in graph and not {"gelu", "linear"} & set(graph) for graph in graphs)

    def test_a_warm_step_asks_dynamo_nothing(self):
        """Neither to compile nor whether to skip a frame."""
        compiled, inputs = torch.compile(GradCAM(staged(), "head.stage"), backend="eager"), views(3)
        for _ in range(2):
            _step_loss(compiled, inputs, None).backward()
        with mock.patch("torch._dynamo.trace_rules.check", wraps=torch._dynamo.trace_rules.check) as asked:
            _step_loss(compiled, inputs, None).backward()
            assert not asked.called
            torch.compile(lambda x: x + 1, backend="eager")(inputs[0])
            assert asked.called

    def test_parts_go_with_the_grad_cam(self):
        net = staged()
        cam = GradCAM(net, "head.stage")
        torch.compile(cam, backend="eager")(*views())
        assert net.body._compiled_call_impl is not None
        assert copy.deepcopy(cam).model.body._compiled_call_impl is None
        cam(*views())
        net(*views(1))
        cam.close()
        assert all(module._compiled_call_impl is None for module in net.modules())

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


def staged():
    """A body, a stage of two halves, and a head that has no closed form."""
    stage = nn.Sequential(*(nn.Sequential(nn.Conv2d(6, 6, 1), nn.Tanh()) for _ in range(2)))
    last = nn.Sequential(nn.GELU(), nn.BatchNorm2d(6), nn.Tanh())
    return tiny(Head(lambda m, x: m.fc(m.last(m.stage(x)).mean((2, 3))), stage=stage, last=last))


def _step_loss(cam, inputs, target):
    *outputs, extra = cam(*inputs[:2], target=target, extra=inputs[2:])
    return cam_loss(outputs) + extra.logits.square().sum()
