"""The pooled head is found by reading: nothing of the model is run, and what is read is what would run."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cgc_kernels.grad_cam import GradCAM
from cgc_kernels.grad_cam.pooled_head import find_head
from tests.grad_cam.cases import POOLED_HEADS, Head, Staged, assert_close, linear, tiny, views
from tests.support.models import ResNet18, TinyNet

pytestmark = pytest.mark.usefixtures("single_thread")


SCALED = False


class Reported(TinyNet):
    """Every way in which code of a user could notice that it is run."""

    ran = 0

    @property
    def backbone(self):
        type(self).ran += 1
        return self.body

    def forward(self, x):
        type(self).ran += 1
        return self.fc(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class TestNothingIsRun:
    def test_no_hook_and_no_forward(self):
        net = Reported().double()
        seen = []
        for module in net.modules():
            module.register_forward_pre_hook(lambda module, args: seen.append(module))
        for module in net.body.modules():
            module.register_forward_hook(lambda module, args, output: seen.append(module))
        state = {module: vars(module).copy() for module in net.modules()}
        GradCAM(net, "body").close()
        assert seen == []
        assert Reported.ran == 0
        for module, before in state.items():
            assert vars(module).keys() == before.keys()
            assert all(vars(module)[key] is value for key, value in before.items())

    def test_what_a_hook_keeps_is_never_a_stand_in(self):
        """As fully_shard's own hooks, which keep what the forward gets."""
        net = tiny()
        kept = []
        net.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
        cam = GradCAM(net, "body")
        assert cam.closed_form
        cam(*views(1))
        assert [type(value) for value in kept] == [torch.Tensor]


def reason(net, layer="body"):
    head, why = find_head(net, net.get_submodule(layer))
    assert head is None
    return why


class Cases:
    """Forwards that must not be taken for a pooled head."""

    class Stored(TinyNet):
        def forward(self, x):
            self.last = self.body(x)
            return self.fc(self.last.mean((2, 3)))

    class Looped(TinyNet):
        def forward(self, x):
            x = self.body(x)
            for _ in range(2):
                x = x * 2
            return self.fc(x.mean((2, 3)))

    class InList(TinyNet):
        def forward(self, x):
            features = [self.body(x)]
            return self.fc(features[0].mean((2, 3)))

    class ByAnotherFunction(TinyNet):
        def forward(self, x):
            x = map(self.body, [x])
            return self.fc(next(x).mean((2, 3)))

    class Earlier(TinyNet):
        def forward(self, x):
            if x.sum() > 0:
                return self.fc(x.mean((2, 3)))
            return self.fc(self.body(x).mean((2, 3)))

    class Pair(TinyNet):
        def forward(self, x):
            x = self.body(x)
            return self.fc(x.mean((2, 3))), x

    class Twice(TinyNet):
        def forward(self, x):
            pooled = self.body(x).mean((2, 3))
            self.fc(pooled)
            return self.fc(pooled)

    class Changed(TinyNet):
        def forward(self, x):
            x = self.body(x)
            x += 1
            return self.fc(x.mean((2, 3)))

    class AfterTheLogits(TinyNet):
        def forward(self, x):
            logits = self.fc(self.body(x).mean((2, 3)))
            logits[:, 0] = 0
            return logits

    class Unpooled(TinyNet):
        def forward(self, x):
            return self.body(x).mean((2, 3))

    class ByProperty(TinyNet):
        @property
        def pooled(self):
            return nn.Identity()

        def forward(self, x):
            return self.fc(self.pooled(self.body(x)).mean((2, 3)))

    class ClassAttribute(TinyNet):
        """Which Python finds before the module of the name."""

        out = staticmethod(lambda x: 2 * x)

        def __init__(self):
            super().__init__()
            self._modules["out"] = nn.Identity()

        def forward(self, x):
            return self.out(self.fc(self.body(x).mean((2, 3))))

    class Called(TinyNet):
        def __call__(self, x):
            return 2 * super().__call__(x)

    class ByGlobal(TinyNet):
        def forward(self, x):
            x = self.body(x)
            return 2 * self.fc(x.mean((2, 3))) if SCALED else self.fc(x.mean((2, 3)))

    class Recursive(TinyNet):
        def forward(self, x):
            return self.forward(self.body(x))


@pytest.mark.parametrize("name", [name for name in vars(Cases) if not name.startswith("_")])
def test_near_misses_in_code(name):
    assert reason(getattr(Cases, name)().double())


class TestWhatIsRead:
    def test_methods_loops_defaults_and_attributes(self):
        cam = GradCAM(Staged().double(), "blocks.1")
        assert cam.gradient_path == "closed form: mean -> fc -> end; gradients = fc.weight[target] / (H * W)"
        by_autograd = GradCAM(Staged().double(), "blocks.1", closed_form=False)
        by_autograd.load_state_dict(cam.state_dict())
        target = torch.tensor([0, 1, 2])
        (view,) = views(1)
        (closed,), (other,) = cam(view, target=target), by_autograd(view, target=target)
        assert_close(closed.cam.gradients, other.cam.gradients.mean((2, 3)))

    def test_an_attribute_that_changes_is_noticed(self):
        net = Staged().double()
        cam = GradCAM(net, "blocks.1")
        net.pool.drop = 0.5
        assert cam.gradient_path == "autograd: pool.drop was changed or got a hook"
        assert cam(*views(1))[0].cam.gradients.shape == (3, 6, 4, 4)
        net.pool.drop = 0.0
        assert cam.closed_form
        net.pool.dims = (2, 3)  # the same, but who knows
        assert not cam.closed_form

    def test_a_checkpoint_is_not_read(self):
        net = Staged().double()
        net.checkpointing = True
        assert "a checkpoint for instance" in reason(net, "blocks.1")

    def test_a_hook_that_comes_later_anywhere_on_the_way_is_noticed(self):
        net = tiny(POOLED_HEADS["modules"]())
        cam = GradCAM(net, "body")
        handle = net.head.register_forward_hook(lambda module, args, output: 2 * output)
        assert cam.gradient_path == "autograd: head was changed or got a hook"
        handle.remove()
        handle = net.register_forward_hook(lambda module, args, output: 2 * output)
        assert cam.gradient_path == "autograd: the model was changed or got a hook"
        handle.remove()
        net.forward = lambda x: 2 * TinyNet.forward(net, x)
        assert not cam.closed_form
        del net.forward
        assert cam.closed_form

    def test_super(self):
        class Child(TinyNet):
            def forward(self, x):
                return super().forward(x)

        assert find_head(Child(), (net := Child()).body)[0] is None  # a module of another model
        assert find_head(net, net.body)[0].linear == "fc"

    def test_a_decorated_forward_is_not_read(self):
        class Decorated(TinyNet):
            @torch.no_grad()
            def forward(self, x):
                return self.fc(self.body(x).mean((2, 3)))

        assert reason(Decorated())

    def test_a_file_that_changed_since_it_was_imported_is_not_read(self, tmp_path):
        path = tmp_path / "net.py"
        lines = [
            "def forward(self, x):",
            "    x = self.body(x)",
            "    return 2 * self.fc(x.mean((2, 3)))",
        ]
        names = {}
        exec(compile("\n".join(lines), str(path), "exec"), names)
        path.write_text("\n".join(lines).replace("2 * ", ""))
        assert "cannot be read" in reason(type("Changed", (TinyNet,), {"forward": names["forward"]})())

    def test_without_source(self):
        names = {}
        exec("def forward(self, x):\n    return self.fc(self.body(x).mean((2, 3)))", names)
        assert "cannot be read" in reason(type("Typed", (TinyNet,), {"forward": names["forward"]})())

    def test_switches_of_the_two_modes(self):
        assert "differs" in reason(
            tiny(Head(lambda m, x: m.fc(x.mean((2, 3)) if m.training else m.pool(x)), pool=Pool()))
        )
        assert find_head(net := ResNet18(width=4), net.layer4[1])[0].steps == "avgpool -> flatten -> fc"

    @pytest.mark.parametrize("library", ["torchvision", "timm"])
    def test_libraries(self, library):
        pytest.importorskip(library)
        if library == "torchvision":
            from torchvision.models import get_model

            found = {"regnet_y_400mf": "trunk_output", "shufflenet_v2_x0_5": "conv5", "swin_t": "permute"}
            heads = {"regnet_y_400mf": "fc", "shufflenet_v2_x0_5": "fc", "swin_t": "head"}
            models = [(get_model(name), layer, heads[name]) for name, layer in found.items()]
        else:
            import timm

            found = {"resnet18": "layer4", "regnetx_002": "s4", "efficientnet_b0": "bn2"}
            heads = {"resnet18": "fc", "regnetx_002": "head.fc", "efficientnet_b0": "classifier"}
            models = [(timm.create_model(name), layer, heads[name]) for name, layer in found.items()]
        view = torch.rand(2, 3, 64, 64, dtype=torch.float64)
        for model, layer, linear_layer in models:
            cam = GradCAM(model.double().eval(), layer, closed_form=True)
            assert cam.gradient_path.endswith(f"gradients = {linear_layer}.weight[target] / (H * W)")
            (closed,), (by_autograd,) = cam(view), GradCAM(model, layer, closed_form=False)(view)
            assert_close(closed.cam.gradients, by_autograd.cam.gradients.mean((2, 3)))


class Pool(nn.Module):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_logits_through_identity():
    net = tiny(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(), nn.Identity()))
    cam = GradCAM(net, "body")
    assert cam.gradient_path.startswith("closed form: head.0 -> head.1 -> head.2 -> head.3; gradients = head.2.weight")
