"""Invalid calls: a valid call of everything public, raw operators included, with one thing wrong in it.

Each must raise an error of ours: TypeError, ValueError, RuntimeError or ImportError whose message says what must be.
"""

import itertools
import math
import traceback
import warnings
from fractions import Fraction

import numpy as np
import torch

import cgc_kernels as library
from cgc_kernels import CAM, CropFlip, cgc_loss, gradcam, heatmap_loss
from tests.support.cases import simple_case
from tests.support.compare import assert_same_bits
from tests.support.models import TinyNet

CASE = simple_case(dtype=torch.float32)
FEATURES, GRADIENTS, AUG_FEATURES, AUG_GRADIENTS = CASE.views
MAPS = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NET = TinyNet()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype, says torch
    NESTED = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
STRANGE = [None, "text", 1j, object(), b"", {}, lambda x: x]  # for whatever it is

# ---- What may be wrong with each kind of argument

NUMBERS = [
    0,
    -1,
    -1e-30,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**400),
    Fraction(10**400),
    True,
    np.float64("nan"),
]
NUMBERS += [[1.0], (1.0,), torch.tensor(1.0), np.array([1.0, 2.0]), *STRANGE]
SHARES = [n for n in NUMBERS if not (isinstance(n, int) and n == 0)]
NAMES = ["", "Released", "cpu", 0, 1.5, True, ["cpp"], ("torch",), torch.tensor(1), *STRANGE]
SIZES = [0, -1, 2.0, True, 1 << 40, 10**400, (9,), (9, 11, 3), (9, 0), (0, 9), (9, 2.5), (9, True), [9, None], "99"]
SIZES += [math.nan, torch.tensor([9, 11]), np.array([9, 11]), {9, 11}, *STRANGE[2:]]


def wrong_tensors(tensor, dtypes=True):
    """Tensors in the place of a floating-point one."""
    yield from [3.0, tensor.tolist(), tensor.numpy(), NESTED, tensor.to_sparse(), tensor.to("meta"), *STRANGE]
    yield from [tensor[:0], tensor[0], tensor[None], tensor[:-1], tensor[..., :-1], tensor.flatten(), tensor[..., None]]
    if dtypes:
        others = torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn
        yield from [tensor.to(dtype) for dtype in others]


def wrong_transforms(crop=CASE.transform):
    rows = crop.rows()
    eye = torch.eye(3).repeat(3, 1, 1)
    yield from [3.0, tuple(crop), rows.tolist(), rows.numpy(), NESTED, rows.float(), rows[:2], rows[:, :4], rows + 7]
    yield from [eye[:2], eye[0], eye[:, :1], eye.int(), eye.to_sparse(), eye * 0, eye * math.nan, eye.bool(), *STRANGE]
    yield from [eye / 0, eye.to("meta"), rows.to("meta"), eye.cfloat(), eye[None], rows.T, rows[:0]]
    for name, values in itertools.product(crop._fields[:4], ([-1, 1, 1], [99, 1, 1], [2**62, 1, 1])):
        yield crop._replace(**{name: torch.tensor(values)})
    for name in crop._fields:
        field = getattr(crop, name)
        for value in (None, 1, field[:2], field[None], field.float(), field.to("meta"), field.tolist(), field.cfloat()):
            yield crop._replace(**{name: value})
    yield crop._replace(height=crop.height * 0)
    yield crop._replace(width=crop.width * 0)
    yield crop._replace(flip=crop.flip.int())
    yield crop._replace(top=crop.top > 0)


def loss(cam=(FEATURES, GRADIENTS), aug_cam=(AUG_FEATURES, AUG_GRADIENTS), transform=CASE.transform, **settings):
    return cgc_loss(cam, aug_cam, transform, **{"image_size": (9, 11), **settings})


def maps_loss(heatmaps=MAPS, aug_heatmaps=MAPS, transform=CASE.transform, **settings):
    return heatmap_loss(heatmaps, aug_heatmaps, transform, **{"image_size": (9, 11), **settings})


def _calls():
    """(what it is, function, arguments, keyword arguments)."""
    settings = {
        "temperature": NUMBERS, "consistency": SHARES, "eps": NUMBERS, "objective": NAMES, "image_size": SIZES,
        "backend": NAMES, "even": [1, "yes", None, 0.0], "group": [1, "WORLD", object(), True],
    }  # fmt: skip
    for name, values in settings.items():
        for value in values:
            for function in (loss, maps_loss, library.CGCLoss):
                if function is library.CGCLoss and name == "image_size" and value is None:
                    continue
                yield function, (), {name: value}
    for value in NAMES:
        yield loss, (), {"weighting": value}
        yield gradcam, (FEATURES, GRADIENTS), {"weighting": value}
        yield gradcam, (FEATURES, GRADIENTS), {"backend": value}
    for transform in wrong_transforms():
        yield loss, (), {"transform": transform}
        yield maps_loss, (), {"transform": transform}
    for name in ("cam", "aug_cam"):
        own = (FEATURES, GRADIENTS) if name == "cam" else (AUG_FEATURES, AUG_GRADIENTS)
        for value in wrong_tensors(own[0]):
            yield loss, (), {name: (value, own[1])}
            yield loss, (), {name: CAM(own[0], value)}
        for value in [*STRANGE, own[0], own * 2, own[:1], [own], 3]:
            yield loss, (), {name: value}
    for value in wrong_tensors(MAPS):
        yield maps_loss, (), {"heatmaps": value}
        yield maps_loss, (), {"aug_heatmaps": value}
    yield maps_loss, (), {"heatmaps": MAPS - 1}
    yield maps_loss, (), {"heatmaps": MAPS.half(), "aug_heatmaps": MAPS.half()}
    for value in wrong_tensors(FEATURES):
        yield gradcam, (value, GRADIENTS), {}
        yield gradcam, (FEATURES, value), {}
    yield from _around()
    yield from _operators()


def _around():
    """What stands around the loss."""
    ranges = [0.5, 1, (0.5,), (0.5, 0.2), (0, 1), (-1, 1), (0.2, 1, 1), "ab", (None, 1), (math.nan, 1), (0.2, math.nan)]
    ranges += [("a", "b"), (1j, 1), (10**400, 10**401), [0.2, [1]], {0.2: 1}, torch.rand(2, 2), *STRANGE[:4]]
    for value in ranges:
        yield library.RandomCropFlip, (8,), {"scale": value}
        yield library.RandomCropFlip, (8,), {"ratio": value}
    for value in [-0.1, 1.1, math.nan, "x", None, [0.5], 1j, 10**400, torch.rand(2), object()]:
        yield library.RandomCropFlip, (8,), {"p": value}
    for value in [*SIZES, None, "text"]:
        if not (isinstance(value, int) and value > 1 and value < 10**300) and not isinstance(value, bool):
            yield library.RandomCropFlip, (value,), {}
            yield CropFlip.identity, (3, value), {}
            yield CASE.transform.matrix, (value,), {}
            yield CASE.transform.check, (value,), {}
    for value in [-1, 2.5, "3", None, [3], 10**30, True]:
        yield CropFlip.identity, (value, 8), {}
    make_view = library.RandomCropFlip(8)
    for value in [
        IMAGES[0, 0],
        IMAGES[..., 1:],
        IMAGES[0].int(),
        IMAGES.cfloat(),
        NESTED,
        3,
        "view",
        None,
        IMAGES[None],
    ]:
        yield make_view, (value,), {}
    for value in [*wrong_tensors(IMAGES, dtypes=False)]:
        if not isinstance(value, torch.Tensor):
            yield make_view, (value,), {}
        if not (isinstance(value, torch.Tensor) and not value.is_nested and value.shape[-1:] == (7,)):
            yield CASE.transform.apply, (value,), {}
    uniform = dict(
        zip(("area", "ratio", "down", "across", "flip"), (*torch.rand(2, 3, 10), *torch.rand(3, 3)), strict=True)
    )
    for name in uniform:
        for value in [None, 0.5, uniform[name][:2], uniform[name].int(), uniform[name][None], NESTED, "x"]:
            yield make_view.from_uniform, (), {**uniform, name: value}
    for value in [
        None,
        3,
        "x",
        torch.rand(3, 5),
        torch.ones(3, 4).int(),
        torch.tensor(3),
        NESTED,
        torch.ones(3, 5).bool(),
    ]:
        yield CropFlip.from_rows, (value,), {}
    for value in [
        None,
        3,
        "x",
        [],
        (1, 2, 3),
        [(1, 2)],
        torch.rand(3, 4),
        {"top": 1},
        [(1, 2, 3, "x")],
        NESTED,
        [[1.5] * 4],
    ]:
        yield CropFlip.from_torchvision, (value, True), {}
    for value in [None, 1, "x", [True, False, True], [1], 0.5, NESTED]:
        yield CropFlip.from_torchvision, ([(0, 0, 2, 2)] * 2, value), {}
    for value in [0, -3, 2.5, "3", None, [3], True, math.nan, torch.tensor(3), 1j]:
        yield library.tokens_to_map, (value, 3), {}
        yield library.tokens_to_map, (3, value), {}
        if value != 0 or isinstance(value, bool):
            yield library.tokens_to_map, (3, 3, value), {}
    to_map = library.tokens_to_map(2, 2)
    for value in [None, 3, "x", torch.rand(2, 4, 3), torch.rand(5, 3), NESTED, [torch.rand(2, 5, 3)]]:
        yield to_map, (value,), {}
    for value in [
        None,
        3,
        "x",
        IMAGES[0, 0],
        IMAGES[:, :2],
        IMAGES * 9,
        IMAGES.int(),
        IMAGES.cfloat(),
        NESTED,
        IMAGES.numpy(),
    ]:
        yield library.overlay, (value, MAPS), {}
    for value in [
        None,
        3,
        "x",
        MAPS[0],
        MAPS - 1,
        MAPS * math.nan,
        MAPS[:2],
        MAPS.cfloat(),
        NESTED,
        MAPS.numpy(),
        MAPS[:, :0],
    ]:
        yield library.overlay, (IMAGES, value), {}
    for value in [
        None,
        3,
        "x",
        torch.rand(3, 2),
        torch.rand(4, 3),
        torch.rand(4),
        NESTED,
        torch.ones(4, 2) * math.nan,
        [[0, 0]] * 4,
    ]:
        yield library.homography, (value, torch.rand(4, 2)), {}
        yield library.homography, (torch.rand(4, 2), value), {}
    for value in [None, 3, "x", lambda x: x, torch.nn.Identity(), object(), [torch.nn.Identity()], []]:
        yield library.record, (value,), {}
    for value in [None, 3, "x", "fc.weight", object(), torch.nn.Identity(), [], ""]:
        yield library.GradCAM, (NET, value), {}
    for value in [None, 3, "x", object(), lambda x: x]:
        yield library.GradCAM, (value, "body"), {}
        yield library.GradCAM.auto, (value,), {}
    for value in [3, "x", [], torch.rand(2)]:
        yield library.GradCAM, (NET, "body"), {"reshape": value}
    for value in [None, 2, "x", [], 0.5, torch.rand(2), np.array([1, 2])]:
        yield library.GradCAM, (NET, "body"), {"closed_form": value}
    view = torch.rand(2, 3, 8, 8)
    for value in [None, 3, "x", view.numpy(), NESTED, [view], torch.tensor(1.0)]:
        yield call_cam, (value,), {}
        yield call_cam, (view, value), {}
        yield call_cam, (view,), {"extra": (value,)}
    for value in [
        3,
        "x",
        [0, 1],
        torch.rand(2),
        torch.tensor([0, 99]),
        torch.tensor([0]),
        torch.tensor([-1, 0]),
        NESTED,
    ]:
        yield call_cam, (view,), {"target": value}
    yield call_cam, (), {}
    yield call_cam, (view,), {"extra": 3}
    yield call_cam, (view,), {"extra": view}
    yield call_cam, (view,), {"batched": "x"}


def call_cam(*views, **settings):
    with library.GradCAM(TinyNet(), "body") as cam:  # a network of its own: calls run side by side
        return cam(*views, **settings)


def _operators():
    """The raw operators, which the Python side calls with what it has checked."""
    if not library.info()["backends"]["cpp"]["available"]:
        return
    ops, crop = torch.ops.cgc_kernels, list(CASE.transform)
    size = (9, 11, 1e-8, 0)
    heatmaps, _ = ops.cam(FEATURES, AUG_GRADIENTS, True)
    rows, keys, positives, state = ops.resample(MAPS, MAPS, crop, *size)
    row_losses = ops.contrast(rows, keys, positives, 0, 3, 0.5)[1]
    views = [v.detach() for v in CASE.views]
    rest = (9, 11, 0.5, True, 0, 0.0, 1e-8)
    _, saved = ops.cgc(*views, crop, *rest)
    one = torch.ones(())
    valid = {
        "cam": (FEATURES, GRADIENTS, True),
        "cam_backward": (heatmaps, heatmaps, FEATURES, GRADIENTS, True, True),
        "resample": (MAPS, MAPS, crop, *size),
        "resample_backward": (rows, keys, positives, MAPS, MAPS, rows, keys, positives, crop, state, *size),
        "contrast": (rows, keys, positives, 0, 3, 0.5),
        "contrast_backward": (one, rows, keys, positives, row_losses, 0, 3, 0.5),
        "cgc": (*views, crop, *rest),
        "cgc_backward": (one, *views, crop, saved, *rest, 15),
    }
    for name, arguments in valid.items():
        operator = getattr(ops, name)
        for place, argument in enumerate(arguments):
            for value in _wrong_argument(name, place, argument):
                yield operator, (*arguments[:place], value, *arguments[place + 1 :]), {}


def _wrong_argument(name, place, argument):
    """Values of the right type for the dispatcher, and wrong nevertheless."""
    if isinstance(argument, torch.Tensor):
        yield from [argument.to(torch.int32), argument.to(torch.complex64)]
        if argument.dim():
            yield from [
                argument[None],
                argument[:0],
                argument[..., :-1],
                argument.flatten()[:1],
                torch.cat([argument, argument]),
            ]
        if argument.dim() > 1:
            yield argument.mT.contiguous().mT[..., ::2]
        if argument.dtype == torch.float32 and argument.dim():
            yield argument.double()
    elif isinstance(argument, list):
        yield from [
            [],
            argument[:4],
            [*argument, argument[0]],
            [a.float() for a in argument],
            [a[:2] for a in argument],
        ]
        yield from [[torch.eye(3).repeat(3, 1, 1)], [torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)]]
        yield [argument[0][None], *argument[1:]]
    elif isinstance(argument, int) and not isinstance(argument, bool):
        if name.startswith("contrast"):
            yield from [-1, 4, 2**62, -(2**62)] + ([0] if argument else [])
        elif argument in (9, 11):
            yield from [0, -1, 2**40, -(2**62)]
        elif argument == 0:
            yield from [-1, 3, 2**62]


CALLS = list(_calls())


def describe(number: int) -> str:
    """The call, in words."""
    function, arguments, named = CALLS[number]
    short = ", ".join(f"{value!r:.60}" for value in (*arguments, *named.items()))
    return f"{getattr(function, '__qualname__', function)}({short})".replace("\n", " ")


def run(backend: str, seed: str, number: int) -> None:
    """Makes the call; raises AssertionError where it is accepted, or refused in words that are not ours."""
    if number >= len(CALLS):  # the last of four that run together
        return
    function, arguments, named = CALLS[number]
    inputs = [t for t in _tensors((arguments, named)) if type(t) is torch.Tensor and _plain(t)]
    before = [t.clone() for t in inputs]
    try:
        function(*arguments, **named)
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        if " must " not in str(error) or not _raised_here(error):
            raise AssertionError(f"{describe(number)}: {type(error).__name__}, not of ours: {error}") from error
    except Exception as error:
        raise AssertionError(f"{describe(number)}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{describe(number)}: accepted")
    for given, kept in zip(inputs, before, strict=True):
        assert_same_bits(given, kept, "an input after the call")


def _raised_here(error) -> bool:
    """In the library itself, or by its operators."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "cgc_kernels" in last.filename or last.filename.endswith("_ops.py")


def _plain(tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized and not tensor.is_meta


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
