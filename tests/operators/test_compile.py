"""torch.compile: one graph, the same numbers."""

import shutil

import pytest
import torch
from torch import nn

from cgc_kernels import CropFlip, GradCAM, cgc_loss, gradcam, heatmap_loss
from tests.support.cases import BACKENDS, CPP, VIEWS, simple_case
from tests.support.compare import assert_close
from tests.support.models import TinyNet

# The compilers of PyTorch itself warn about what they deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, **keywords):
    return torch.compile(function, backend="aot_eager", fullgraph=True, **keywords)


def loss_and_grads(function, case):
    leaves = [v.detach().requires_grad_() for v in case.views]
    loss = function(*leaves, case.transform)
    return loss.detach(), torch.autograd.grad(loss, leaves)


def loss_function(backend, **settings):
    def function(features, gradients, aug_features, aug_gradients, transform):
        return cgc_loss((features, gradients), (aug_features, aug_gradients), transform, backend=backend, **settings)

    return function


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize(
    ("objective", "weighting"),
    [("released", "pooled"), ("paper", "gradcam"), ("mse", "elementwise"), ("released", "gradcam")],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_equal_to_eager(backend, objective, weighting, transform):
    pooled = weighting == "pooled"
    case = simple_case(
        pooled=pooled,
        objective=objective,
        transform=transform,
        consistency=0.4,
        weighting="gradcam" if pooled else weighting,
    )
    function = loss_function(backend, **case.settings)
    loss, grads = loss_and_grads(compiled(function), case)
    expected, expected_grads = loss_and_grads(function, case)
    assert_close(loss, expected, 1e-12, floor=1e-2)
    for name, grad, expected_grad in zip(VIEWS, grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-11, what=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stages_in_one_graph(backend):
    case = simple_case()

    def both(features, gradients, aug_features, aug_gradients, transform):
        maps = gradcam(features, gradients, backend=backend), gradcam(aug_features, aug_gradients, backend=backend)
        return heatmap_loss(*maps, transform, image_size=(9, 11), backend=backend)

    loss, grads = loss_and_grads(compiled(both), case)
    expected, expected_grads = loss_and_grads(both, case)
    assert_close(loss, expected, 1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_batch(backend):
    """Other batch sizes give the right numbers, and run the same graph of `cpp`; `torch` may compile again, since it
    cuts the batch into chunks."""
    function = loss_function(backend, image_size=(9, 11))
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    dynamic = compiled(function, dynamic=True)
    counted = torch.compile(function, backend=counting, fullgraph=True, dynamic=True)
    for batch in (7, 10):  # none equal to another size, which dynamo would take for the same symbol
        case = simple_case(batch=batch)
        loss, grads = loss_and_grads(dynamic, case)
        expected, expected_grads = loss_and_grads(function, case)
        assert_close(loss, expected, 1e-12)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert_close(grad, expected_grad, 1e-11)
        if backend == "cpp":
            counted(*case.views, case.transform)
    assert len(graphs) == (backend == "cpp")


@pytest.mark.parametrize("name", ["consistency", "temperature"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_setting_that_changes_every_step(backend, name):
    """A ramped weight becomes a symbolic number at its second value."""
    case = simple_case(objective="paper")

    def step(features, gradients, aug_features, aug_gradients, transform, value):
        pairs = (features, gradients), (aug_features, aug_gradients)
        return cgc_loss(*pairs, transform, image_size=(9, 11), backend=backend, **{name: value})

    function = compiled(step)
    for value in (0.1, 0.2, 0.3, 0.45):
        loss = function(*case.views, case.transform, value)
        assert_close(loss, step(*case.views, case.transform, value), 1e-12, what=f"{name} {value}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_wanted_gradients(backend):
    case = simple_case()
    function = loss_function(backend, **case.settings)
    _, expected = loss_and_grads(function, case)
    for index in range(4):
        leaves = [v.detach().requires_grad_(i == index) for i, v in enumerate(case.views)]
        (grad,) = torch.autograd.grad(compiled(function)(*leaves, case.transform), leaves[index])
        assert_close(grad, expected[index], 1e-11, what=VIEWS[index])


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_backward_is_refused_in_compiled_code(backend):
    case = simple_case()
    leaves = [v.detach().requires_grad_() for v in case.views]
    loss = compiled(loss_function(backend, **case.settings))(*leaves, case.transform)
    grads = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError):
        sum(g.square().sum() for g in grads).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_input_is_refused_in_compiled_code(backend):
    case = simple_case()
    wrong = case._replace(transform=CropFlip(*(f[:2] for f in case.transform)))
    with pytest.raises(Exception, match="one crop per image"):
        compiled(loss_function(backend, **case.settings))(*wrong.views, wrong.transform)


@pytest.mark.parametrize("backend", [CPP, pytest.param("torch", marks=pytest.mark.slow)])
def test_inductor_on_a_small_net(backend):
    """Forward to loss of a whole step in one graph of real compiled code; dropped where there is no compiler for it."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("inductor needs a C++ compiler: install g++ or clang++")
    torch.manual_seed(0)
    net = TinyNet(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)))
    net.fc = nn.Identity()
    cam = GradCAM(net, "body")
    views = torch.rand(2, 4, 3, 12, 12)
    transform = CropFlip.identity(4, 12)
    labels = torch.arange(4)

    def step(x, aug, transform):
        out, out_aug = cam(x, aug)
        loss = nn.functional.cross_entropy(out.logits, labels)
        return loss + 0.5 * cgc_loss(out.cam, out_aug.cam, transform, consistency=1.0, backend=backend)

    parameters = [p for p in net.parameters() if p.requires_grad]

    def run(function):
        loss = function(*views, transform)
        return loss.detach(), torch.autograd.grad(loss, parameters)

    expected, expected_grads = run(step)
    loss, grads = run(torch.compile(step, fullgraph=True))
    assert_close(loss, expected, 1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-4, floor=0.1)  # a bias before batch norm has a true gradient of 0
