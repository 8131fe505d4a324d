"""The whole loss: what it takes and what it gives gradients for, in which dtypes, layouts and forms."""

import itertools

import pytest
import torch

from cgc_kernels import CropFlip, cgc_loss
from tests.support.cases import BACKENDS, CPP, EVERY_BACKEND, VIEWS, crop_flip, evaluate, lay_out, simple_case, strides
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits


@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=4)))
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradients_only_where_asked(backend, weighting, wanted):
    pooled = weighting == "pooled"
    case = simple_case(pooled=pooled, weighting="gradcam" if pooled else weighting)
    loss, grads = evaluate(case, backend, wanted)
    full_loss, full = evaluate(case, backend)
    assert_same_bits(loss, full_loss)
    assert list(grads) == [name for name, want in zip(VIEWS, wanted, strict=True) if want]
    for name, grad in grads.items():
        assert_same_bits(grad, full[name], name)
    leaves = [v.detach().requires_grad_(want) for v, want in zip(case.views, wanted, strict=True)]
    loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
    assert loss.requires_grad == any(wanted)


DTYPES = [(torch.float64, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.float32)]
DTYPES += [(low, gradients) for low in (torch.bfloat16, torch.float16) for gradients in (low, torch.float32)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_dtypes_and_layouts(backend, dtypes, weighting, layout):
    """Each gradient in its input's dtype and memory format, as exact as torch in the same dtype."""
    pooled = weighting == "pooled"
    case = simple_case(batch=5, channels=33, side=(5, 4), pooled=pooled, weighting="gradcam" if pooled else weighting)
    case = case.to(*dtypes)
    case = case._replace(views=tuple(lay_out(v, layout) for v in case.views))
    loss, grads = evaluate(case, backend)
    peer_loss, peer_grads = evaluate(case, "torch")
    exact_loss, exact_grads = evaluate(case.to(torch.float64), "reference")
    assert loss.dtype == (torch.float64 if dtypes[0] == torch.float64 else torch.float32)
    assert_close(loss, exact_loss, 1e-5, floor=1, oracle=True)
    assert_low_precision(loss, peer_loss, exact_loss, "loss", ulps=4)
    for i, name in enumerate(VIEWS):
        assert grads[name].dtype == case.views[i].dtype
        ulps = 2 if grads[name].dtype in (torch.bfloat16, torch.float16) else 50
        assert_low_precision(grads[name], peer_grads[name], exact_grads[name], name, ulps=ulps)
        if backend != "reference" and not (i % 2 and weighting == "gradcam"):
            assert strides(grads[name]) == strides(case.views[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_eps_does_not_vanish_in_16_bits(backend, dtype):
    """eps = 1e-8 is 0 in float16: a dead heatmap would divide by it."""
    case = simple_case(objective="paper").to(dtype)
    case.views[0][1].abs_().neg_()
    case.views[1][1].abs_()
    loss, grads = evaluate(case, backend)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_read_in_place(backend):
    """Neither copied into a buffer of their size nor written to."""
    for layout in ("contiguous", "channels_last"):
        case = simple_case(batch=2, channels=9)
        views_ = tuple(lay_out(v, layout) for v in case.views)
        before = [v.clone() for v in views_]
        evaluate(case._replace(views=views_), backend)
        for view, copy in zip(views_, before, strict=True):
            assert_same_bits(view, copy)


@pytest.mark.parametrize("backend", [CPP])
def test_saved_tensors_are_the_inputs_themselves(backend):
    """No hidden copy: what the operator keeps of contiguous and channels_last inputs is their memory."""
    case = simple_case(weighting="elementwise")
    saved = []
    for layout in ("contiguous", "channels_last"):
        saved.clear()
        leaves = [lay_out(v, layout).detach().requires_grad_() for v in case.views]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
            cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
        assert {leaf.data_ptr() for leaf in leaves} <= set(saved)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_upstream_gradient(backend):
    case = simple_case()
    _, grads = evaluate(case, backend)
    leaves = [v.detach().requires_grad_() for v in case.views]
    loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
    (loss.expand(4) * torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)).sum().backward()
    for name, leaf in zip(VIEWS, leaves, strict=True):
        assert_close(leaf.grad, 2.5 * grads[name], 1e-13)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_the_same_tensor_as_both_views(backend):
    """Its gradient is the sum of the two."""
    features, gradients = simple_case().views[:2]
    crop = crop_flip(torch.Generator().manual_seed(0), (9, 11), ["any"] * 3)
    leaf = features.clone().requires_grad_()
    cgc_loss((leaf, gradients), (leaf, gradients), crop, image_size=(9, 11), backend=backend).backward()
    apart = [features.clone().requires_grad_() for _ in range(2)]
    cgc_loss((apart[0], gradients), (apart[1], gradients), crop, image_size=(9, 11), backend=backend).backward()
    assert_close(leaf.grad, apart[0].grad + apart[1].grad, 1e-13)


@pytest.mark.parametrize("layout", ["contiguous", "columns", "sliced"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("objective", ["released", "paper"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_crops_in_any_integer_dtype(backend, objective, dtype, layout):
    """And of any stride: they are read where they lie."""
    case = simple_case(objective=objective)
    fields = [*(f.to(dtype) for f in case.transform[:4]), case.transform.flip]
    if layout == "columns":
        fields = [*torch.stack(fields[:4], dim=1).unbind(1), torch.stack([fields[4], ~fields[4]], dim=1)[:, 0]]
    elif layout == "sliced":
        fields = [torch.stack([f, f.new_zeros(len(f))], dim=1).flatten()[::2] for f in fields]
    expected, expected_grads = evaluate(case, backend)
    loss, grads = evaluate(case._replace(transform=CropFlip(*fields)), backend)
    assert_same_bits(loss, expected)
    for name in VIEWS:
        assert_same_bits(grads[name], expected_grads[name], name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_crops_expanded_with_stride_0(backend):
    case = simple_case()
    one = CropFlip(*(f[:1] for f in case.transform))
    loss, grads = evaluate(case._replace(transform=CropFlip(*(f.expand(3) for f in one))), backend)
    expected, expected_grads = evaluate(case._replace(transform=CropFlip(*(f.repeat(3) for f in one))), backend)
    assert_same_bits(loss, expected)
    for name in VIEWS:
        assert_same_bits(grads[name], expected_grads[name], name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_matrices_in_float32_and_as_affine(backend):
    case = simple_case(transform="warp")
    case.transform[:, 2] = torch.tensor([0.0, 0.0, 1.0])
    rounded = case.transform.float()
    loss = evaluate(case._replace(transform=rounded.double()), backend)[0]
    assert_same_bits(evaluate(case._replace(transform=rounded), backend)[0], loss)
    assert_same_bits(evaluate(case._replace(transform=rounded[:, :2]), backend)[0], loss)
    leaf = rounded.clone().requires_grad_()  # the matrix gets no gradient
    features = case.views[0].clone().requires_grad_()
    cgc_loss((features, case.views[1]), case.views[2:], leaf, backend=backend, **case.settings).backward()
    assert leaf.grad is None
