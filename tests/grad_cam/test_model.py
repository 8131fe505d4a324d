"""GradCAM leaves no trace on its model: hooks, state_dict, copies, activations written in place."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cgc_kernels.grad_cam import GradCAM
from tests.grad_cam.cases import CLASSES, assert_close, hooks_on, tiny, views
from tests.support.models import ResNet18, TinyNet

pytestmark = pytest.mark.usefixtures("single_thread")


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
        assert [name for name, _ in cam.named_parameters()] == [name for name, _ in net.named_parameters()]


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
