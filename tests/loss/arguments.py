"""Arguments of cgc_loss, right and wrong, with the errors that the wrong ones raise."""

import math

import torch

from cgc_kernels import CropFlip, cgc_loss
from tests.support.cases import CPP, simple_case

NAMES = ("auto", "torch", "reference", CPP)
SIZE = (9, 11)
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
