"""The whole loss: every backend against the reference, and the laws that the loss obeys."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given

from cgc_kernels import CropFlip, cgc_loss, gradcam, heatmap_loss
from cgc_kernels.options import OBJECTIVES
from tests.support.cases import (
    BACKENDS,
    CPP,
    EVERY_BACKEND,
    VIEWS,
    assert_same_loss,
    cases,
    crop_flip,
    evaluate,
    examples,
    lay_out,
    poison,
    simple_case,
    strides,
)
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_reference(backend):
    @examples
    @given(cases())
    def check(case):
        assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_equals_the_reference(backend):
    """On the same rounded inputs; temperatures from 0.07, since logits carry the rounding of a cosine over tau."""

    @examples
    @given(cases(low_temperature=0.07, kinds=("ordinary", "ordinary", "equal", "dead")))
    def check(case):
        case = case.to(torch.float32)
        result = evaluate(case, backend)
        assert result[0].dtype == torch.float32
        truth = case.to(torch.float64)
        # The ReLU's side of a sum near zero is a matter of rounding, and so is its gradient.
        sums = [ungated(*truth.views[i : i + 2], case.settings["weighting"]) for i in (0, 2)]
        if any((s.abs() < 1e-4 * s.abs().amax()).any() for s in sums):
            return
        assert_same_loss(result, evaluate(truth, "reference"), truth, 1e-5, grad_tol=2e-4, oracle=True)

    check()


def ungated(features, gradients, weighting):
    """Heatmaps before the ReLU."""
    if gradients.dim() == 4 and weighting == "gradcam":
        gradients = gradients.mean(dim=(2, 3))
    gradients = gradients if gradients.dim() == 4 else gradients[:, :, None, None]
    return (features * gradients).sum(dim=1)


# ---- Laws


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("objective", ["released", "paper"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_batch_of_one(backend, objective, transform):
    """No negatives: 0 with zero gradients, whatever the dtype, before the consistency term."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case = simple_case(batch=1, objective=objective, transform=transform, dtype=dtype)
        loss, grads = evaluate(case, backend)
        assert loss == 0
        assert all((grad == 0).all() for grad in grads.values())
    case = simple_case(batch=1, objective=objective, transform=transform, consistency=2.0)
    loss, grads = evaluate(case, backend)
    assert_close(loss, 2 * (1 - positives(case).mean()), 1e-12)
    assert all((grad != 0).any() for grad in grads.values())


def positives(case):
    """Cosines of the pairs, [B], from the reference's mean square, one sample at a time."""
    batch = len(case.views[0])
    pixels = math.prod(case.settings["image_size"])
    keep = {k: v for k, v in case.settings.items() if k in ("image_size", "eps", "weighting")}
    squares = []
    for i in range(batch):
        views_ = [v[i : i + 1] for v in case.views]
        one = (
            CropFlip(*(f[i : i + 1] for f in case.transform))
            if isinstance(case.transform, CropFlip)
            else case.transform[i : i + 1]
        )
        squares.append(cgc_loss(views_[:2], views_[2:], one, objective="mse", backend="reference", **keep))
    return 1 - torch.stack(squares) * pixels / 2


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_permuting_the_batch(backend, objective):
    case = simple_case(batch=7, objective=objective, consistency=0.5)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    permuted = case._replace(
        views=tuple(v[order] for v in case.views), transform=CropFlip(*(f[order] for f in case.transform))
    )
    loss, grads = evaluate(case, backend)
    permuted_loss, permuted_grads = evaluate(permuted, backend)
    assert_close(permuted_loss, loss, 1e-12)
    for name in VIEWS:
        assert_close(permuted_grads[name], grads[name][order], 1e-11, what=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_consistency_adds_exactly_its_term(backend, objective):
    case = simple_case(batch=4, objective=objective)
    plain = evaluate(case, backend)[0]
    for weight in (0.3, 10.0):
        case.settings["consistency"] = weight
        assert_close(evaluate(case, backend)[0] - plain, weight * (1 - positives(case).mean()), 1e-11)


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_consistency_alone_is_what_the_term_adds(backend, transform):
    """The value, and all gradients, which add up."""
    case = simple_case(batch=4, objective="consistency", transform=transform)
    loss, grads = evaluate(case, backend)
    assert_close(loss, 1 - positives(case).mean(), 1e-12)
    plain, whole = (
        evaluate(simple_case(batch=4, transform=transform, consistency=weight), "reference")[1] for weight in (0.0, 1.0)
    )
    for name in VIEWS:
        assert_close(grads[name], whole[name] - plain[name], 1e-11, what=name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_consistency_alone_at_its_bounds(backend):
    """0 of identical views, 1/2 where the matrix shows nothing; a batch of one is as good as any."""
    case = simple_case(batch=1, objective="consistency", transform=CropFlip.identity(1, (9, 11)))
    loss, grads = evaluate(case._replace(views=case.views[:2] * 2), backend)
    assert 0 <= loss < 1e-14
    assert all(grad.abs().amax() < 1e-6 for grad in grads.values())
    blind = torch.eye(3, dtype=torch.float64)[None].clone()
    blind[0, 0, 2] = 1e6
    loss, grads = evaluate(case._replace(transform=blind), backend)
    assert_close(loss, torch.tensor(0.5, dtype=torch.float64), 1e-14)
    assert all((grads[name] == 0).all() for name in VIEWS[:2])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_mean_square_is_two_minus_two_cosines(backend):
    case = simple_case(batch=4, objective="mse", transform="warp")
    assert_close(evaluate(case, backend)[0], (2 - 2 * positives(case).mean()) / 99, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_mean_square_of_identical_views_is_never_negative(backend, dtype):
    for seed in range(30):
        case = simple_case(
            batch=4, side=(4, 7), seed=seed, objective="mse", transform=CropFlip.identity(4, (9, 11))
        ).to(dtype)
        loss, grads = evaluate(case._replace(views=case.views[:2] * 2), backend)
        assert 0 <= loss < (1e-10 if dtype == torch.float32 else 1e-16)
        assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nan_in_one_sample_makes_the_loss_nan(backend, weighting, transform, objective):
    pooled = weighting == "pooled"
    for view in range(4):
        for sample in (0, 2):
            for dtype in (torch.float32, torch.float64):
                case = simple_case(
                    pooled=pooled,
                    objective=objective,
                    transform=transform,
                    weighting="gradcam" if pooled else weighting,
                ).to(dtype)
                case.views[view][sample, 1] = float("nan")
                assert evaluate(case, backend)[0].isnan(), f"{VIEWS[view]}[{sample}]"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_infinity_is_never_a_finite_loss_by_accident(backend, objective):
    """inf / inf is NaN: an overflowed feature is not hidden."""
    for view in (0, 2):
        case = simple_case(objective=objective)
        case.views[view + 1].abs_()
        case.views[view][1, 1] = float("inf")
        assert evaluate(case, backend)[0].isnan()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_warp_that_sees_nothing(backend, objective):
    """No gradient to the original view from that sample, and the loss is finite."""
    case = simple_case(objective=objective, consistency=1.0)
    blind = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    blind[1, 0, 2] = 1e6
    loss, grads = evaluate(case._replace(transform=blind), backend)
    assert loss.isfinite()
    assert (grads["features"][1] == 0).all()
    assert (grads["features"][0] != 0).any()
    everything_blind = blind[1:2].expand(3, 3, 3)
    loss, grads = evaluate(case._replace(transform=everything_blind), backend)
    assert loss.isfinite()
    assert all((grads[name] == 0).all() for name in VIEWS[:2])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_the_stages_make_the_whole(backend):
    for objective in OBJECTIVES:
        for transform in ("crop", "warp"):
            case = simple_case(objective=objective, transform=transform, consistency=0.4, temperature=0.2)
            heatmaps = [gradcam(*case.views[i : i + 2], backend=backend) for i in (0, 2)]
            settings = {name: value for name, value in case.settings.items() if name != "weighting"}
            loss = heatmap_loss(*heatmaps, case.transform, backend=backend, **settings)
            assert_close(loss, evaluate(case, backend)[0], 1e-13)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_objectives_differ(backend):
    losses = {round(float(evaluate(simple_case(objective=o), backend)[0]), 9) for o in OBJECTIVES}
    weightings = {round(float(evaluate(simple_case(weighting=w), backend)[0]), 9) for w in ("gradcam", "elementwise")}
    assert len(losses) == len(OBJECTIVES)
    assert len(weightings) == 2


# ---- Which gradients, in which form


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


# ---- Repeatability


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_output_is_written(backend, objective, weighting):
    pooled = weighting == "pooled"
    for layout in ("contiguous", "channels_last"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            case = simple_case(
                batch=5, channels=19, pooled=pooled, objective=objective, weighting="gradcam" if pooled else weighting
            ).to(dtype)
            case = case._replace(views=tuple(lay_out(v, layout) for v in case.views))
            clean = evaluate(case, backend)
            with poison():
                loss, grads = evaluate(case, backend)
            assert loss.isfinite()
            assert_same_bits(loss, clean[0])
            for name in VIEWS:
                assert grads[name].isfinite().all()
                assert_same_bits(grads[name], clean[1][name], name)


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("backend", [CPP])
def test_250_reruns_and_any_threads_are_equal_to_the_last_bit(backend, transform):
    case = simple_case(batch=33, channels=20, side=(5, 6), transform=transform, dtype=torch.float32, consistency=1.0)
    first = evaluate(case, backend)
    before = torch.get_num_threads()
    try:
        for rerun in range(250):
            if rerun % 50 == 0:
                torch.set_num_threads((1, 2, 3, 4, 8)[rerun // 50])
            loss, grads = evaluate(case, backend)
            assert_same_bits(loss, first[0])
            for name in VIEWS:
                assert_same_bits(grads[name], first[1][name], name)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257])
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_sizes(backend, batch):
    case = simple_case(batch=batch, channels=2, side=(2, 3), size=(5, 4), temperature=0.1)
    assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)


@pytest.mark.parametrize("batch", [1000, pytest.param(4097, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_batches(backend, batch):
    case = simple_case(batch=batch, channels=2, side=(2, 3), size=(5, 4), temperature=0.1)
    assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)


@pytest.mark.parametrize("backend", [CPP])
def test_concurrent_callers(backend):
    """Several Python threads at once, as DataParallel and Hogwild call it."""
    given_ = [simple_case(batch=9, channels=30, seed=seed) for seed in range(4)]
    expected = [evaluate(case, backend) for case in given_]

    def work(i):
        return [evaluate(given_[i], backend) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for i, results in enumerate(pool.map(work, range(4))):
            for loss, grads in results:
                assert_same_bits(loss, expected[i][0])
                for name in VIEWS:
                    assert_same_bits(grads[name], expected[i][1][name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_a_training_step(backend):
    """Maps and views as large as they are in use, with a feature tensor beyond a block; one case, not tiny."""
    case = simple_case(batch=6, channels=70, side=(7, 7), size=(224, 160), weighting="elementwise")
    assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)
    case = simple_case(batch=2, channels=3, side=(14, 9), size=(100, 131), transform="warp")
    assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)
