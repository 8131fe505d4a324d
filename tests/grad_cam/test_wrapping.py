"""GradCAM in other people's scripts: names and methods of the model, what is wrapped first, several threads."""

import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from cgc_kernels import cgc_loss
from cgc_kernels.grad_cam import GradCAM
from cgc_kernels.transforms import CropFlip
from tests.grad_cam.cases import CHANNELS, Head, assert_close, cam_loss, hooks_on, parameter_gradients, tiny, views
from tests.support.models import ResNet18, TinyNet

pytestmark = pytest.mark.usefixtures("single_thread")


class Named(TinyNet):
    """With methods and attributes that scripts ask for."""

    num_classes = 5

    def no_weight_decay(self):
        return {"fc.weight"}

    def group_matcher(self, coarse=False):
        return {"stem": r"^body", "blocks": [(r"^fc", (0,))]}


class TestNamesAndMethods:
    def test_the_models_own_methods_and_attributes(self):
        cam = GradCAM(Named(), "body")
        assert cam.no_weight_decay() == {"fc.weight"}
        assert cam.num_classes == 5
        assert cam.fc is cam.model.fc
        assert not hasattr(cam, "missing")
        with pytest.raises(AttributeError, match="missing"):
            cam.missing  # noqa: B018

    @pytest.mark.parametrize("nested", [True, False])
    def test_names_are_those_of_the_state_dict(self, nested):
        net = tiny()
        cam, prefix = GradCAM(net, "body"), ""
        holder = cam
        if nested:
            holder, prefix = nn.Sequential(cam, nn.Linear(2, 2, bias=False)), "0."
        named = {name for name, _ in (*holder.named_parameters(), *holder.named_buffers())}
        assert named == set(holder.state_dict())
        assert [name for name, _ in cam.named_parameters()] == [name for name, _ in net.named_parameters()]
        assert {prefix + name for name, _ in net.named_modules() if name} <= {
            name for name, _ in holder.named_modules()
        }
        assert len(list(holder.parameters())) == len(list(net.parameters())) + nested
        assert [name for name, _ in cam.named_parameters(recurse=False)] == []

    def test_optimizer_of_timm(self):
        create_optimizer = pytest.importorskip("timm.optim").create_optimizer_v2
        timm = pytest.importorskip("timm")
        net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
        cam = GradCAM(net, "blocks.1.norm1", reshape=nn.Identity())
        for settings in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "layer_decay": 0.5}):
            groups = []
            for model in (net, cam):
                found = create_optimizer(model, opt="adamw", lr=0.1, **settings).param_groups
                groups.append({id(p): (g["weight_decay"], g.get("lr_scale")) for g in found for p in g["params"]})
            assert groups[0] == groups[1]

    def test_functional_call_with_the_state_dict(self):
        cam = GradCAM(tiny(), "body").eval()
        (view,) = views(1)
        state = {key: value * 2 for key, value in cam.state_dict().items()}
        (out,) = functional_call(cam, state, (view,))
        other = GradCAM(tiny(), "body").eval()
        other.load_state_dict(state)
        assert_close(out.cam.gradients, other(view)[0].cam.gradients)

    @pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
    def test_state_dict_of_distributed_checkpoints(self):
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_model_state_dict

        cam, twin = GradCAM(tiny(), "body"), GradCAM(tiny(), "body")
        optimizer = torch.optim.SGD(cam.parameters(), lr=0.1, momentum=0.9)
        cam_loss(cam(*views())).backward()
        optimizer.step()
        state, moments = get_state_dict(cam, optimizer)
        assert list(state) == list(cam.model.state_dict())
        assert set(moments["state"]) == {name for name, _ in cam.model.named_parameters()}
        set_model_state_dict(twin, state)
        assert_close(twin.model.fc.weight, cam.model.fc.weight)

    def test_own_evaluation_of_a_script(self):
        def evaluate(model, batch):
            model.eval()
            return model(batch).argmax(1)

        cam = GradCAM(tiny(), "body")
        (view,) = views(1)
        classes = evaluate(cam.model, view)
        cam.eval()
        assert torch.equal(classes, cam(view)[0].logits.argmax(1))
        assert cam.train().model.training is not False


class TestSetting:
    """What is set on a GradCAM and is the model's is set on the model."""

    def test_a_head_that_is_replaced(self):
        net = tiny()
        cam = GradCAM(net, "body")
        cam.fc = nn.Linear(CHANNELS, 3).double()
        assert net.fc is cam.fc
        assert cam.state_dict()["fc.weight"].shape == (3, CHANNELS)
        out, _ = cam(*views())
        assert out.logits.shape[1] == 3
        assert any(parameter is net.fc.weight for parameter in cam.parameters())

    def test_a_layer_that_is_replaced_is_explained(self):
        net = tiny()
        cam = GradCAM(net, "body")
        cam.body = nn.Conv2d(3, CHANNELS, 3, 2).double()
        (view,) = views(1)
        (out,) = cam(view)
        assert_close(out.cam.features, net.body(view))

    def test_a_plain_attribute(self):
        net = tiny()
        net.drop, net.reshape = 0.0, "the model's"
        cam = GradCAM(net, "body")
        cam.drop, cam.reshape, cam.note = 0.9, None, "mine"
        assert (net.drop, net.reshape) == (0.9, "the model's")
        assert not hasattr(net, "note")


class TestHabits:
    def test_a_grad_cam_is_wrapped_once(self):
        cam = GradCAM(tiny(), "body")
        with pytest.raises(TypeError, match="model must be the bare network, got a GradCAM of one; wrap it once"):
            GradCAM(cam, "body")
        assert GradCAM(cam.model, "body")(*views(1))

    def test_one_view_gives_a_tuple_too(self):
        cam = GradCAM(tiny(), "body")
        outputs = cam(*views(1))
        assert isinstance(outputs, tuple)
        assert len(outputs) == 1
        with pytest.raises(AttributeError, match=r"\(out,\) = cam\(x\), then out.logits .* cam.model\(x\)"):
            outputs.logits  # noqa: B018
        with pytest.raises(AttributeError, match="no attribute 'shape'"):
            outputs.shape  # noqa: B018

    def test_outputs_in_place_of_cams(self):
        cam = GradCAM(tiny(), "body")
        (first, second), crop = views(), CropFlip.identity(3, 8)
        outputs = cam(first, second)
        with pytest.raises(TypeError, match=r"got a GradCAMOutput; write cgc_loss\(out.cam, out_aug.cam"):
            cgc_loss(*outputs, crop, image_size=8)
        for wrong in (outputs, cam(first)):
            with pytest.raises(TypeError, match=r"got what GradCAM returns; write out, out_aug = cam\(x, x_aug\)"):
                cgc_loss(wrong, outputs[1].cam, crop, image_size=8)
        with pytest.raises(TypeError, match=r"aug_cam must be .*, got NoneType; views given as extra= have no cam"):
            cgc_loss(outputs[0].cam, cam(first, extra=[second])[1].cam, crop, image_size=8)


class TestWhatIsWrappedFirst:
    def test_compiled_models_are_refused_by_name(self):
        with pytest.raises(TypeError, match=r"got torch.compile\(model\); .* torch.compile\(GradCAM\(model"):
            GradCAM(torch.compile(ResNet18(width=4)), "layer4")
        net = tiny()
        net.compile()
        with pytest.raises(RuntimeError, match=r"model.compile\(\) was called on; .* torch.compile\(cam\)"):
            GradCAM(net, "body")

    @pytest.mark.parametrize("part", ["", "body"])
    def test_compiled_later(self, part):
        net = tiny()
        cam = GradCAM(net, "body")
        net.get_submodule(part).compile()
        with pytest.raises(RuntimeError, match=r"model.compile\(\) was called on"):
            cam(*views())

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit")
    @pytest.mark.parametrize("how", ["script", "trace", "export"])
    def test_graphs_are_refused_by_name(self, how):
        net, view = ResNet18(width=4).eval(), torch.rand(2, 3, 32, 32)
        if how == "export":
            model, message = torch.export.export(net, (view,)).module(), "'layer4', got a graph"
        else:
            model = torch.jit.script(net) if how == "script" else torch.jit.trace(net, view)
            message = "Module, whose layers run without hooks"
        with pytest.raises(TypeError, match=message):
            GradCAM(model, "layer4")

    def test_graph_that_calls_the_layer(self):
        net = torch.fx.symbolic_trace(tiny().eval())
        (view,) = views(1)
        (out,) = GradCAM(net, "body.2")(view)
        (want,) = GradCAM(net, "body.2", closed_form=False)(view)
        gradients = out.cam.gradients
        assert_close(
            gradients if gradients.ndim == 4 else gradients[:, :, None, None].expand(3, 6, 4, 4), want.cam.gradients
        )

    def test_prepared_by_accelerate(self):
        net = tiny()
        net._is_accelerate_prepared = True  # as Accelerator.prepare leaves it
        with pytest.raises(RuntimeError, match=r"wrap the bare network first, .* accelerator.prepare"):
            GradCAM(net, "body")

    @pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
    def test_inside_ddp(self):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            net = tiny()
            ddp = nn.parallel.DistributedDataParallel(net)
            with pytest.raises(TypeError, match="bare network, got DistributedDataParallel"):
                GradCAM(ddp, "module.body")
            with pytest.raises(RuntimeError, match=r"inside DistributedDataParallel already, .* GradCAM\(model"):
                GradCAM(ddp.module, "body")
            del ddp
            cam = GradCAM(net, "body")
            ddp = nn.parallel.DistributedDataParallel(cam)
            GradCAM(ddp.module.model, "body.0")  # another layer's heatmaps, to look at
        finally:
            torch.distributed.destroy_process_group()

    def test_batch_norm_converted_after_wrapping(self):
        net = ResNet18(width=4)
        net.relu.inplace = False
        cam = GradCAM(net, "bn1")
        nn.SyncBatchNorm.convert_sync_batchnorm(cam)
        assert type(net.bn1) is nn.SyncBatchNorm
        (out,) = cam(torch.rand(2, 3, 32, 32))
        assert out.cam.features.shape == (2, 4, 16, 16)
        assert hooks_on(net) == 1
        cam.close()
        assert hooks_on(net) == 0

    def test_container_that_is_never_called(self):
        class Listed(TinyNet):
            def __init__(self):
                super().__init__()
                self.parts = nn.ModuleList([self.body])

            def forward(self, x):
                return self.fc(self.parts[0](x).mean((2, 3)))

        with pytest.raises(RuntimeError, match="got 0 calls; it is a container that is never called itself"):
            GradCAM(Listed().double(), "parts")(*views())


class Checkpointed(TinyNet):
    """The part, "body" or "head", in a checkpoint."""

    def __init__(self, part, reentrant):
        super().__init__(None)
        self.part, self.reentrant = part, reentrant

    def forward(self, x):
        def head(x):
            return self.fc(x.mean((2, 3))).tanh()

        if self.part == "body":
            return head(checkpoint(self.body, x, use_reentrant=self.reentrant))
        return checkpoint(head, self.body(x), use_reentrant=self.reentrant)


class TestCheckpoints:
    @pytest.mark.parametrize("layer", ["body", "body.0"])
    @pytest.mark.parametrize("part", ["body", "head"])
    def test_without_reentrance_the_same_gradients(self, part, layer):
        net, plain = Checkpointed(part, False).double(), Checkpointed("none", False).double()
        plain.forward = lambda x: plain.fc(plain.body(x).mean((2, 3))).tanh()
        plain.load_state_dict(net.state_dict())
        inputs = views()
        grads = [parameter_gradients(model, cam_loss(GradCAM(model, layer)(*inputs))) for model in (net, plain)]
        for name, grad in grads[1].items():
            assert_close(grads[0][name], grad)

    def test_layer_in_a_reentrant_one(self):
        cam = GradCAM(Checkpointed("body", True).double(), "body.2")
        inputs = [view.requires_grad_() for view in views()]
        with pytest.raises(RuntimeError, match=r"must not run inside a reentrant checkpoint, .* use_reentrant=False"):
            cam(*inputs)
        with torch.no_grad(), pytest.raises(RuntimeError, match="reentrant checkpoint"):
            cam(*inputs)

    def test_reentrant_one_behind_the_layer(self):
        cam = GradCAM(Checkpointed("head", True).double(), "body")
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            cam(*views())


class TestThreads:
    @pytest.mark.parametrize("closed_form", [True, False])
    def test_every_thread_gets_its_own(self, closed_form):
        net = tiny().eval()
        cam = GradCAM(net, "body", closed_form=closed_form)
        inputs = [views(1)[0] for _ in range(4)]
        expected = [cam(view)[0] for view in inputs]
        wrong = []

        def work(view, want):
            try:
                for _ in range(30):
                    (out,) = cam(view)
                    if not all(map(torch.equal, (out.logits, *out.cam[:2]), (want.logits, *want.cam[:2]))):
                        wrong.append("another thread's")
                    net(view)
            except Exception as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


# torch's own, when its forward mode is first used
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestTransformsOfTorch:
    def nets(self, closed):
        net = tiny() if closed else tiny(Head(lambda m, x: m.fc(x.mean((2, 3))).tanh()))
        return GradCAM(net.eval(), "body"), dict(net.named_parameters())

    @staticmethod
    def loss(cam, parameters, inputs):
        return cam_loss(functional_call(cam, parameters, tuple(inputs)))

    @pytest.mark.parametrize("closed", [True, False])
    def test_func_grad(self, closed):
        (cam, parameters), inputs = self.nets(closed), views()
        assert cam.closed_form == closed
        want = parameter_gradients(cam.model, cam_loss(cam(*inputs)))
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        got = torch.func.grad(lambda values: self.loss(cam, values, inputs))(values)
        for name, grad in want.items():
            assert_close(got[name], grad)

    def test_forward_mode(self):
        (cam, parameters), inputs = self.nets(True), views()
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        tangents = {name: torch.randn_like(value) for name, value in values.items()}
        _, got = torch.func.jvp(lambda values: self.loss(cam, values, inputs), (values,), (tangents,))
        want = parameter_gradients(cam.model, cam_loss(cam(*inputs)))
        assert_close(got, sum((want[name] * tangents[name]).sum() for name in want))

    def test_forward_mode_without_a_closed_form(self):
        (cam, parameters), inputs = self.nets(False), views()
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        with pytest.raises(RuntimeError, match=r"got a transform of torch.func that gives it none \(jvp, vmap\)"):
            torch.func.jvp(lambda values: self.loss(cam, values, inputs), (values,), (values,))
        assert not cam._capture.kept.armed
