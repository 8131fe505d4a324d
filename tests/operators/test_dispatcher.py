"""Every backend in torch's modes and tracers: right to the last bit, or refused by a message that names what serves."""

import copy
import pickle
import re
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from cgc_kernels import CGCLoss, CropFlip, RandomCropFlip
from tests.support.cases import CPP, VIEWS, simple_case
from tests.support.compare import assert_same_bits

pytestmark = [
    pytest.mark.parametrize("backend", [CPP, "torch", "reference"]),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Anomaly"),
]
UNTRACED = "backend must be another than 'reference', which reads the crops' values"


@pytest.fixture
def case():
    return simple_case()


def traced(backend: str):
    """Of a call that is traced without values, which one backend refuses."""
    return pytest.raises(RuntimeError, match=UNTRACED) if backend == "reference" else nullcontext()


@contextmanager
def right_or(message: str):
    """A block that asserts what is right, or is refused by a message."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(message, str(error)):
            raise


def gradients(loss, leaves, **how):
    return dict(zip(VIEWS, torch.autograd.grad(loss, leaves, **how), strict=True))


def assert_same_gradients(found, expected):
    for name, value in expected.items():
        assert_same_bits(found[name], value, name)


def expected_gradients(case, backend):
    leaves = case.leaves()
    return gradients(case.loss(leaves, backend), leaves)


# ---- Autograd.


def test_inference_mode(case, backend):
    """Its tensors are constants outside of it; where one backend keeps them for the backward, torch refuses that."""
    expected = case.loss(case.views, backend)
    with torch.inference_mode():
        assert_same_bits(case.loss(case.views, backend).clone(), expected)
        views = [view.clone() for view in case.views]
    assert_same_bits(case.loss(views, backend), expected)
    views[0] = case.leaves()[0]
    with right_or(r"Inference tensors cannot be saved for backward"):
        (found,) = torch.autograd.grad(case.loss(views, backend), views[:1])
        assert_same_bits(found, expected_gradients(case, backend)["features"])


def test_a_kept_graph_gives_the_same_twice(case, backend):
    leaves = case.leaves()
    loss, expected = case.loss(leaves, backend), expected_gradients(case, backend)
    for _ in range(2):
        assert_same_gradients(gradients(loss, leaves, retain_graph=True), expected)
    loss.backward()
    assert_same_gradients(dict(zip(VIEWS, (leaf.grad for leaf in leaves), strict=True)), expected)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("what", [*VIEWS, "crop"])
def test_a_change_in_place_is_refused_or_without_effect(case, backend, what):
    """Never a gradient of values that are no more."""
    case = copy.deepcopy(case)
    expected, leaves = expected_gradients(case, backend), case.leaves()
    views = [leaf.clone() for leaf in leaves]
    loss = case.loss(views, backend)
    with torch.no_grad():
        dict(zip([*VIEWS, "crop"], [*views, case.transform.top], strict=True))[what].add_(1)
    with right_or("inplace"):
        assert_same_gradients(gradients(loss, leaves), expected)


def test_anomaly_mode(case, backend):
    """Nothing is NaN on the way; a NaN that comes from outside is traced to its place."""
    leaves = case.leaves()
    with torch.autograd.detect_anomaly():
        assert_same_gradients(expected_gradients(case, backend), expected_gradients(case, backend))
        loss = case.loss(leaves, backend)
        with pytest.raises(RuntimeError, match="returned nan values"):
            gradients(loss, leaves, grad_outputs=torch.full_like(loss, torch.nan))


def test_recomputed_in_the_backward(case, backend):
    leaves = case.leaves()
    loss = torch.utils.checkpoint.checkpoint(lambda *views: case.loss(views, backend), *leaves, use_reentrant=False)
    assert_same_gradients(gradients(loss, leaves), expected_gradients(case, backend))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_copies_are_the_same(case, backend, twin):
    """Of leaves, crops, a CAM's pairs, the module and the rule that draws crops."""
    expected = case.loss(case.views, backend)
    assert_same_bits(case._replace(transform=twin(case.transform)).loss(twin(case.views), backend), expected)
    module = twin(CGCLoss(**case.settings, backend=backend))
    assert_same_bits(module(case.views[:2], case.views[2:], case.transform), expected)
    rule = twin(RandomCropFlip(8, scale=(0.3, 0.9), p=0.25))
    assert repr(rule) == repr(RandomCropFlip(8, scale=(0.3, 0.9), p=0.25))


# ---- Tracers.


def check_on_empty(case, backend, empty, device):
    views = [empty(view).requires_grad_() for view in case.views]
    loss = case._replace(transform=CropFlip(*map(empty, case.transform))).loss(views, backend)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float64, device)
    for grad, view in zip(torch.autograd.grad(loss, views), case.views, strict=True):
        assert (grad.shape, grad.dtype, grad.device.type) == (view.shape, view.dtype, device)


def test_fake_tensors(case, backend):
    with FakeTensorMode(), traced(backend):
        check_on_empty(case, backend, lambda like: torch.empty(like.shape, dtype=like.dtype), "cpu")


def test_meta_tensors(case, backend):
    """By the fallback alone, which "auto" takes."""
    refused = pytest.raises(RuntimeError, match=r"needs CPU tensors, got tensors on meta; use backend='auto'")
    with refused if backend == "cpp" else traced(backend):
        check_on_empty(case, backend, lambda like: like.to("meta"), "meta")
    check_on_empty(case, "auto", lambda like: like.to("meta"), "meta")


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(case, backend, mode):
    def step(*tensors):
        loss = Loss(case, backend)(*tensors)
        return loss, *torch.autograd.grad(loss, tensors[:4])

    with traced(backend):
        graph = make_fx(step, tracing_mode=mode)(*case.leaves(), *case.transform)
        loss, *grads = graph(*case.views, *case.transform)
        assert_same_bits(loss, case.loss(case.views, backend))
        assert_same_gradients(dict(zip(VIEWS, grads, strict=True)), expected_gradients(case, backend))


class Loss(nn.Module):
    """The loss of views and crops that are both arguments."""

    def __init__(self, case, backend):
        super().__init__()
        self.case, self.backend = case, backend

    def forward(self, *tensors):
        return self.case._replace(transform=CropFlip(*tensors[4:])).loss(tensors[:4], self.backend)


@pytest.mark.parametrize("strict", [True, False])
def test_export_for_any_batch(case, backend, strict):
    given, other = (*case.views, *case.transform), simple_case(batch=5, seed=1)
    batch = torch.export.Dim("batch", min=2, max=64)
    how = {"strict": strict, "dynamic_shapes": {"tensors": tuple({0: batch} for _ in given)}}
    with traced(backend):
        exported = torch.export.export(Loss(case, backend), given, **how).module()
        for one in (case, other):
            assert_same_bits(exported(*one.views, *one.transform), one.loss(one.views, backend))


def test_vmap(case, backend):
    """One call for each by the fused kernels; test_host_path has their gradients."""
    several = [simple_case(seed=seed) for seed in range(2)]
    views = [torch.stack(views) for views in zip(*(one.views for one in several), strict=True)]
    crops = [torch.stack(fields) for fields in zip(*(one.transform for one in several), strict=True)]
    call = torch.vmap(Loss(case, backend))
    if backend == "cpp":
        for found, one in zip(call(*views, *crops), several, strict=True):
            assert_same_bits(found, one.loss(one.views, backend))
        return
    with pytest.raises(RuntimeError, match=r"within torch\.vmap.* call it for each batch"):
        call(*views, *crops)
    with pytest.raises(RuntimeError, match=r"within torch\.vmap.* call it for each batch"):
        torch.vmap(torch.func.grad(lambda view: case.loss([view, *case.views[1:]], backend)))(views[0])
