"""Wrong input: an error that names the argument, what it must be and what it got, before any work."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cgc_kernels import CAM, CGCLoss, CropFlip, GradCAMOutput, backends, cgc_loss, checks, gradcam, heatmap_loss
from tests.support.cases import CPP, simple_case

NAMES = ("auto", "torch", "reference", CPP)
SIZE = (9, 11)


def fail(*_):
    raise AssertionError("work was done before the input was checked")


@pytest.fixture(autouse=True)
def no_work():
    """No backend may be entered, nor any operator of PyTorch that computes be reached through one."""
    stages = dict.fromkeys(("cam", "heatmap_loss", "cgc"), fail)
    with backends.serving(*(replace(backends.named(name), **stages) for name in ("cpp", "reference", "torch"))):
        yield


CASE = simple_case(dtype=torch.float32)
FEATURES, GRADIENTS, AUG_FEATURES, AUG_GRADIENTS = CASE.views
CROP = CASE.transform
EYE = torch.eye(3).repeat(3, 1, 1)


def crop(**fields):
    return CROP._replace(**{name: torch.tensor(value) for name, value in fields.items()})


def matrix(value):
    matrices = EYE.clone()
    matrices[1] = torch.as_tensor(value)
    return matrices


def call(cam=(FEATURES, GRADIENTS), aug_cam=(AUG_FEATURES, AUG_GRADIENTS), transform=CROP, **settings):
    return cgc_loss(cam, aug_cam, transform, **{"image_size": SIZE, **settings})


def both(features, gradients):
    return {"cam": (features, gradients), "aug_cam": (features, gradients)}


NAN, INF = math.nan, math.inf
WRONG = [
    # scalars
    ({"temperature": 0}, ValueError, r"temperature must be finite and > 0, got 0"),
    ({"temperature": -0.5}, ValueError, r"temperature must be finite and > 0, got -0\.5"),
    ({"temperature": NAN}, ValueError, "temperature must be finite and > 0, got nan"),
    ({"temperature": INF}, ValueError, "temperature must be finite and > 0, got inf"),
    ({"temperature": "0.5"}, TypeError, "temperature must be a number, got str '0.5'"),
    ({"temperature": True}, TypeError, "temperature must be a number, got bool True"),
    ({"temperature": None}, TypeError, "temperature must be a number, got NoneType"),
    ({"temperature": torch.tensor(0.5)}, TypeError, r"temperature must be a number, got float32 \[\]"),
    ({"temperature": 1j}, TypeError, "temperature must be a number, got complex"),
    ({"eps": 0}, ValueError, r"eps must be finite and > 0, got 0"),
    ({"eps": -1e-8}, ValueError, "eps must be finite and > 0, got -1e-08"),
    ({"eps": NAN}, ValueError, "eps must be finite and > 0, got nan"),
    ({"eps": False}, TypeError, "eps must be a number, got bool False"),
    ({"consistency": -1}, ValueError, r"consistency must be finite and >= 0, got -1"),
    ({"consistency": NAN}, ValueError, "consistency must be finite and >= 0, got nan"),
    ({"consistency": INF}, ValueError, "consistency must be finite and >= 0, got inf"),
    ({"consistency": 2, "objective": "consistency"}, ValueError, "consistency must be 0 with .*, got 2; weigh"),
    ({"consistency": [1.0]}, TypeError, "consistency must be a number, got list of length 1"),
    # names
    ({"weighting": "hirescam"}, ValueError, "weighting must be one of 'gradcam', 'elementwise', got 'hirescam'"),
    ({"weighting": None}, ValueError, "weighting must be one of 'gradcam', 'elementwise', got None"),
    ({"objective": "Released"}, ValueError, "objective must be one of 'released', .*, got 'Released'"),
    ({"weighting": ["gradcam"]}, ValueError, "weighting must be one of"),
    ({"objective": 0}, ValueError, "objective must be one of 'released', .*, got 0"),
    # image_size
    ({"image_size": 0}, ValueError, "image_size must be .* each way, got 0"),
    ({"image_size": (9, 0)}, ValueError, r"image_size must be .* each way, got \(9, 0\)"),
    ({"image_size": -9}, ValueError, "image_size must be .* each way, got -9"),
    ({"image_size": 9.0}, TypeError, r"image_size must be an int or \(height, width\), got float 9\.0"),
    ({"image_size": True}, TypeError, r"image_size must be an int or \(height, width\), got bool True"),
    ({"image_size": (9, True)}, TypeError, "image_size must be an int or .*, got tuple of length 2"),
    ({"image_size": (9, 9.5)}, TypeError, "image_size must be an int or .*, got tuple of length 2"),
    ({"image_size": (3, 9, 9)}, TypeError, "image_size must be an int or .*, got tuple of length 3"),
    ({"image_size": "99"}, TypeError, "image_size must be an int or .*, got str '99'"),
    ({"image_size": None}, TypeError, "image_size must be an int or .*, got NoneType"),
    ({"image_size": torch.tensor([9, 11])}, TypeError, r"image_size must be an int or .*, got int64 \[2\]"),
    ({"image_size": 1 << 40}, ValueError, "image_size must be .* each way, got 1099511627776"),
    # the two views
    ({"cam": FEATURES}, TypeError, r"cam must be a pair \(features, gradients\), got float32 \[3, 4, 3, 4\]"),
    ({"cam": FEATURES[:2]}, ValueError, r"cam\.features must be \[B, C, H, W\] .*, got float32 \[4, 3, 4\]"),
    ({"aug_cam": AUG_FEATURES[:2]}, ValueError, r"aug_cam\.features must be \[B, C, H, W\]"),
    ({"cam": None}, TypeError, r"cam must be a pair \(features, gradients\), got NoneType"),
    ({"aug_cam": (FEATURES,) * 3}, TypeError, "aug_cam must be a pair .*, got tuple of length 3"),
    ({"cam": (FEATURES.numpy(), GRADIENTS)}, TypeError, r"cam\.features must be a torch\.Tensor, got ndarray"),
    ({"cam": (FEATURES, GRADIENTS.numpy())}, TypeError, r"cam\.gradients must be a torch\.Tensor, got ndarray"),
    ({"aug_cam": (FEATURES, None)}, TypeError, r"aug_cam\.gradients must be a torch\.Tensor, got NoneType"),
    (both(FEATURES.int(), GRADIENTS), TypeError, r"cam\.features must be torch\.float32 or .*, got torch\.int32"),
    (both(FEATURES.bool(), GRADIENTS), TypeError, r"cam\.features must be .*, got torch\.bool"),
    (both(FEATURES.cfloat(), GRADIENTS), TypeError, r"cam\.features must be .*, got torch\.complex64"),
    (both(FEATURES.to(torch.float8_e5m2), GRADIENTS), TypeError, r"cam\.features must be .*, got torch\.float8_e5m2"),
    (
        both(FEATURES.to_sparse(), GRADIENTS),
        TypeError,
        r"cam\.features must be a dense .*, got layout torch\.sparse_coo",
    ),
    (both(FEATURES, GRADIENTS.to_sparse()), TypeError, r"cam\.gradients must be a dense .*, got layout torch\.sparse"),
    (both(FEATURES, GRADIENTS.int()), TypeError, r"cam\.gradients must be torch\.float32, got torch\.int32"),
    (both(FEATURES, GRADIENTS.double()), TypeError, r"cam\.gradients must be torch\.float32, got torch\.float64"),
    (
        both(FEATURES.half(), GRADIENTS.bfloat16()),
        TypeError,
        r"cam\.gradients must be torch\.float16 or torch\.float32, got",
    ),
    (both(FEATURES[0], GRADIENTS[0]), ValueError, r"cam\.features must be \[B, C, H, W\] .*, got float32 \[4, 3, 4\]"),
    (both(FEATURES[..., None], GRADIENTS), ValueError, r"cam\.features must be \[B, C, H, W\]"),
    (both(FEATURES[:0], GRADIENTS[:0]), ValueError, r"cam\.features must be .* no empty dimension, got float32 \[0, 4"),
    (both(FEATURES[:, :0], GRADIENTS[:, :0]), ValueError, r"cam\.features must be .* no empty dimension"),
    (both(FEATURES[..., :0], GRADIENTS[..., :0]), ValueError, r"cam\.features must be .* no empty dimension"),
    (
        both(FEATURES, GRADIENTS[:2]),
        ValueError,
        r"cam\.gradients must be \[3, 4, 3, 4\] .*, got float32 \[2, 4, 3, 4\]",
    ),
    (
        both(FEATURES, GRADIENTS[..., 0]),
        ValueError,
        r"cam\.gradients must be .* or pooled \[3, 4\], got float32 \[3, 4, 3\]",
    ),
    (both(FEATURES, GRADIENTS[:, :, :1, :1]), ValueError, r"cam\.gradients must be .*, got float32 \[3, 4, 1, 1\]"),
    (both(FEATURES, GRADIENTS[:, :3, 0, 0]), ValueError, r"cam\.gradients must be .*, got float32 \[3, 3\]"),
    (
        {"aug_cam": (FEATURES[:2], GRADIENTS[:2])},
        ValueError,
        r"aug_cam\.features must have the shape .* got float32 \[2, ",
    ),
    ({"aug_cam": (FEATURES.mT, GRADIENTS.mT)}, ValueError, r"aug_cam\.features must have the shape and dtype of cam"),
    ({"aug_cam": (FEATURES.double(), GRADIENTS)}, ValueError, r"aug_cam\.features must have .* got float64 \[3, 4"),
    ({"aug_cam": (FEATURES, GRADIENTS[..., 0, 0])}, ValueError, r"aug_cam\.gradients must have .* of cam\.gradients"),
    (
        {"aug_cam": (FEATURES.to("meta"), GRADIENTS.to("meta"))},
        RuntimeError,
        r"aug_cam\.features must be on cpu .*, got meta",
    ),
    (
        {"cam": (FEATURES, GRADIENTS.to("meta"))},
        RuntimeError,
        r"cam\.gradients must be on cpu like the first view, got meta",
    ),
    # crops
    ({"transform": CropFlip(*(f[:2] for f in CROP))}, ValueError, "transform must hold one crop per image, 3, got 2"),
    ({"transform": tuple(CROP)}, TypeError, "transform must be a CropFlip or a matrix .*, got tuple of length 5"),
    ({"transform": CROP.rows().float()}, TypeError, r"rows must be a tensor \[B, 5\] of integers, got torch.float32"),
    ({"transform": CROP.rows() + 7}, ValueError, r"the flips, must be 0 or 1, got \["),
    ({"transform": CROP.rows()[:2]}, ValueError, "transform must hold one crop per image, 3, got 2"),
    ({"transform": CROP.rows() * torch.tensor([1, 1, 0, 1, 1])}, ValueError, r"CropFlip\.height must be at least 1"),
    ({"transform": None}, TypeError, "transform must be a CropFlip or a matrix .*, got NoneType"),
    ({"transform": crop(height=[0, 1, 1])}, ValueError, r"CropFlip\.height must be at least 1, got 0 at index 0"),
    ({"transform": crop(width=[1, -1, 1])}, ValueError, r"CropFlip\.width must be at least 1, got -1 at index 1"),
    (
        {"transform": crop(top=[0, 0, -1], height=[1, 1, 1])},
        ValueError,
        r"CropFlip\.top must be at least 0, got -1 at index 2",
    ),
    ({"transform": crop(left=[0, -3, 0], width=[1, 1, 1])}, ValueError, r"CropFlip\.left must be at least 0, got -3"),
    (
        {"transform": crop(top=[0, 0, 5], height=[9, 9, 5])},
        ValueError,
        r"top \+ height must be at most .* 9, got 10 at index 2",
    ),
    (
        {"transform": crop(left=[0, 1, 0], width=[11, 11, 5])},
        ValueError,
        r"left \+ width must be at most .* 11, got 12",
    ),
    (
        {"transform": crop(top=[0.0, 0.0, 0.0])},
        TypeError,
        r"CropFlip\.top must be an integer tensor, got torch\.float32",
    ),
    ({"transform": crop(flip=[0, 1, 0])}, TypeError, r"CropFlip\.flip must be a bool tensor, got torch\.int64"),
    ({"transform": crop(left=[[0], [0], [0]])}, ValueError, r"CropFlip\.left must have shape \[B\], got \[3, 1\]"),
    ({"transform": crop(width=[1, 1])}, ValueError, r"CropFlip\.width must have shape \[3\] like top, got \[2\]"),
    ({"transform": CROP._replace(top=[0, 0, 0])}, TypeError, r"CropFlip\.top must be a tensor, got list"),
    ({"transform": CropFlip(*(f[0] for f in CROP))}, ValueError, r"CropFlip\.top must have shape \[B\], got \[\]"),
    ({"transform": CROP.to("meta")}, RuntimeError, r"transform\.top must be on cpu like the first view, got meta"),
    # matrices
    (
        {"transform": EYE[:2]},
        ValueError,
        r"transform must be a matrix \[3, 2, 3\] or \[3, 3, 3\], got float32 \[2, 3, 3\]",
    ),
    ({"transform": EYE[0]}, ValueError, r"transform must be a matrix .*, got float32 \[3, 3\]"),
    ({"transform": EYE.mT[:, :, :2]}, ValueError, r"transform must be a matrix .*, got float32 \[3, 3, 2\]"),
    ({"transform": EYE.int()}, TypeError, r"transform must be torch\.float32 .*, got torch\.int32"),
    ({"transform": EYE.numpy()}, TypeError, r"transform must be a CropFlip or a matrix .*, got ndarray"),
    ({"transform": EYE.to("meta")}, RuntimeError, "transform must be on cpu like the first view, got meta"),
    ({"transform": matrix(torch.zeros(3, 3))}, ValueError, r"transform must hold finite, invertible .* at index 1"),
    (
        {"transform": matrix(torch.ones(3, 3))},
        ValueError,
        r"invertible matrices, got \[\[1\.0, 1\.0, 1\.0\].* at index 1",
    ),
    (
        {"transform": matrix(torch.full((3, 3), NAN))},
        ValueError,
        "transform must hold finite, invertible matrices, got .*nan",
    ),
    ({"transform": matrix(torch.full((3, 3), INF))}, ValueError, "transform must hold finite, invertible matrices"),
    # backends
    (
        {"backend": "fast"},
        ValueError,
        "backend must be one of 'auto', 'cuda', 'triton', 'cpp', 'torch', 'reference', got 'fast'",
    ),
    ({"backend": None}, ValueError, "backend must be one of .*, got None"),
]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_cgc_loss(wrong, error, message, backend):
    with pytest.raises(error, match=message):
        call(**{"backend": backend, **wrong})


@pytest.mark.parametrize("missing", ["image_size", "transform"])
def test_required_arguments(missing):
    arguments = {"transform": CROP, "image_size": SIZE}
    del arguments[missing]
    with pytest.raises(TypeError, match=missing):
        cgc_loss((FEATURES, GRADIENTS), (AUG_FEATURES, AUG_GRADIENTS), **arguments)


def test_numbers_that_are_equal_are_not_of_one_type():
    """What was found right is remembered: 1 and True have one hash."""
    for right, wrong in (({"temperature": 1}, {"temperature": True}), ({"eps": 1.0}, {"eps": True})):
        checks.options(**{"image_size": 9, "temperature": 0.5, **right})
        with pytest.raises(TypeError, match="must be a number, got bool True"):
            checks.options(**{"image_size": 9, "temperature": 0.5, **wrong})
    for right, wrong in ((1, True), ((1, 9), (True, 9)), ((9, 9), (9.0, 9))):
        assert checks.options(right, 0.5).eps == 1e-8
        with pytest.raises(TypeError, match="image_size must be an int"):
            checks.options(wrong, 0.5)


def test_settings_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        cgc_loss((FEATURES, GRADIENTS), (AUG_FEATURES, AUG_GRADIENTS), CROP, SIZE)


SCALARS = [row for row in WRONG if set(row[0]) <= {"temperature", "eps", "consistency", "objective", "image_size"}]
TRANSFORMS = [row for row in WRONG if set(row[0]) == {"transform"}]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("wrong", "error", "message"), SCALARS + TRANSFORMS)
def test_heatmap_loss_checks_the_same(wrong, error, message, backend):
    maps = torch.rand(3, 3, 4)
    arguments = {"transform": CROP, "image_size": SIZE, "backend": backend, **wrong}
    with pytest.raises(error, match=message):
        heatmap_loss(maps, maps, **arguments)


MAPS = torch.rand(3, 3, 4)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    ("maps", "aug_maps", "error", "message"),
    [
        (
            MAPS.half(),
            MAPS.half(),
            TypeError,
            r"^heatmaps must be torch\.float32 or torch\.float64, got torch\.float16",
        ),
        (MAPS.long(), MAPS, TypeError, r"^heatmaps must be .*, got torch\.int64"),
        (MAPS.numpy(), MAPS, TypeError, r"^heatmaps must be a torch\.Tensor, got ndarray"),
        (MAPS, None, TypeError, r"^aug_heatmaps must be a torch\.Tensor, got NoneType"),
        (MAPS.to_sparse(), MAPS, TypeError, r"^heatmaps must be a dense"),
        (MAPS[:, None], MAPS, ValueError, r"^heatmaps must be \[B, H, W\] .*, got float32 \[3, 1, 3, 4\]"),
        (MAPS, MAPS[0], ValueError, r"^aug_heatmaps must be \[B, H, W\]"),
        (MAPS[:0], MAPS[:0], ValueError, r"^heatmaps must be .* no empty dimension, got float32 \[0, 3, 4\]"),
        (
            MAPS,
            MAPS[:2],
            ValueError,
            r"^aug_heatmaps must have the shape and dtype of heatmaps, float32 \[3, 3, 4\], got",
        ),
        (MAPS, MAPS.double(), ValueError, r"^aug_heatmaps must have the shape and dtype of heatmaps"),
        (MAPS, MAPS.to("meta"), RuntimeError, r"^aug_heatmaps must be on cpu like the first view, got meta"),
    ],
)
def test_heatmaps(maps, aug_maps, error, message, backend):
    with pytest.raises(error, match=message):
        heatmap_loss(maps, aug_maps, CROP, image_size=SIZE, backend=backend)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    ("features", "gradients", "weighting", "error", "message"),
    [
        (FEATURES, GRADIENTS, "mean", ValueError, "weighting must be one of"),
        (FEATURES.int(), GRADIENTS, "gradcam", TypeError, r"^features must be .*, got torch\.int32"),
        (FEATURES[0], GRADIENTS, "gradcam", ValueError, r"^features must be \[B, C, H, W\]"),
        (FEATURES[:0], GRADIENTS[:0], "gradcam", ValueError, "no empty dimension"),
        (FEATURES, GRADIENTS[:, :2], "gradcam", ValueError, r"^gradients must be \[3, 4, 3, 4\]"),
        (FEATURES, GRADIENTS.double(), "gradcam", TypeError, r"^gradients must be torch\.float32, got"),
        (FEATURES, GRADIENTS.to("meta"), "gradcam", RuntimeError, r"^gradients must be on cpu"),
        (np.zeros((1, 1, 1, 1)), GRADIENTS, "gradcam", TypeError, r"^features must be a torch\.Tensor, got ndarray"),
    ],
)
def test_gradcam(features, gradients, weighting, error, message, backend):
    with pytest.raises(error, match=message):
        gradcam(features, gradients, weighting=weighting, backend=backend)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    # A size of None is that of the CAMs to come.
    [row for row in WRONG if not set(row[0]) & {"cam", "aug_cam", "transform"} and row[0] != {"image_size": None}],
)
def test_cgc_loss_module_checks_at_once(wrong, error, message):
    with pytest.raises(error, match=message):
        CGCLoss(**{"image_size": SIZE, **wrong})


# ---- The views' size, given or carried


def carried(size=SIZE, aug_size=SIZE):
    return {"cam": CAM(FEATURES, GRADIENTS, size), "aug_cam": CAM(AUG_FEATURES, AUG_GRADIENTS, aug_size)}


@pytest.mark.parametrize("cams", [carried(), carried(aug_size=None), carried(size=None), carried(size=list(SIZE))])
@pytest.mark.parametrize("given", [{}, {"image_size": None}, {"image_size": SIZE}, {"image_size": list(SIZE)}])
def test_the_size_that_the_views_had_need_not_be_given(cams, given):
    if isinstance(cams["cam"].image_size, list):
        cams = {**cams, "aug_cam": cams["aug_cam"]._replace(image_size=None)}
    used = []

    def cgc(*arguments):
        used.append(arguments[-1].image_size)
        return torch.zeros(())

    with backends.serving(replace(backends.named("torch"), cgc=cgc)):
        cgc_loss(**cams, transform=CROP, backend="torch", **given)
        CGCLoss(backend="torch", **given)(cams["cam"], cams["aug_cam"], CROP)
    assert used == [SIZE, SIZE]


@pytest.mark.parametrize("given", [18, (11, 9), 9])
def test_another_size_than_the_views_had_is_refused(given):
    """Views of 224 pixels and image_size=448 gave another loss without a word."""
    message = r"image_size must be the size of the views that GradCAM saw, \(9, 11\), or be left out, got \("
    for cams in (carried(), carried(aug_size=None), carried(size=None)):
        with pytest.raises(ValueError, match=message):
            call(**cams, image_size=given)
        with pytest.raises(ValueError, match=message):
            CGCLoss(image_size=given)(cams["cam"], cams["aug_cam"], CROP)


def test_views_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"aug_cam must be of views as large as cam's, \(9, 11\), got \(9, 12\)"):
        call(**carried(aug_size=(9, 12)))


def test_a_wrong_size_carried_is_checked():
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel each way"):
        call(**carried((0, 11), None), image_size=None)


def test_the_output_of_a_grad_cam_is_no_cam():
    out = GradCAMOutput(torch.rand(3, 5), CAM(FEATURES, GRADIENTS))
    message = r"cam must be .*, got a GradCAMOutput; write cgc_loss\(out\.cam, out_aug\.cam, \.\.\.\)"
    with pytest.raises(TypeError, match=f"^{message}"):
        call(cam=out, aug_cam=out)
    with pytest.raises(TypeError, match=f"^aug_{message}"):
        call(aug_cam=out)


class Operators(TorchDispatchMode):
    """Those that run within it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


def test_an_affine_matrix_takes_nothing_from_the_host():
    """A constant that is copied to a GPU waits for it, and cannot be captured into a graph."""
    given = torch.eye(3)[:2].repeat(2, 1, 1)
    with Operators() as operators:
        matrix = checks.matrix(given, given)
    assert torch.equal(matrix, torch.eye(3).repeat(2, 1, 1))
    assert operators.seen
    assert torch.ops.aten.lift_fresh.default not in operators.seen


def test_backend_is_checked_after_the_tensors():
    """The message about wrong tensors is the more useful one where both are wrong."""
    with pytest.raises(RuntimeError, match=r"cam\.gradients must be on cpu"):
        call(cam=(FEATURES, GRADIENTS.to("meta")), backend="cuda")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_what_does_not_exist_yet_says_so(name):
    with pytest.raises(
        RuntimeError, match=f"backend must be one that can serve this call, got '{name}': .*use backend='auto'"
    ):
        call(backend=name)


def test_cpp_refuses_other_devices():
    views = [v.to("meta") for v in CASE.views]
    with pytest.raises(RuntimeError, match="got 'cpp'"):
        cgc_loss(views[:2], views[2:], CROP.to("meta"), image_size=SIZE, backend="cpp")


class TestAccepted:
    """What looks odd but is right reaches the backend."""

    @pytest.fixture(autouse=True)
    def record(self):
        self.calls = []
        recording = replace(backends.named("torch"), cgc=lambda *args: self.calls.append(args) or torch.zeros(()))
        with backends.serving(recording):
            yield

    @pytest.mark.parametrize(
        "settings",
        [
            {"image_size": [9, 11]},
            {"image_size": (np.int64(9), np.int32(11))},
            {"temperature": np.float32(0.5)},
            {"temperature": 1},
            {"consistency": 0},
            {"eps": 1e-30},
            {"cam": CAM(FEATURES, GRADIENTS)},
            {"cam": [FEATURES, GRADIENTS]},
            {"transform": EYE},
            {"transform": EYE[:, :2].double()},
            {"transform": CropFlip(*(f.to(torch.int32) for f in CROP[:4]), CROP.flip)},
            both(FEATURES.half(), GRADIENTS),
            both(FEATURES.double(), GRADIENTS),
            both(FEATURES, GRADIENTS[:, :, 0, 0]),
        ],
    )
    def test_passes(self, settings):
        call(**settings, backend="torch")
        ((*_, options),) = self.calls
        assert options.image_size == SIZE
        assert type(options.temperature) is float


def test_backend_names_are_the_documented_ones():
    assert backends.BACKENDS == ("auto", "cuda", "triton", "cpp", "torch", "reference")
