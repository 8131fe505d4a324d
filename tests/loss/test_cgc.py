"""The whole loss: equal to the reference at every size, and its laws."""

import math

import pytest
import torch
from hypothesis import given

from cgc_kernels import CropFlip, cgc_loss, gradcam, heatmap_loss
from cgc_kernels.options import OBJECTIVES
from tests.support.cases import BACKENDS, EVERY_BACKEND, VIEWS, assert_same_loss, cases, evaluate, examples, simple_case
from tests.support.compare import assert_close


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


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_twins_that_agree_to_rounding_keep_their_gradient(backend):
    """Maps that differ by 1e-9, whose cosine is 1 to the last bit or above: the gradient is what they differ by."""
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(16, 3, 3, generator=generator, dtype=torch.float64) + 0.1
    augmented = original * (1 + 1e-9 * torch.randn(16, 3, 3, generator=generator, dtype=torch.float64))
    crop, found = CropFlip.identity(16, (9, 11)), {}
    for name in ("reference", backend):
        leaves = [maps.clone().requires_grad_() for maps in (original, augmented)]
        loss = heatmap_loss(*leaves, crop, image_size=(9, 11), objective="mse", backend=name)
        found[name] = torch.stack(torch.autograd.grad(loss, leaves))
    error = (found[backend] - found["reference"]).abs().flatten(2).amax(2)
    assert (error < 1e-5 * found["reference"].abs().flatten(2).amax(2)).all()


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_a_training_step(backend):
    """Maps and views as large as they are in use, with a feature tensor beyond a block; one case, not tiny."""
    case = simple_case(batch=6, channels=70, side=(7, 7), size=(224, 160), weighting="elementwise")
    assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)
    case = simple_case(batch=2, channels=3, side=(14, 9), size=(100, 131), transform="warp")
    assert_same_loss(evaluate(case, backend), evaluate(case, "reference"), case)
