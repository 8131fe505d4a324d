"""The public functions as other software treats them: autocast, default dtypes, pickles, defaults, docstrings."""

import copy
import doctest
import pickle
from importlib import import_module
from types import ModuleType

import pytest
import torch

import cgc_kernels
from cgc_kernels import CGCLoss, cgc_loss, gradcam, heatmap_loss, info, metrics
from tests.support.cases import EVERY_BACKEND, VIEWS, evaluate, simple_case
from tests.support.compare import assert_same_bits
from tests.support.public import public_names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_autocast_around_the_call_changes_nothing(backend, dtype):
    """The backward runs outside of it, as PyTorch asks."""
    for given in (torch.float32, torch.bfloat16):
        case = simple_case(temperature=0.1).to(given)
        leaves = [v.detach().requires_grad_() for v in case.views]
        expected, grads = evaluate(case, backend)
        heatmaps = gradcam(*leaves[:2], backend=backend)
        with torch.autocast("cpu", dtype=dtype):
            loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
            assert_same_bits(gradcam(*leaves[:2], backend=backend), heatmaps)
            maps = [gradcam(*leaves[i : i + 2], backend=backend) for i in (0, 2)]
            chained = heatmap_loss(*maps, case.transform, image_size=(9, 11), temperature=0.1, backend=backend)
        assert_same_bits(loss.detach(), expected)
        assert chained.dtype == torch.float32
        assert abs(float((chained - loss).detach())) < 1e-5
        for name, grad in zip(VIEWS, torch.autograd.grad(loss, leaves), strict=True):
            assert_same_bits(grad, grads[name], name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_default_dtype_changes_nothing(backend):
    case = simple_case().to(torch.float32)
    loss, grads = evaluate(case, backend)
    torch.set_default_dtype(torch.float64)
    try:
        other_loss, other_grads = evaluate(case, backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(other_loss, loss)
    for name in VIEWS:
        assert_same_bits(other_grads[name], grads[name])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_no_grad_and_inference_mode(backend):
    case = simple_case(transform="warp")
    loss, _ = evaluate(case, backend)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            leaves = [v.clone() for v in case.views]
            quiet = cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
        assert not quiet.requires_grad
        assert_same_bits(quiet.clone(), loss)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_module(backend):
    case = simple_case(objective="paper", consistency=2.0)
    criterion = CGCLoss(**case.settings, backend=backend)
    expected = cgc_loss(case.views[:2], case.views[2:], case.transform, backend=backend, **case.settings)
    for module in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert_same_bits(module(case.views[:2], case.views[2:], case.transform), expected)
    assert repr(criterion) == (
        "CGCLoss(image_size=(9, 11), temperature=0.5, weighting='gradcam', objective='paper', consistency=2.0, "
        f"eps=1e-08, backend='{backend}')"
    )
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


def test_defaults_are_the_documented_ones():
    case = simple_case()
    short = cgc_loss(case.views[:2], case.views[2:], case.transform, image_size=(9, 11))
    long = cgc_loss(
        *(case.views[:2], case.views[2:], case.transform),
        image_size=(9, 11),
        temperature=0.5,
        weighting="gradcam",
        objective="released",
        consistency=0.0,
        eps=1e-8,
        backend="auto",
    )
    assert_same_bits(short, long)
    assert_same_bits(CGCLoss(image_size=(9, 11))(case.views[:2], case.views[2:], case.transform), short)
    maps = [gradcam(*case.views[i : i + 2]) for i in (0, 2)]
    assert abs(float(heatmap_loss(*maps, case.transform, image_size=(9, 11)) - short)) < 1e-12


def test_a_number_as_image_size_is_a_square():
    case = simple_case(size=(9, 9))
    square = cgc_loss(case.views[:2], case.views[2:], case.transform, image_size=9)
    assert_same_bits(square, evaluate(case, "auto")[0])


NEEDS = {"cgc_kernels.overlay": "matplotlib", "cgc_kernels.record": "torchvision"}


@pytest.mark.parametrize("name", [name for name in public_names() if not name.endswith("__")])
def test_examples_of_the_docstrings_run(name):
    pytest.importorskip(NEEDS.get(name, "torch"), reason="the example's own")
    module, _, attribute = name.rpartition(".")
    names = {**vars(cgc_kernels), **vars(import_module(module)), "torch": torch, "nn": torch.nn}
    if isinstance(names[attribute], ModuleType):
        names |= vars(names[attribute])
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(names[attribute], name, module=False, extraglobs=names):
        assert runner.run(test).failed == 0, test.name


def test_public_names():
    for name in cgc_kernels.__all__:
        assert getattr(cgc_kernels, name) is not None
    measures = [value for name in metrics.__all__ if callable(value := getattr(metrics, name))]
    for function in (cgc_loss, heatmap_loss, gradcam, info, CGCLoss, *measures):
        assert "Example::" in function.__doc__, function
