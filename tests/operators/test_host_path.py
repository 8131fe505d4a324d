"""How a call reaches the kernels: a plain autograd.Function in eager mode, the registered operators everywhere else."""

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from cgc_kernels import CropFlip, cgc_loss, gradcam, heatmap_loss
from cgc_kernels.ops.cam import prepare
from cgc_kernels.ops.resample import transform_tensors
from cgc_kernels.options import OBJECTIVES
from tests.support.cases import CPP, VIEWS, WEIGHTINGS, simple_case
from tests.support.compare import assert_close, assert_same_bits
from tests.support.dispatched import Dispatched

pytestmark = pytest.mark.parametrize("backend", [CPP])
SIZE = (9, 11)


def weighted(pooled, weighting, **settings):
    return simple_case(pooled=pooled, weighting=weighting, consistency=0.6, **settings)


def through_the_operator(case, leaves, namespace="cgc_kernels"):
    """The loss by the registered operator, with the autograd formula of torch.library."""
    given, elementwise = case.settings, case.settings["weighting"] == "elementwise"
    views = [*prepare(*leaves[:2], elementwise), *prepare(*leaves[2:], elementwise)]
    settings = (*given["image_size"], given["temperature"], elementwise, OBJECTIVES.index(given["objective"]))
    operator = getattr(torch.ops, namespace).cgc.default
    return operator(*views, transform_tensors(case.transform), *settings, given["consistency"], given["eps"])[0]


def check_eager_equals_the_operator(backend, weighting, objective, dtype, namespace="cgc_kernels"):
    case = weighted(*WEIGHTINGS[weighting], objective=objective).to(dtype)
    leaves, others = case.leaves(), case.leaves()
    loss, registered = case.loss(leaves, backend), through_the_operator(case, others, namespace)
    assert type(loss.grad_fn).__name__ == "CgcBackward"
    assert type(registered.grad_fn).__name__.startswith("GeneratedBackward")
    assert_same_bits(loss.detach(), registered.detach())
    grads, expected = torch.autograd.grad(2.5 * loss, leaves), torch.autograd.grad(2.5 * registered, others)
    for name, one, other in zip(VIEWS, grads, expected, strict=True):
        assert_same_bits(one, other, name)
        assert one.stride() == other.stride(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_eager_equals_the_operator(backend, weighting, objective, dtype):
    check_eager_equals_the_operator(backend, weighting, objective, dtype)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_stages_equal_their_operators(backend, weighting):
    case = weighted(*WEIGHTINGS[weighting])
    elementwise = case.settings["weighting"] == "elementwise"
    results = []
    for eager in (True, False):
        leaves = case.leaves()
        if eager:
            maps = [gradcam(*leaves[i : i + 2], weighting=case.settings["weighting"], backend=backend) for i in (0, 2)]
            loss = heatmap_loss(*maps, case.transform, image_size=SIZE, backend=backend)
        else:
            ops = torch.ops.cgc_kernels
            maps = [ops.cam(*prepare(*leaves[i : i + 2], elementwise), elementwise)[0] for i in (0, 2)]
            rows = ops.resample(*maps, transform_tensors(case.transform), *SIZE, 1e-8, 0)[:3]
            loss = ops.contrast(*rows, 0, len(rows[0]), 0.5)[0]
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for name, one, other in zip(("loss", *VIEWS), *results, strict=True):
        assert_same_bits(one, other, name)


@pytest.mark.parametrize("weighting", ["pooled", "elementwise"])
def test_one_operator_each_way_and_nothing_else(backend, weighting):
    """No copy, no packing of crops, no view."""
    case = weighted(*WEIGHTINGS[weighting])
    leaves = case.leaves()
    with Dispatched() as forward:
        loss = case.loss(leaves, backend)
    with Dispatched() as backward:
        torch.autograd.grad(loss, leaves, torch.ones_like(loss))
    assert forward.operators == [torch.ops.cgc_kernels.cgc.default]
    assert [op for op in backward.operators if "ones_like" not in str(op)] == [
        torch.ops.cgc_kernels.cgc_backward.default
    ]


def test_the_node_of_each_stage_is_named_after_it(backend):
    case = simple_case()
    heatmaps = gradcam(*case.leaves()[:2], backend=backend)
    assert type(heatmaps.grad_fn).__name__ == "CamBackward"
    loss = heatmap_loss(heatmaps, heatmaps, case.transform, image_size=SIZE, backend=backend)
    assert "Contrast" in str(loss.grad_fn.next_functions) + str(loss.grad_fn)


def test_without_gradients_nothing_is_kept(backend):
    case = simple_case()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), Dispatched() as forward:
            assert case.loss(case.leaves(), backend).grad_fn is None
        assert torch.ops.cgc_kernels.cgc.default in forward.operators


# ---- Modes and transforms of torch


def test_fake_tensors(backend):
    with FakeTensorMode():
        features, pooled = torch.empty(3, 4, 5, 5, requires_grad=True), torch.empty(3, 4, requires_grad=True)
        crop = CropFlip(*(torch.empty(3, dtype=torch.int32) for _ in range(4)), torch.empty(3, dtype=torch.bool))
        loss = cgc_loss((features, pooled), (features, pooled), crop, image_size=16, backend=backend)
        grads = torch.autograd.grad(loss, (features, pooled))
    assert loss.shape == ()
    assert [g.shape for g in grads] == [(3, 4, 5, 5), (3, 4)]


def test_make_fx_records_the_registered_operators(backend):
    """What it records can be differentiated, too."""
    case = simple_case()
    leaves = case.leaves()

    def grads(features, gradients):
        return torch.autograd.grad(case.loss([features, gradients, *leaves[2:]], backend), (features, gradients))

    traced = make_fx(grads)(*leaves[:2])
    targets = {str(node.target) for node in traced.graph.nodes}
    assert {"cgc_kernels.cgc.default", "cgc_kernels.cgc_backward.default"} <= targets
    for one, other in zip(traced(*leaves[:2]), grads(*leaves[:2]), strict=True):
        assert_same_bits(one, other)
    forward = make_fx(lambda features: case.loss([features, *leaves[1:]], backend))(leaves[0])
    assert_same_bits(torch.autograd.grad(forward(leaves[0]), leaves[0])[0], grads(*leaves[:2])[0])


@pytest.mark.parametrize("strict", [True, False])
def test_export(backend, strict):
    case = simple_case()

    class Loss(torch.nn.Module):
        def forward(self, *views):
            return case.loss(views, backend)

    exported = torch.export.export(Loss(), case.views, strict=strict)
    assert "cgc_kernels.cgc.default" in [str(node.target) for node in exported.graph.nodes]
    assert_same_bits(exported.module()(*case.views), case.loss(case.views, backend))


def test_vmap(backend):
    """Views, weights and crops of several batches, one call of the operator for each of them."""
    several = [simple_case(seed=seed) for seed in range(2)]
    views = [torch.stack(v).requires_grad_() for v in zip(*(case.views for case in several), strict=True)]
    crops = CropFlip(*map(torch.stack, zip(*(case.transform for case in several), strict=True)))

    def loss(views, crop):
        return several[0]._replace(transform=CropFlip(*crop)).loss(views, backend)

    losses = torch.vmap(loss)(views, tuple(crops))
    for found, case in zip(losses, several, strict=True):
        assert_same_bits(found.detach(), case.loss(case.views, backend))
    grads = torch.autograd.grad(losses.sum(), views)
    for index, case in enumerate(several):
        leaves = case.leaves()
        expected = torch.autograd.grad(case.loss(leaves, backend), leaves)
        for name, grad, other in zip(VIEWS, grads, expected, strict=True):
            assert_same_bits(grad[index], other, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transforms_that_differentiate_are_refused(backend):
    """torch.func asks for more than torch.library's formulas give: an error that says what serves instead."""
    case = simple_case()
    with pytest.raises(RuntimeError, match=r"torch.func .* use backend='torch' or backend='reference'"):
        torch.func.grad(lambda f: case.loss([f, *case.views[1:]], backend))(case.views[0])
    with pytest.raises(RuntimeError, match="reverse mode, got a forward-mode tangent"):
        torch.func.jvp(lambda f: case.loss([f, *case.views[1:]], backend), case.views[:1], case.views[:1])


# ---- What is saved between forward and backward


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_saved_tensors_may_be_kept_elsewhere(backend, weighting):
    case = weighted(*WEIGHTINGS[weighting])
    leaves, packed = case.leaves(), []
    expected = torch.autograd.grad(case.loss(leaves, backend), leaves)

    def pack(tensor):
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.clone()):
        loss = case.loss(leaves, backend)
    assert {t.dtype for t in packed} == {torch.float64, torch.uint8, torch.int64, torch.bool}
    for name, grad, other in zip(VIEWS, torch.autograd.grad(loss, leaves), expected, strict=True):
        assert_same_bits(grad, other, name)


def test_the_graph_may_be_kept(backend):
    case = weighted(False, "gradcam")
    leaves = case.leaves()
    loss = case.loss(leaves, backend)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for name, one, other in zip(VIEWS, first, torch.autograd.grad(loss, leaves), strict=True):
        assert_same_bits(one, other, name)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("what", ["features", "crop"])
def test_what_the_backward_reads_must_not_change(backend, what):
    case = copy.deepcopy(simple_case(objective="paper"))
    leaves = case.leaves()
    views = [leaf.clone() for leaf in leaves]
    loss = case.loss(views, backend)
    with torch.no_grad():
        (views[0] if what == "features" else case.transform.top).add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_gradient_of_any_stride(backend):
    """An expanded gradient of the heatmaps has stride 0."""
    leaves = simple_case().leaves()[:2]
    heatmaps = gradcam(*leaves, backend=backend)
    expected = torch.autograd.grad(heatmaps, leaves, torch.full_like(heatmaps, 1.5), retain_graph=True)
    expanded = torch.tensor(1.5, dtype=torch.float64).expand_as(heatmaps)
    for one, other in zip(torch.autograd.grad(heatmaps, leaves, expanded), expected, strict=True):
        assert_same_bits(one, other)


def test_positives_alone_may_have_a_gradient(backend):
    """Nothing arrives at the rows and keys of the mse objective."""
    case = simple_case(objective="mse")
    maps = [m.requires_grad_() for m in torch.rand(2, 3, 3, 4, dtype=torch.float64).unbind(0)]
    loss = heatmap_loss(*maps, case.transform, image_size=SIZE, objective="mse", backend=backend)
    peer = heatmap_loss(*maps, case.transform, image_size=SIZE, objective="mse", backend="torch")
    for one, other in zip(torch.autograd.grad(loss, maps), torch.autograd.grad(peer, maps), strict=True):
        assert_close(one, other, 1e-10)
