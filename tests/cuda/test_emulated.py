"""The CUDA kernels, executed on the CPU by the emulator, against the torch backend in float64."""

import math
from ctypes import byref

import pytest
import torch
from hypothesis import given, settings

from cgc_kernels import CropFlip, backends, cgc_loss, gradcam, heatmap_loss
from cgc_kernels.options import OBJECTIVES
from tests.cuda import simt
from tests.cuda.cases import LAYOUTS, case_of
from tests.cuda.launchers import Contrast, ContrastBackward, Scalar
from tests.loss import test_cgc
from tests.loss.test_contrast import check_shares
from tests.loss.test_golden import DATA, call, expected, mse_floor
from tests.loss.test_near_blind import check_rule, check_slivers
from tests.loss.test_resample_near_dead import UNSEEN, check_unseen
from tests.support.cases import (
    VIEWS,
    WEIGHTINGS,
    assert_same_loss,
    cases,
    evaluate,
    examples,
    lay_out,
    noise_floors,
    simple_case,
)
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits

pytestmark = pytest.mark.skipif(bool(simt.missing()), reason=simt.missing() or "there is one")


@pytest.fixture(scope="session")
def kernels():
    from tests.cuda.emulation import Emulation

    return Emulation()


def compare(kernels, case, tol=1e-10):
    with kernels.running():
        actual = evaluate(case, "cuda")
    assert_same_loss(actual, evaluate(case, "torch"), case, tol)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DATA)
def test_golden_cases(kernels, name, layout):
    for objective in ("released", "mse"):
        with kernels.running():
            loss, grads = evaluate(call(name, objective, layout), "cuda")
        expected_loss, expected_grads = expected(name, objective)
        assert_close(loss, expected_loss, 1e-10, floor=mse_floor(objective), what="loss")
        for key in VIEWS:
            assert_close(grads[key], expected_grads[key], 1e-10, what=key)


SHAPES = [
    (1, 1, (1, 1)),
    (2, 3, (7, 7)),
    (3, 49, (7, 9)),
    (15, 8, (1, 3)),
    (16, 64, (7, 7)),
    (17, 257, (3, 5)),
    (33, 3, (7, 7)),
    (65, 5, (2, 2)),
    (2, 64, (14, 14)),
    (3, 24, (16, 16)),
    (2, 7, (17, 17)),
    (2, 8, (32, 32)),
    (1, 1300, (2, 3)),
]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(kernels, shape, layout, weighting):
    """Odd and even, smaller and larger than a block's share in every dimension; every objective and transform."""
    index = SHAPES.index(shape) + list(WEIGHTINGS).index(weighting)
    objective = OBJECTIVES[index % len(OBJECTIVES)]
    transform = ("crop", "warp")[index % 2]
    case = case_of(*shape, weighting, layout, objective=objective, transform=transform, consistency=0.7)
    compare(kernels, case)


@pytest.mark.parametrize("transform", ["crop", "warp"])
def test_consistency_alone(kernels, transform):
    compare(kernels, case_of(5, 12, (4, 6), objective="consistency", transform=transform))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("transform", ["crop", "warp"])
def test_objectives_and_transforms(kernels, transform, objective):
    case = case_of(5, 12, (4, 6), objective=objective, transform=transform, consistency=2.0)
    compare(kernels, case)


@pytest.mark.parametrize("side", [(32, 30), (30, 32)])
def test_large_maps_of_unequal_sides(kernels, side):
    """Of all maps they leave the least shared memory beside tables of full size."""
    compare(kernels, case_of(1, 2, side))


@pytest.mark.parametrize("weighting", ["pooled", "gradcam"])
def test_as_many_channels_as_a_block_takes(kernels, weighting):
    """Of 512 samples each is two blocks', with 1024 channels for either, whose weights fill their shared memory."""
    features, gradients, *_ = case_of(512, 2048, (1, 1), weighting).to(torch.float32).views
    leaves = [t.detach().requires_grad_() for t in (features, gradients)]
    results = []
    for backend in ("cuda", "torch"):
        with kernels.running():
            maps = gradcam(*leaves, backend=backend)
            results.append([maps, *torch.autograd.grad(maps.square().sum(), leaves)])
    for got, wanted in zip(*results, strict=True):
        assert_close(got, wanted, 1e-5)


def test_a_view_of_more_pixels_than_32_bits_count(kernels):
    """Their number divides the mse objective."""
    case = case_of(1, 1, (1, 2), objective="mse", size=(2**16, 2**16))
    with kernels.running():
        loss, grads = evaluate(case, "cuda")
    exact_loss, exact_grads = evaluate(case, "torch")
    assert_close(loss, exact_loss, 1e-10, floor=2 / 2**32)  # 2 - 2 cos cancels
    for name in VIEWS:
        assert_close(grads[name], exact_grads[name], 1e-10, what=name)


@pytest.mark.parametrize("temperature", [0.005, 0.012, 0.07, 1.0, 10.0])
def test_temperatures(kernels, temperature):
    compare(kernels, case_of(37, 4, (3, 3), temperature=temperature), tol=1e-9)


def test_whatever_the_loss_takes(kernels):
    """Dead, near-dead, equal and one-pixel heatmaps, blind warps, crops of every kind, any eps."""

    @settings(examples, max_examples=60)
    @given(cases())
    def check(case):
        with kernels.running():
            actual = evaluate(case, "cuda")
        assert_same_loss(actual, evaluate(case, "reference"), case)

    check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_near_blind_views(kernels, dtype):
    with kernels.running():
        check_rule("cuda", dtype)
        check_slivers("cuda", dtype, 40)


def test_twins_that_agree_to_rounding_keep_their_gradient(kernels):
    with kernels.running():
        test_cgc.test_twins_that_agree_to_rounding_keep_their_gradient("cuda")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cell_that_no_pixel_sees_has_no_share_in_any(kernels, dtype):
    size, cells, unseen = UNSEEN[1]
    with kernels.running():
        for transform in (CropFlip.identity(3, size), torch.eye(3, dtype=torch.float64).expand(3, 3, 3)):
            check_unseen("cuda", dtype, size, cells, unseen, transform)


@pytest.mark.parametrize("layouts", [LAYOUTS, LAYOUTS[::-1]])
@pytest.mark.parametrize("channels", [3, 8])
def test_views_of_two_memory_formats(kernels, channels, layouts):
    """Vectors fit one view and not the other: [3, 2 x 2] numbers are whole vectors where rows of 3 channels are not."""
    case = case_of(3, channels, (2, 2), "gradcam")
    case = case._replace(views=tuple(lay_out(v, layouts[i // 2]) for i, v in enumerate(case.views)))
    compare(kernels, case)


def test_stages_by_themselves(kernels):
    """gradcam() and heatmap_loss() run the same kernels, or those of a stage alone."""
    for layout in LAYOUTS:
        for weighting in WEIGHTINGS:
            features, gradients, *_ = case_of(3, 1300, (3, 3), weighting, layout).views
            leaves = [t.detach().requires_grad_() for t in (features, gradients)]
            kind = "elementwise" if weighting == "elementwise" else "gradcam"
            results = []
            for backend in ("cuda", "torch"):
                with kernels.running():
                    maps = gradcam(*leaves, weighting=kind, backend=backend)
                    results.append([maps, *torch.autograd.grad(maps.square().sum(), leaves)])
            for got, wanted in zip(*results, strict=True):
                assert_close(got, wanted, 1e-11)
    ones = torch.ones(2, 1, 1, dtype=torch.float64)
    for eps in (2.0**-30, 1e-8):  # with the first a view of one pixel holds 1 to the last bit: no norm of zero
        with kernels.running():
            loss = heatmap_loss(
                ones, ones, CropFlip.identity(2, 1), image_size=1, backend="cuda", objective="mse", eps=eps
            )
        assert loss == 0
    case = simple_case(batch=6)
    maps = torch.rand(2, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    results = []
    for backend in ("cuda", "torch"):
        with kernels.running():
            loss = heatmap_loss(*maps, case.transform, image_size=(9, 11), backend=backend, consistency=0.5)
            results.append([loss, *torch.autograd.grad(loss, maps)])
    for got, wanted in zip(*results, strict=True):
        assert_close(got, wanted, 1e-10)


@pytest.mark.parametrize(("sizes", "length"), [((1, 1), 3), ((17, 3, 70), 5), ((20, 7), 70)])
def test_shares_of_the_samples(kernels, sizes, length):
    """What each rank of a group takes of stage contrast."""
    with kernels.running():
        check_shares(backends.named("cuda"), sizes, length)


@pytest.mark.parametrize("count", [65536, 8192])
def test_workspace_of_contrast(kernels, count):
    """Of 65,536 samples, or of a rank's eighth of them: 16 bytes a row, never [B, B]."""
    call = Contrast(65536, 49, 0, count, 0.5)
    with kernels.running() as launchers:
        assert launchers.needed("contrast", byref(call), byref(Scalar())) == 16 * count
        assert launchers.needed("contrast_backward", byref(ContrastBackward(call))) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_float32(kernels, weighting, layout):
    for side, channels in (((7, 7), 64), ((5, 3), 13)):
        case = case_of(5, channels, side, weighting, layout, consistency=0.5).to(torch.float32)
        truth = case.to(torch.float64)
        with kernels.running():
            actual = evaluate(case, "cuda")
        assert actual[0].dtype == torch.float32
        assert_same_loss(actual, evaluate(truth, "torch"), truth, 1e-5, grad_tol=1e-4, oracle=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("gradients", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(kernels, dtype, gradients, weighting, layout):
    for channels in (64, 13):
        case = case_of(4, channels, (7, 7), weighting, layout)
        case = case.to(dtype, torch.float32 if gradients == "float32" else dtype)
        with kernels.running():
            loss, grads = evaluate(case, "cuda")
        peer_loss, peer_grads = evaluate(case, "torch")
        exact_loss, exact_grads = evaluate(case.to(torch.float64), "torch")
        assert_low_precision(loss, peer_loss, exact_loss, "loss", ulps=4)
        for i, name in enumerate(VIEWS):
            assert grads[name].dtype == case.views[i].dtype
            ulps = 2 if grads[name].dtype == dtype else 50
            floor = noise_floors(case)[name].max().item() * math.sqrt(grads[name].numel())
            assert_low_precision(grads[name], peer_grads[name], exact_grads[name], name, ulps=ulps, floor=floor)


def test_a_nan_makes_the_loss_nan(kernels):
    for dtype in (torch.float64, torch.float32):
        case = case_of(3, 4, (3, 3)).to(dtype)
        case.views[2][1, 0, 0, 0] = math.nan
        with kernels.running():
            loss, _ = evaluate(case, "cuda")
        assert loss.isnan()


@pytest.mark.parametrize(
    "wanted", [(True, False, False, False), (False, True, False, True), (False, False, True, False)]
)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_only_what_is_asked_for(kernels, weighting, wanted):
    case = case_of(3, 8, (3, 4), weighting)
    with kernels.running():
        _, grads = evaluate(case, "cuda", wanted)
    _, exact = evaluate(case, "torch", wanted)
    assert grads.keys() == exact.keys()
    for name, grad in grads.items():
        assert_close(grad, exact[name], 1e-10, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_schedule_gives_the_same_bits(kernels, dtype):
    """Any order of threads and blocks, on a device that starts kernels early and on one that does not."""
    case = case_of(18, 72, (5, 5), "gradcam").to(dtype)
    results = []
    for seed in range(10):
        with kernels.running(seed=seed, dependent=seed % 2 == 0):
            results.append(evaluate(case, "cuda"))
    for loss, grads in results[1:]:
        assert_same_bits(loss, results[0][0])
        for name in VIEWS:
            assert_same_bits(grads[name], results[0][1][name], name)


# Kernels each way: matrices of the crops, heatmaps, rows and keys, loss; then back. Of the released objective one
# kernel takes both small stages back, of maps that it holds, and needs no matrices. The mean of the gradients is a
# kernel of its own, and so are views of two formats.
@pytest.mark.parametrize(
    ("launches", "objective", "settings"),
    [
        ((4, 2), "released", {}),
        ((4, 2), "released", {"side": (16, 16), "batch": 3}),
        ((4, 4), "released", {"side": (17, 17), "batch": 3}),
        ((4, 4), "paper", {}),
        ((4, 3), "mse", {}),
        ((5, 2), "released", {"weighting": "gradcam"}),
        ((5, 3), "released", {"layouts": LAYOUTS}),
    ],
)
def test_kernels_each_way(kernels, launches, objective, settings):
    shape = {"batch": 9, "channels": 300, "side": (4, 4), "weighting": "pooled", **settings}
    layouts = shape.pop("layouts", None)
    case = case_of(**shape, objective=objective)
    if layouts:
        case = case._replace(views=tuple(lay_out(v, layouts[i // 2]) for i, v in enumerate(case.views)))
    leaves = [v.detach().requires_grad_() for v in case.views]
    with kernels.running():
        before = kernels.emulator.launches()
        loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend="cuda", **case.settings)
        between = kernels.emulator.launches()
        loss.backward()
        assert (between - before, kernels.emulator.launches() - between) == launches


def test_huge_heatmaps_do_not_overflow(kernels):
    """The sum of an upsampled map of float32 may exceed its range; shares of it do not."""
    case = case_of(3, 8, (3, 4), "pooled").to(torch.float32)
    large = case._replace(views=tuple(v * 2.0**60 for v in case.views))
    with kernels.running():
        loss, _ = evaluate(large, "cuda")
    assert_close(loss.double(), evaluate(large.to(torch.float64), "torch")[0], 1e-6)


def test_mean_square_is_never_negative(kernels):
    """Identical views: 2 - 2 cos cancels to the last bit, and either sign of the rest must not show."""
    for seed in range(100):
        maps = torch.rand(1, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).pow_(seed % 5)
        view = maps[:, None], torch.ones(1, 1, dtype=torch.float64)  # whose heatmaps are `maps`
        with kernels.running():
            loss = cgc_loss(view, view, CropFlip.identity(1, 9), image_size=9, backend="cuda", objective="mse")
        assert 0 <= loss < 1e-16
