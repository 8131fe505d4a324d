"""Wrong input: an error that names the argument, what it must be and what it got, before any work."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cgc_kernels import CAM, CGCLoss, CropFlip, GradCAMOutput, backends, cgc_loss, checks, gradcam, heatmap_loss
from tests.loss.arguments import (
    AUG_FEATURES,
    AUG_GRADIENTS,
    CASE,
    CROP,
    EYE,
    FEATURES,
    GRADIENTS,
    NAMES,
    SIZE,
    WRONG,
    both,
    call,
)
from tests.support.dispatched import Dispatched

pytestmark = pytest.mark.usefixtures("no_work")


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


def test_the_output_of_a_grad_cam_is_no_cam():
    out = GradCAMOutput(torch.rand(3, 5), CAM(FEATURES, GRADIENTS))
    message = r"cam must be .*, got a GradCAMOutput; write cgc_loss\(out\.cam, out_aug\.cam, \.\.\.\)"
    with pytest.raises(TypeError, match=f"^{message}"):
        call(cam=out, aug_cam=out)
    with pytest.raises(TypeError, match=f"^aug_{message}"):
        call(aug_cam=out)


def test_an_affine_matrix_takes_nothing_from_the_host():
    """A constant that is copied to a GPU waits for it, and cannot be captured into a graph."""
    given = torch.eye(3)[:2].repeat(2, 1, 1)
    with Dispatched() as dispatched:
        matrix = checks.matrix(given, given)
    assert torch.equal(matrix, torch.eye(3).repeat(2, 1, 1))
    assert dispatched.operators
    assert torch.ops.aten.lift_fresh.default not in dispatched.operators


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
    def record(self, no_work):
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
