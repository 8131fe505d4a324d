"""Second derivatives are refused aloud, never a wrong number; other terms of the loss may have them."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from cgc_kernels import CropFlip, cgc_loss, double_backward, gradcam, heatmap_loss
from cgc_kernels.options import OBJECTIVES
from tests.support.cases import CPP, EVERY_BACKEND, VIEWS, simple_case
from tests.support.compare import assert_close, assert_same_bits

REFUSAL = "no second derivatives"


def assert_refused(output, inputs, wrt):
    """A penalty on the gradients with respect to each input and to all of them, differentiated every way."""
    for chosen in ([x] for x in inputs):
        grads = torch.autograd.grad(output, chosen, create_graph=True)
        penalty = sum(g.square().sum() for g in grads)
        for target in wrt:
            with pytest.raises(RuntimeError, match=REFUSAL):
                torch.autograd.grad(penalty, target, retain_graph=True, allow_unused=True)
        with pytest.raises(RuntimeError, match=REFUSAL):
            penalty.backward(retain_graph=True)


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradient_penalty_through_cgc_loss(backend, objective, weighting, transform):
    pooled = weighting == "pooled"
    case = simple_case(
        pooled=pooled,
        objective=objective,
        transform=transform,
        consistency=0.5,
        weighting="gradcam" if pooled else weighting,
    )
    leaves = case.leaves()
    assert_refused(case.loss(leaves, backend), leaves, leaves)


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradient_penalty_through_gradcam(backend, weighting):
    pooled = weighting == "pooled"
    leaves = simple_case(pooled=pooled).leaves()[:2]
    heatmaps = gradcam(*leaves, weighting="gradcam" if pooled else weighting, backend=backend)
    assert_refused(heatmaps.square().sum(), leaves, leaves)
    # The sum is linear in each factor: its gradient depends on the other one only.
    assert_refused(heatmaps.sum(), leaves[:1], leaves[1:])
    assert_refused(heatmaps.sum(), leaves[1:], leaves[:1])


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradient_penalty_through_heatmap_loss(backend, objective, transform):
    case = simple_case(transform=transform)
    maps = [m.clone().requires_grad_() for m in torch.rand(2, 3, 3, 4, dtype=torch.float64)]
    loss = heatmap_loss(*maps, case.transform, image_size=(9, 11), objective=objective, backend=backend)
    assert_refused(loss, maps, maps)


@pytest.mark.parametrize("only", VIEWS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_when_one_input_alone_requires_a_gradient(backend, only):
    case = simple_case(weighting="elementwise")
    leaves = [v.detach().requires_grad_(name == only) for name, v in zip(VIEWS, case.views, strict=True)]
    (leaf,) = (t for t in leaves if t.requires_grad)
    assert_refused(case.loss(leaves, backend), [leaf], [leaf])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_penalty_on_the_input_of_a_network(backend):
    """The common form: the gradient with respect to the image, penalised in the weights of the layer before."""
    case = simple_case()
    layer = nn.Conv2d(2, 4, 1).double()
    images = torch.rand(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = cgc_loss((layer(images), case.views[1]), case.views[2:], case.transform, backend=backend, **case.settings)
    (grad,) = torch.autograd.grad(loss, images, create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSAL):
        grad.square().sum().backward()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_penalty_through_the_weight_of_the_loss(backend):
    """d(w loss)/dx depends on w: refused too, rather than right in some backends and wrong in others."""
    case = simple_case()
    leaves = case.leaves()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(weight * case.loss(leaves, backend), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.autograd.grad(grad.sum(), weight)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_hessian_of_torch_func_is_refused(backend):
    maps = torch.rand(2, 2, 2, 2, dtype=torch.float64)
    crop = CropFlip.identity(2, 4)

    def loss(m):
        return heatmap_loss(m, maps[1], crop, image_size=4, backend=backend)

    with pytest.raises(RuntimeError):
        torch.func.grad(lambda m: torch.func.grad(loss)(m).square().sum())(maps[0])
    with pytest.raises(RuntimeError):
        torch.autograd.functional.hessian(loss, maps[0])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_other_terms_may_be_differentiated_twice(backend):
    """A gradient penalty on the logits beside our loss: both give what they give alone."""
    case = simple_case()
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh()).double()
    images = torch.rand(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def ours(features):
        return cgc_loss((features, case.views[1]), case.views[2:], case.transform, backend=backend, **case.settings)

    def penalty(features):
        (grad,) = torch.autograd.grad(features.square().sum(), images, create_graph=True)
        return grad.square().sum()

    def parameter_grads(*terms):
        features = network(images)
        return torch.autograd.grad(sum(term(features) for term in terms), list(network.parameters()))

    together = parameter_grads(ours, penalty)
    for both, one, other in zip(together, parameter_grads(ours), parameter_grads(penalty), strict=True):
        assert_close(both, one + other, 1e-12)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_create_graph_leaves_first_derivatives_right(backend):
    case = simple_case(consistency=0.3)
    leaves = case.leaves()
    plain = torch.autograd.grad(case.loss(leaves, backend), leaves)
    loss = case.loss(leaves, backend)
    with_graph = torch.autograd.grad(loss, leaves, create_graph=True)
    for one, other in zip(with_graph, plain, strict=True):
        assert_same_bits(one.detach(), other)
    loss = case.loss(leaves, backend)
    loss.backward(create_graph=False)
    for leaf, other in zip(leaves, plain, strict=True):
        assert_same_bits(leaf.grad, other)


def test_the_message_says_what_to_do():
    assert "build the penalty from other terms" in double_backward.MESSAGE


# torch's own, when its forward mode is first used
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["torch", CPP])
def test_forward_mode_is_refused(backend):
    """An operator without a forward-mode formula drops the tangent and gives 0."""
    maps, crop = torch.rand(2, 3, 4, 4, dtype=torch.float64), CropFlip.identity(3, 8)
    with pytest.raises(RuntimeError, match="forward-mode tangent; use backend='reference'"):
        torch.func.jvp(lambda m: heatmap_loss(m, maps[1], crop, image_size=8, backend=backend), (maps[0],), (maps[0],))
    case = simple_case()
    features, gradients = case.views[:2]
    with pytest.raises(RuntimeError, match="reverse mode, got a forward-mode tangent"):
        torch.func.jvp(lambda f: gradcam(f, gradients, backend=backend).sum(), (features,), (features,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(features, torch.ones_like(features))
        with pytest.raises(RuntimeError, match="reverse mode"):
            cgc_loss((dual, gradients), case.views[2:], case.transform, backend=backend, **case.settings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("objective", ["released", "mse"])
def test_torch_func_by_the_backends_that_the_errors_name(objective):
    first, second = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    tangent, crop = torch.rand_like(first), CropFlip.identity(3, 8)

    def loss(backend):
        return lambda maps: heatmap_loss(maps, second, crop, image_size=8, objective=objective, backend=backend)

    leaf = first.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss("torch")(leaf), leaf)
    with pytest.raises(RuntimeError, match="forward-mode tangent; use backend='reference'"):
        torch.func.jvp(loss("auto"), (first,), (tangent,))
    assert_close(torch.func.jvp(loss("reference"), (first,), (tangent,))[1], (want * tangent).sum(), 1e-10)
    for backend in ("torch", "reference"):
        assert_close(torch.func.grad(loss(backend))(first), want, 1e-10)
