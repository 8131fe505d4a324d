"""The fused loss as Triton kernels, run by the interpreter: against torch, by its laws, in bytes and in any order."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from cgc_kernels import CropFlip, cgc_loss
from cgc_kernels.backends.triton.kernels import launch
from tests.loss import test_cgc, test_cgc_inputs, test_cgc_repeats, test_golden
from tests.operators import test_host_path, test_ops
from tests.support.cases import (
    KINDS,
    VIEWS,
    WEIGHTINGS,
    assert_same_loss,
    cases,
    crop_flip,
    evaluate,
    lay_out,
    poison,
    simple_case,
)
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits
from tests.triton.interpreter import counting, program_order, without_races

# Not shrunk: an example takes a second in the interpreter, and its seeded numbers do not shrink anyway.
few_examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
pytestmark = test_ops.pytestmark
small_cases = {"max_batch": 4, "max_side": 5, "max_size": 9}
NEGLIGIBLE_HEATMAP = 1e-4  # of the largest sum: below it the ReLU's side is a matter of rounding


# ---- Against the released code's outputs, and against torch


@pytest.mark.parametrize("layout", test_golden.FORMATS)
@pytest.mark.parametrize("objective", ["released", "mse"])
@pytest.mark.parametrize("name", test_golden.DATA)
def test_golden_float64(name, objective, layout):
    test_golden.test_float64("triton", name, objective, layout)


@pytest.mark.parametrize("objective", ["released", "mse"])
@pytest.mark.parametrize("name", test_golden.DATA)
def test_golden_float32(name, objective):
    test_golden.test_float32("triton", name, objective, "channels_last")


@few_examples
@given(cases(**small_cases))
def test_float64_equals_torch(case):
    assert_same_loss(evaluate(case, "triton"), evaluate(case, "torch"), case)


@few_examples
@given(cases(**small_cases, low_temperature=0.07, kinds=tuple(k for k in KINDS if k != "near_dead")))
def test_float32_equals_torch(case):
    case = case.to(torch.float32)
    truth = case.to(torch.float64)
    sums = [test_cgc.ungated(*truth.views[i : i + 2], case.settings["weighting"]) for i in (0, 2)]
    if any((s.abs() < NEGLIGIBLE_HEATMAP * s.abs().amax()).any() for s in sums):
        return
    assert_same_loss(evaluate(case, "triton"), evaluate(truth, "torch"), truth, 1e-5, grad_tol=1e-4, oracle=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize(
    "dtypes", test_cgc_inputs.DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d)
)
def test_dtypes_and_layouts(dtypes, weighting, layout):
    test_cgc_inputs.test_dtypes_and_layouts("triton", dtypes, weighting, layout)


# (batch, channels, map, weighting, objective, transform, layout, dtype): every size at least once.
SIZES = [
    (1, 2048, (7, 7), "elementwise", "paper", "crop", "channels_last", torch.bfloat16),
    (2, 257, (14, 14), "gradcam", "released", "crop", "contiguous", torch.float32),
    (2, 64, (32, 32), "elementwise", "released", "crop", "channels_last", torch.float32),
    (2, 3, (32, 7), "pooled", "paper", "warp", "contiguous", torch.float64),
    (2, 49, (16, 16), "gradcam", "mse", "warp", "channels_last", torch.float16),
    (15, 64, (7, 9), "gradcam", "paper", "crop", "channels_last", torch.float64),
    (16, 49, (7, 7), "pooled", "released", "crop", "contiguous", torch.bfloat16),
    (17, 257, (7, 7), "elementwise", "mse", "crop", "contiguous", torch.float64),
    (31, 3, (14, 14), "pooled", "released", "crop", "channels_last", torch.float32),
    (33, 64, (1, 1), "gradcam", "paper", "crop", "channels_last", torch.float64),
    (63, 1, (7, 9), "elementwise", "released", "crop", "contiguous", torch.float32),
    (65, 49, (7, 7), "pooled", "paper", "crop", "channels_last", torch.float64),
    (129, 3, (2, 3), "gradcam", "released", "crop", "contiguous", torch.float64),
]


def sized(batch, channels, side, weighting, objective, transform, layout, dtype, size=(19, 23)):
    pooled = weighting == "pooled"
    case = simple_case(
        batch, channels, side, size, pooled, transform=transform, objective=objective, consistency=0.7,
        weighting="gradcam" if pooled else weighting,
    ).to(dtype)  # fmt: skip
    return case._replace(views=tuple(lay_out(v, layout) for v in case.views))


@pytest.mark.parametrize("given_", SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_sizes(given_):
    case = sized(*given_)
    result, truth = evaluate(case, "triton"), case.to(torch.float64)
    exact = evaluate(truth, "torch")
    dtype = given_[-1]
    if dtype == torch.float64:
        assert_same_loss(result, exact, case)
    elif dtype == torch.float32:
        assert_same_loss(result, exact, truth, 1e-5, grad_tol=1e-4, oracle=True)
    else:
        assert_close(result[0], exact[0], 1e-5, floor=1, oracle=True, what="loss")
        peer = evaluate(case, "torch")
        for name in VIEWS:
            assert_low_precision(result[1][name], peer[1][name], exact[1][name], name)


def test_views_of_different_memory_formats():
    """Each is read in place: the augmented one may be channels_last while the original is contiguous."""
    for layouts in (("contiguous", "channels_last"), ("channels_last", "contiguous")):
        case = simple_case(channels=9, weighting="elementwise")
        case = case._replace(views=tuple(lay_out(v, layouts[i // 2]) for i, v in enumerate(case.views)))
        assert_same_loss(evaluate(case, "triton"), evaluate(case, "torch"), case)


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
def test_programs_that_take_several_tiles(weighting, monkeypatch):
    """On a device of one multiprocessor: small cases would otherwise never go round the loop over tiles."""
    monkeypatch.setattr(launch, "PROGRAMS", 1)
    monkeypatch.setattr(launch, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(launch, "TILE", 512)
    case = sized(3, 300, (3, 4), weighting, "released", "crop", "channels_last", torch.float64, size=(6, 7))
    assert launch.split(300, 6, 8, torch.device("cpu")) == (1, 38)
    assert_same_loss(evaluate(case, "triton"), evaluate(case, "torch"), case)


# ---- Laws


LAWS = [
    *[(test_cgc.test_batch_of_one, a) for a in itertools.product(("released", "paper"), ("crop", "warp"))],
    *[(test_cgc.test_permuting_the_batch, (objective,)) for objective in test_cgc.OBJECTIVES],
    *[(test_cgc.test_a_warp_that_sees_nothing, (objective,)) for objective in test_cgc.OBJECTIVES],
    *[(test_cgc.test_infinity_is_never_a_finite_loss_by_accident, (o,)) for o in test_cgc.OBJECTIVES],
    *[(test_cgc.test_consistency_adds_exactly_its_term, (objective,)) for objective in test_cgc.OBJECTIVES],
    *[(test_cgc_repeats.test_every_output_is_written, a) for a in zip(test_cgc.OBJECTIVES, WEIGHTINGS, strict=True)],
    *[(test_cgc_inputs.test_eps_does_not_vanish_in_16_bits, (dtype,)) for dtype in (torch.bfloat16, torch.float16)],
    *[(test_cgc.test_consistency_alone_is_what_the_term_adds, (transform,)) for transform in ("crop", "warp")],
    (test_cgc.test_consistency_alone_at_its_bounds, ()),
    (test_cgc.test_mean_square_is_two_minus_two_cosines, ()),
    (test_cgc.test_twins_that_agree_to_rounding_keep_their_gradient, ()),
    (test_cgc.test_the_stages_make_the_whole, ()),
    (test_cgc_inputs.test_inputs_are_read_in_place, ()),
    (test_cgc_inputs.test_saved_tensors_are_the_inputs_themselves, ()),
    (test_cgc_inputs.test_upstream_gradient, ()),
    (test_cgc_inputs.test_the_same_tensor_as_both_views, ()),
    (test_cgc_inputs.test_matrices_in_float32_and_as_affine, ()),
    (test_cgc_inputs.test_crops_in_any_integer_dtype, ("released", torch.int32, "columns")),
    (test_cgc_inputs.test_crops_in_any_integer_dtype, ("paper", torch.uint8, "sliced")),
    (test_cgc_inputs.test_crops_expanded_with_stride_0, ()),
]


@pytest.mark.parametrize(("law", "arguments"), LAWS, ids=lambda x: getattr(x, "__name__", None) or str(x))
def test_law(law, arguments):
    law("triton", *arguments)


@pytest.mark.parametrize("objective", test_cgc.OBJECTIVES)
def test_nan_in_one_sample_makes_the_loss_nan(objective):
    for view, transform, weighting in ((0, "crop", "gradcam"), (3, "warp", "elementwise"), (2, "crop", "elementwise")):
        case = simple_case(objective=objective, transform=transform, weighting=weighting)
        case.views[view][2, 1] = float("nan")
        assert evaluate(case, "triton")[0].isnan(), f"{VIEWS[view]}"


@pytest.mark.parametrize("wanted", [w for w in itertools.product((False, True), repeat=4) if any(w)])
@pytest.mark.parametrize("weighting", ["pooled", "elementwise"])
def test_gradients_only_where_asked(weighting, wanted):
    pooled = weighting == "pooled"
    case = simple_case(batch=2, pooled=pooled, weighting="gradcam" if pooled else weighting, dtype=torch.float32)
    _, grads = evaluate(case, "triton", wanted)
    _, full = evaluate(case, "triton")
    assert list(grads) == [name for name, want in zip(VIEWS, wanted, strict=True) if want]
    for name, grad in grads.items():
        assert_same_bits(grad, full[name], name)


@pytest.mark.parametrize("temperature", [0.005, 10.0])
@pytest.mark.parametrize("objective", ["released", "paper"])
def test_temperatures(objective, temperature):
    case = simple_case(batch=70, channels=2, side=(2, 3), size=(5, 4), objective=objective, temperature=temperature)
    assert_same_loss(evaluate(case, "triton"), evaluate(case, "torch"), case)


def test_crops_of_every_kind_and_views_larger_than_a_step():
    size = (97, 64)
    kinds = ["any", "pixel", "full", "border", "row", "column"]
    crop = crop_flip(torch.Generator().manual_seed(3), size, kinds)
    for objective in ("released", "paper"):
        case = simple_case(batch=6, side=(5, 4), size=size, transform=crop, objective=objective)
        assert_same_loss(evaluate(case, "triton"), evaluate(case, "reference"), case)


def test_a_crop_outside_the_view_reads_nothing_outside():
    """Kernels clamp: where values cannot be checked, as on a GPU, a wrong crop must not become a wrong address."""
    case = simple_case(batch=3)
    wild = [[-5, 90, 3], [70, -9, 0], [400, 5, -2], [9, 200, 0], [1, 0, 1]]
    maps = torch.rand(2, 3, 4, 5)
    rows, *_ = torch.ops.cgc_kernels_triton.resample(*maps, [torch.tensor(field) for field in wild], 9, 11, 1e-8, 1)
    assert rows.isfinite().all()
    assert case.settings["image_size"] == (9, 11)


# ---- What a launch costs


@pytest.mark.parametrize("objective", test_cgc.OBJECTIVES)
def test_three_launches_each_way(objective):
    case = sized(8, 257, (7, 7), "gradcam", objective, "crop", "channels_last", torch.float32)
    leaves = [v.detach().requires_grad_() for v in case.views]
    with counting() as forward:
        loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend="triton", **case.settings)
    with counting() as backward:
        loss.backward()
    assert len(forward.launches) == 3
    assert len(backward.launches) == (2 if objective == "mse" else 3)
    assert forward.rounded_dots() == backward.rounded_dots() == []
    assert forward.dots


FLOORS = {"pooled": (1, 2), "gradcam": (2, 2), "elementwise": (2, 4)}  # feature tensors moved, a view


# Of the floor, for all tensors together. Maps, rows and sums are in float32 and double whatever the features are.
ALLOWED = {torch.float32: 1.07, torch.bfloat16: 1.14}


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("side", [(7, 7), pytest.param((14, 14), marks=pytest.mark.slow)])
@pytest.mark.parametrize("weighting", FLOORS)
def test_bytes_and_sectors(weighting, side, layout, dtype):
    """Each feature and gradient once: the floor of docs/performance.md, in full sectors."""
    case = sized(8, 256, side, weighting, "released", "crop", layout, dtype)
    leaves = [v.detach().requires_grad_() for v in case.views]
    feature = leaves[0].numel() * leaves[0].element_size()
    with counting() as forward:
        loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend="triton", **case.settings)
    with counting() as backward:
        grads = torch.autograd.grad(loss, leaves)
    large = [leaf for leaf in leaves if leaf.dim() == 4]
    written = [grad for grad in grads if grad.dim() == 4 and 0 not in grad.stride()]
    read, floor = sum_bytes(forward.loads, large), 2 * FLOORS[weighting][0] * feature
    assert floor <= read <= 1.05 * floor
    # What averaging saved stands for the gradients in the backward.
    again = large if weighting == "elementwise" else [leaves[0], leaves[2]]
    moved = sum_bytes(backward.loads, again) + sum_bytes(backward.stores, written)
    floor = 2 * FLOORS[weighting][1] * feature
    assert floor <= moved <= 1.05 * floor
    for counts, floor in zip((forward, backward), FLOORS[weighting], strict=True):
        assert counts.loads().bytes + counts.stores().bytes <= ALLOWED[dtype] * 2 * floor * feature
    for count, tensors in ((forward.loads, large), (backward.loads, again), (backward.stores, written)):
        assert all(count(tensor).sector_use >= 0.9 for tensor in tensors)


def sum_bytes(count, tensors):
    return sum(count(tensor).bytes for tensor in tensors)


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
def test_any_order_of_programs_gives_the_same_bits(weighting):
    case = sized(5, 300, (7, 9), weighting, "released", "crop", "channels_last", torch.float32)
    first = evaluate(case, "triton")
    for seed in range(3):
        with program_order(seed), poison(), without_races():
            again = evaluate(case, "triton")
        assert_same_bits(again[0], first[0])
        for name in VIEWS:
            assert_same_bits(again[1][name], first[1][name], name)


@pytest.mark.parametrize("channels", [1, 63, 64, 257, 2048])
@pytest.mark.parametrize("samples", [1, 8, 5000])
@pytest.mark.parametrize("block", [16, 64])
def test_splits_cover_all_channels_once(channels, samples, block):
    share = launch.split(channels, samples, block, torch.device("cpu"))
    assert share.count * share.blocks * block >= channels
    assert (share.count - 1) * share.blocks * block < channels


def test_a_small_batch_fills_the_device():
    assert launch.split(2048, 2 * 8, 64, torch.device("cpu")).count == 16  # 256 programs for 132 multiprocessors
    assert launch.split(2048, 2 * 4096, 64, torch.device("cpu")).count == 1


# ---- Operators


def op(name):
    return getattr(torch.ops.cgc_kernels_triton, name).default


@pytest.mark.parametrize("given", test_ops.CGCS)
def test_opcheck(given):
    test_ops.check_cgc(op, given)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("objective", test_cgc.OBJECTIVES)
def test_eager_equals_the_operator(objective, weighting):
    arguments = ("triton", weighting, objective, torch.float32, "cgc_kernels_triton")
    test_host_path.check_eager_equals_the_operator(*arguments)


@pytest.mark.parametrize("given", test_ops.CGCS)
def test_what_is_saved(given):
    test_ops.check_what_is_saved(op, given)


def test_unwanted_gradients_are_empty():
    tensors, transform, rest = test_ops.cgc_arguments(*test_ops.CGCS[2])
    loss, saved = op("cgc")(*tensors, transform, *rest)
    for needs in (1, 4, 6):
        grads = op("cgc_backward")(torch.ones_like(loss), *tensors, transform, saved, *rest, needs)
        assert [g.numel() > 0 for g in grads] == [bool(needs >> i & 1) for i in range(4)]


def test_fake_kernels_allocate_what_the_real_ones_do():
    tensors, transform, rest = test_ops.cgc_arguments(*test_ops.CGCS[2])
    real = op("cgc")(*tensors, transform, *rest)
    fakes = op("cgc")(*test_ops.on("meta", (*tensors, transform)), *rest)
    for one, fake in zip(real, fakes, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (fake.shape, fake.dtype, fake.stride())


def test_compiles_in_one_graph():
    case = simple_case(dtype=torch.float32)

    def loss(*views):
        return cgc_loss(views[:2], views[2:], case.transform, backend="triton", **case.settings)

    expected = evaluate(case, "triton")
    leaves = [v.detach().requires_grad_() for v in case.views]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    assert_same_bits(compiled.detach(), expected[0])
    for name, grad in zip(VIEWS, torch.autograd.grad(compiled, leaves), strict=True):
        assert_same_bits(grad, expected[1][name], name)


def test_double_backward_is_refused():
    case = simple_case()
    leaves = [v.detach().requires_grad_() for v in case.views]
    loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend="triton", **case.settings)
    (grad,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


def test_maps_beyond_the_kernels_are_refused():
    view = torch.rand(2, 1, 33, 2), torch.rand(2, 1)
    with pytest.raises(RuntimeError, match="its maps are at most 32 cells each way, got 33; use backend='torch'"):
        cgc_loss(view, view, CropFlip.identity(2, 8), image_size=8, backend="triton")
    with pytest.raises(ValueError, match="H and W must be at most 32"):
        op("cam")(*view, False)
