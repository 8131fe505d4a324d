"""The operators of the library: torch's own checks of schema, fake kernel, autograd and AOT dispatch."""

import math

import pytest
import torch
from torch.library import opcheck
from torch.utils._pytree import tree_map

from cgc_kernels.ops.resample import transform_tensors
from cgc_kernels.options import MSE, PAPER, RELEASED, contrasts
from tests.support.cases import CPP, lay_out, poison, simple_case, with_inverse
from tests.support.compare import assert_same_bits

# opcheck's own, under torch 2.14.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

OPS = ("cam", "resample", "contrast", "cgc")
NAMES = tuple(name for op in OPS for name in (op, f"{op}_backward"))
needs_library = pytest.mark.skipif(CPP.marks[0].args[0], reason=CPP.marks[0].kwargs["reason"])
SIZE = (9, 11)


def op(name):
    return getattr(torch.ops.cgc_kernels, name).default


def differentiable(*tensors):
    return [t.detach().requires_grad_() for t in tensors]


# ---- A stage's operators, forward and backward, of any namespace and device: op(name) gives them


def on(device, arguments):
    return tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, arguments)


def check_cam(op, given, device="cpu"):
    tensors, elementwise = on(device, cam_arguments(*given))
    opcheck(op("cam"), (*differentiable(*tensors), elementwise))
    heatmaps, weights = op("cam")(*tensors, elementwise)
    saved = weights if given[0] == "gradcam" else tensors[1]
    opcheck(op("cam_backward"), (torch.rand_like(heatmaps), heatmaps, tensors[0], saved, True, True))


def check_resample(op, given, device="cpu"):
    maps, (transform, *settings) = on(device, resample_arguments(*given))
    opcheck(op("resample"), (*differentiable(*maps), transform, *settings))
    *outputs, state = op("resample")(*maps, transform, *settings)
    upstream = [torch.rand_like(t) for t in outputs]
    opcheck(op("resample_backward"), (*upstream, *maps, *outputs, transform, state, *settings))


def check_contrast(op, given, device="cpu"):
    tensors = on(device, contrast_arguments(*given))
    batch = len(tensors[0])
    opcheck(op("contrast"), (*differentiable(*tensors), 0, batch, 0.5))
    loss, row_losses = op("contrast")(*tensors, 0, batch, 0.5)
    for share in ((0, batch), (batch // 3, batch // 2 + 1)):
        opcheck(op("contrast"), (*tensors, *share, 0.5))
        opcheck(op("contrast_backward"), (torch.ones_like(loss), *tensors, row_losses, *share, 0.5))


def check_cgc(op, given, device="cpu", needs=15):
    tensors, transform, settings = on(device, cgc_arguments(*given))
    opcheck(op("cgc"), (*differentiable(*tensors), transform, *settings))
    loss, saved = op("cgc")(*tensors, transform, *settings)
    if given[0] == "gradcam":
        tensors[1], tensors[3] = parts_of(saved, tensors[0], True, settings[4])["weights"]
    opcheck(op("cgc_backward"), (torch.ones_like(loss), *tensors, transform, saved, *settings, needs))


def parts_of(saved, features, pooled, objective):
    """Views of the parts of what operator cgc saves."""
    batch, channels, height, width = features.shape
    length = height * width if contrasts(objective) else 0
    acc = torch.float64 if features.dtype == torch.float64 else torch.float32
    kinds = {
        "positives": (torch.float64, (batch,)),
        "row_losses": (torch.float64, (batch,)),
        "weights": (acc, (2, batch, channels if pooled else 0)),
        "heatmaps": (acc, (2, batch, height * width)),
        "rows": (acc, (batch, length)),
        "keys": (acc, (batch, length)),
        "state": (torch.float64 if objective == MSE else acc, (batch, 3, height * width)),
    }
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in kinds.values()]
    parts = saved.split(sizes)  # an error if these are not all of it
    return {name: part.view(kind[0]).view(kind[1]) for part, (name, kind) in zip(parts, kinds.items(), strict=True)}


def cam_arguments(weighting, layout, dtypes):
    case = simple_case(pooled=weighting == "pooled").to(*dtypes)
    return [lay_out(v, layout) for v in case.views[:2]], weighting == "elementwise"


CAMS = [
    ("pooled", "contiguous", (torch.float32, torch.float32)),
    ("gradcam", "channels_last", (torch.bfloat16, torch.float32)),
    ("elementwise", "channels_last", (torch.float64, torch.float64)),
    ("elementwise", "contiguous", (torch.float16, torch.float16)),
]


@needs_library
@pytest.mark.parametrize("cam", CAMS)
def test_cam(cam):
    check_cam(op, cam)


@needs_library
@pytest.mark.parametrize("cam", CAMS)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_cam_backward(cam, needs):
    (features, gradients), elementwise = cam_arguments(*cam)
    heatmaps, weights = op("cam")(features, gradients, elementwise)
    saved = weights if cam[0] == "gradcam" else gradients
    opcheck(op("cam_backward"), (torch.rand_like(heatmaps), heatmaps, features, saved, *needs))


RESAMPLES = [
    ("crop", RELEASED, torch.float32),
    ("warp", PAPER, torch.float64),
    ("crop", MSE, torch.float64),
    ("warp", RELEASED, torch.float32),
]


def resample_arguments(transform, objective, dtype):
    case = simple_case(transform=transform)
    maps = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return list(maps), (transform_tensors(with_inverse(case.transform)), *SIZE, 1e-8, objective)


@needs_library
@pytest.mark.parametrize("given", RESAMPLES)
def test_resample(given):
    check_resample(op, given)


def contrast_arguments(batch, dtype):
    rows, keys = torch.rand(2, batch, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    return rows, keys, torch.rand(batch, dtype=torch.float64)


CONTRASTS = [(1, torch.float32), (7, torch.float64), (70, torch.float32)]


@needs_library
@pytest.mark.parametrize("given", CONTRASTS)
def test_contrast(given):
    check_contrast(op, given)


CGCS = [
    ("pooled", "crop", RELEASED, "contiguous", (torch.float32, torch.float32)),
    ("gradcam", "warp", PAPER, "channels_last", (torch.bfloat16, torch.float32)),
    ("elementwise", "crop", MSE, "channels_last", (torch.float64, torch.float64)),
]


def cgc_arguments(weighting, transform, objective, layout, dtypes):
    case = simple_case(pooled=weighting == "pooled", transform=transform).to(*dtypes)
    settings = (*SIZE, 0.5, weighting == "elementwise", objective, 0.7, 1e-8)
    return [lay_out(v, layout) for v in case.views], transform_tensors(with_inverse(case.transform)), settings


@needs_library
@pytest.mark.parametrize("given", CGCS)
@pytest.mark.parametrize("needs", [15, 1, 10])
def test_cgc(given, needs):
    check_cgc(op, given, needs=needs)


@needs_library
def test_what_the_backward_saves_has_no_gradient():
    tensors, transform, settings = cgc_arguments(*CGCS[0])
    loss, saved = op("cgc")(*differentiable(*tensors), transform, *settings)
    assert loss.requires_grad
    assert not saved.requires_grad
    maps, rest = resample_arguments("crop", RELEASED, torch.float64)
    *outputs, state = op("resample")(*differentiable(*maps), *rest)
    assert all(t.requires_grad for t in outputs)
    assert not state.requires_grad


@needs_library
def test_the_loss_of_a_share_is_not_differentiated_as_if_it_were_the_whole():
    """Its gradient takes the losses of all rows, which one share does not know."""
    loss, _ = op("contrast")(*differentiable(*contrast_arguments(7, torch.float64)), 2, 3, 0.5)
    with pytest.raises(RuntimeError, match=r"some of the rows must .*, got a backward of 3 rows of 7"):
        loss.backward()


@needs_library
def test_unwanted_gradients_are_empty():
    tensors, transform, settings = cgc_arguments(*CGCS[2])
    loss, saved = op("cgc")(*tensors, transform, *settings)
    for needs in range(16):
        grads = op("cgc_backward")(torch.ones_like(loss), *tensors, transform, saved, *settings, needs)
        assert [g.numel() > 0 for g in grads] == [bool(needs >> i & 1) for i in range(4)]


def check_what_is_saved(op, given):
    """Every byte of `saved` is written: its parts are numbers, those of the stages, whatever was there before."""
    tensors, transform, settings = cgc_arguments(*given)
    objective, pooled = settings[4], given[0] == "gradcam"
    with poison():
        saved = op("cgc")(*tensors, transform, *settings)[1]
    parts = parts_of(saved, tensors[0], pooled, objective)
    assert all(part.isfinite().all() for part in parts.values()), given
    assert torch.equal(saved, op("cgc")(*tensors, transform, *settings)[1])
    heatmaps, weights = zip(*(op("cam")(*tensors[i : i + 2], settings[3]) for i in (0, 2)), strict=True)
    assert_same_bits(parts["heatmaps"], torch.stack(heatmaps).flatten(2))
    if pooled:
        assert_same_bits(parts["weights"], torch.stack(weights))
    rows, keys, positives, state = op("resample")(*heatmaps, transform, *settings[:2], settings[6], objective)
    stage = {"rows": rows, "keys": keys, "positives": positives, "state": state.flatten(2)}
    for name, expected in stage.items():
        assert_same_bits(parts[name], expected, name)
    zeros = torch.zeros_like(positives)
    losses = op("contrast")(rows, keys, positives, 0, len(rows), settings[2])[1] if contrasts(objective) else zeros
    assert_same_bits(parts["row_losses"], losses, "row_losses")


@needs_library
@pytest.mark.parametrize("given", CGCS)
def test_what_is_saved(given):
    check_what_is_saved(op, given)


@needs_library
def test_every_output_is_written():
    """Of each operator, those included that only its backward reads."""
    for given in CGCS:
        tensors, _, settings = cgc_arguments(*given)
        maps, rest = resample_arguments(given[1], given[2], torch.float32)
        with poison():
            outputs = [*op("resample")(*maps, *rest), *op("contrast")(*contrast_arguments(7, torch.float32), 1, 5, 0.5)]
            outputs += op("cam")(*tensors[:2], settings[3])
        assert all(t.isfinite().all() for t in outputs), given


@needs_library
def test_every_operator_of_the_namespace_is_checked_here():
    registered = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("cgc_kernels::")
    }
    assert registered == {*NAMES, "instruction_set"}


@needs_library
def test_a_fake_kernel_allocates_what_the_real_one_does():
    """Strides too: compiled code trusts them."""
    tensors, transform, settings = cgc_arguments(*CGCS[2])
    real = op("cgc")(*tensors, transform, *settings)
    fakes = torch.ops.cgc_kernels.cgc(*on("meta", (*tensors, transform)), *settings)
    for one, fake in zip(real, fakes, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (fake.shape, fake.dtype, fake.stride())
    again = op("cgc")(*tensors, transform, *settings)
    assert_same_bits(again[0], real[0])
