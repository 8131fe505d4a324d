"""Inputs for the tests: hypothesis strategies for the loss, and one way to evaluate it."""

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cgc_kernels import CropFlip, cgc_loss, gradcam, info
from cgc_kernels.backends.reference.resample import fine_maps, transform_maps
from cgc_kernels.options import OBJECTIVES
from tests.support.compare import assert_close

# Tensors are tiny here: more threads would only wait for each other.
torch.set_num_threads(1)

VIEWS = ("features", "gradients", "aug_features", "aug_gradients")
CPP = pytest.param(
    "cpp",
    marks=pytest.mark.skipif(not info()["backends"]["cpp"]["available"], reason=info()["backends"]["cpp"]["reason"]),
)
BACKENDS = ("torch", CPP)
EVERY_BACKEND = ("reference", "torch", CPP)

KINDS = ("ordinary", "ordinary", "dead", "near_dead", "one_pixel", "equal")
CROPS = ("any", "any", "pixel", "full", "border", "row", "column")
WARPS = ("affine", "affine", "mirror", "identity", "blind", "homography", "horizon")
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")
# Name -> (whether the gradients come pooled, what the call says).
WEIGHTINGS = {"pooled": (True, "gradcam"), "gradcam": (False, "gradcam"), "elementwise": (False, "elementwise")}

# 200 examples for each property and backend, the same ones in every run.
examples = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Case(NamedTuple):
    """The arguments of one call of cgc_loss."""

    views: tuple[torch.Tensor, ...]  # as VIEWS
    transform: CropFlip | torch.Tensor
    settings: dict[str, Any]

    def to(self, dtype: torch.dtype, gradients: torch.dtype | None = None) -> "Case":
        """The same call in another dtype."""
        dtypes = (dtype, gradients or dtype) * 2
        return self._replace(views=tuple(v.to(d) for v, d in zip(self.views, dtypes, strict=True)))

    def leaves(self, wanted=(True, True, True, True)) -> list[torch.Tensor]:
        """The views as leaves of a graph of their own; those wanted require gradients."""
        return [v.detach().requires_grad_(want) for v, want in zip(self.views, wanted, strict=True)]

    def loss(self, leaves, backend: str, **options) -> torch.Tensor:
        """The call, with other views; options: more arguments of it."""
        return cgc_loss(leaves[:2], leaves[2:], self.transform, backend=backend, **self.settings, **options)


def evaluate(case: Case, backend: str, wanted=(True, True, True, True)) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, and its gradient with respect to the wanted ones of VIEWS."""
    leaves = case.leaves(wanted)
    loss = case.loss(leaves, backend)
    names = [name for name, want in zip(VIEWS, wanted, strict=True) if want]
    grads = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad]) if names else ()
    return loss.detach(), dict(zip(names, grads, strict=True))


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values with other strides; channels_last leaves pooled gradients [B, C] as they are."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    return tensor.contiguous()


def strides(tensor: torch.Tensor) -> list[int]:
    """Strides that mean something: those of dimensions longer than 1."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def views(generator, batch, channels, height, width, kinds, pooled=False, dtype=torch.float64):
    """Features [B, C, H, W] and gradients [B, C, H, W] or [B, C] of one view, with a kind of heatmap per sample."""
    features = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    gradients = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    for sample, kind in enumerate(kinds):
        f, g = features[sample], gradients[sample]
        if kind == "ordinary":
            f[0].abs_().add_(0.5)
            g[0].abs_().add_(channels)  # some of it is alive
            continue
        f.abs_()
        g.abs_().add_(0.1)
        if kind == "dead":
            f.neg_()
        elif kind == "near_dead":
            f.mul_(10.0 ** -int(torch.randint(6, 12, (), generator=generator)))
        elif kind == "one_pixel":
            pixel = int(torch.randint(height * width, (), generator=generator))
            f.flatten(1)[:, torch.arange(height * width) != pixel] = 0
        elif kind == "equal":
            f[:] = f[:, :1, :1].clone()
            g[:] = g[:, :1, :1].clone()
    if pooled:
        gradients = gradients.mean(dim=(2, 3))
    return features.to(dtype), gradients.to(dtype)


def crop_flip(generator, size, kinds) -> CropFlip:
    """One crop of each kind inside a view of `size`, flipped at random."""

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    boxes = []
    for kind in kinds:
        box = []
        for axis, pixels in enumerate(size):
            length = draw(1, pixels)
            if kind == "full" or kind == ("column", "row")[axis]:
                length = pixels
            elif kind == "pixel" or kind == ("row", "column")[axis]:
                length = 1
            start = draw(0, pixels - length)
            if kind == "border":
                start = (0, pixels - length)[draw(0, 1)]
            box.append((start, length))
        boxes.append([box[0][0], box[1][0], box[0][1], box[1][1], draw(0, 1)])
    top, left, height, width, flip = torch.tensor(boxes).unbind(1)
    return CropFlip(top, left, height, width, flip.bool())


def warp(generator, size, kinds) -> torch.Tensor:
    """Matrices [B, 3, 3], float64, one of each kind, from original to augmented pixels of a view of `size`."""
    height, width = size
    matrices = []
    for kind in kinds:
        r = torch.rand(8, generator=generator, dtype=torch.float64) * 2 - 1
        angle, (zoom_x, zoom_y) = 1.5 * r[0], torch.exp(0.7 * r[1:3])
        cos, sin = angle.cos(), angle.sin()
        m = torch.eye(3, dtype=torch.float64)
        if kind != "identity":
            linear = torch.stack([zoom_x * cos, -zoom_x * sin, zoom_y * sin, zoom_y * cos]).view(2, 2)
            m[:2, :2] = linear * torch.tensor([[-1.0], [1.0]]) if kind == "mirror" else linear
            centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
            m[:2, 2] = centre - m[:2, :2] @ centre + r[3:5] * centre / 2
        if kind == "blind":
            m[:2, 2] += 100.0 * max(size)
        if kind in ("homography", "horizon"):
            m[2, :2] = r[5:7] * (0.2 if kind == "homography" else 2.0) / max(size)
        matrices.append(m)
    return torch.stack(matrices)


@st.composite
def transforms(draw, batch, size, generator, kinds=("crop", "crop", "warp", "affine")):
    """A CropFlip, or matrices [B, 3, 3] or [B, 2, 3]."""
    kind = draw(st.sampled_from(kinds))
    if kind == "crop":
        return crop_flip(generator, size, draw(st.lists(st.sampled_from(CROPS), min_size=batch, max_size=batch)))
    allowed = WARPS if kind == "warp" else WARPS[:5]
    matrix = warp(generator, size, draw(st.lists(st.sampled_from(allowed), min_size=batch, max_size=batch)))
    return matrix if kind == "warp" else matrix[:, :2]


def generators():
    """Seeded sources of the numbers that need no shrinking."""
    return st.integers(0, 2**31 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def loss_settings(draw, low_temperature=0.005):
    """Keyword arguments of cgc_loss except weighting and image_size."""
    return {
        "temperature": draw(st.sampled_from([t for t in (0.005, 0.012, 0.07, 0.5, 1.0, 10.0) if t >= low_temperature])),
        "objective": draw(st.sampled_from(OBJECTIVES)),
        "consistency": draw(st.sampled_from([0.0, 0.0, 0.7, 10.0])),
        "eps": draw(st.sampled_from([1e-8, 1e-8, 1e-4, 0.1])),
    }


@st.composite
def cases(draw, max_batch=5, max_side=6, max_size=13, low_temperature=0.005, kinds=KINDS):
    """Calls of cgc_loss in float64."""
    generator = draw(generators())
    batch, channels = draw(st.integers(1, max_batch)), draw(st.integers(1, 7))
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    size = draw(st.integers(1, max_size)), draw(st.integers(1, max_size))
    pooled = draw(st.booleans())
    heatmaps = st.lists(st.sampled_from(kinds), min_size=batch, max_size=batch)
    views_ = (
        *views(generator, batch, channels, height, width, draw(heatmaps), pooled),
        *views(generator, batch, channels, height, width, draw(heatmaps), pooled),
    )
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(2)]
    views_ = tuple(lay_out(v, layouts[i // 2]) for i, v in enumerate(views_))
    transform = draw(transforms(batch, size, generator))
    weighting = draw(st.sampled_from(["gradcam", "elementwise"]))
    return Case(views_, transform, {**draw(loss_settings(low_temperature)), "image_size": size, "weighting": weighting})


def simple_case(
    batch=3,
    channels=4,
    side=(3, 4),
    size=(9, 11),
    pooled=False,
    seed=0,
    dtype=torch.float64,
    transform="crop",
    **settings,
) -> Case:
    """One call with ordinary heatmaps; transform: "crop", "warp", or the thing itself."""
    generator = torch.Generator().manual_seed(seed)
    pair = [views(generator, batch, channels, *side, ["ordinary"] * batch, pooled, dtype) for _ in range(2)]
    if isinstance(transform, str):
        make, kinds = {"crop": (crop_flip, ("any", "border", "full")), "warp": (warp, ("affine", "homography"))}[
            transform
        ]
        transform = make(generator, size, [kinds[i % len(kinds)] for i in range(batch)])
    defaults = {"temperature": 0.5, "weighting": "gradcam", "objective": "released", "consistency": 0.0, "eps": 1e-8}
    return Case((*pair[0], *pair[1]), transform, {"image_size": size, **defaults, **settings})


def noise_floors(case: Case) -> dict[str, torch.Tensor]:
    """For each of VIEWS, [B]: the size of the terms whose difference a sample's gradient is, times 0.01.

    A gradient is what is left of 1 / (tau |m| max(s, 1e-3)) after the radial part is taken out; where nothing is left
    (1x1 maps, equal maps) it is rounding noise, which no relative bound can judge.
    """
    given, views_ = case.settings, [v.double() for v in case.views]
    pixels = math.prod(given["image_size"])
    weight = 2 / pixels if given["objective"] == "mse" else 1 / given["temperature"]
    weight = (weight + given["consistency"]) / len(views_[0])
    inverse = with_inverse(case.transform)
    floors, units = {}, {}
    for name, other in (("features", "gradients"), ("aug_features", "aug_gradients")):
        features, gradients = (views_[VIEWS.index(n)] for n in (name, other))
        heatmaps = gradcam(features, gradients, weighting=given["weighting"], backend="reference")
        fine = fine_maps(heatmaps, given["image_size"], given["eps"])
        sums = F.interpolate(heatmaps[:, None], size=given["image_size"], mode="bilinear").sum(dim=(1, 2, 3))
        seen = (fine if "aug" in name else transform_maps(fine, inverse)).flatten(1)
        norm = seen.norm(dim=1)
        units[name] = seen / norm[:, None]
        scale = 0.01 * weight / (norm.clamp_min(given["eps"]) * sums.clamp_min(1e-3))
        scale[norm == 0] = 0
        floors[name] = scale * gradients.flatten(1).abs().amax(dim=1)
        floors[other] = scale * features.flatten(1).abs().amax(dim=1) * features[0, 0].numel()
    if given["objective"] == "mse":
        # A cosine that rounds to 1 may be any within 1e-16 of it: unit maps within 1e-8 of each other.
        equal = (units["features"] * units["aug_features"]).sum(dim=1) > 1 - 1e-14
        floors = {name: torch.where(equal, 1e5 * floor, floor) for name, floor in floors.items()}
    return floors


def with_inverse(transform):
    """What the backends' stages take: the CropFlip, or inverse matrices [B, 3, 3]."""
    if isinstance(transform, CropFlip):
        return transform
    if transform.shape[1] == 2:
        last = torch.tensor([0.0, 0.0, 1.0], dtype=transform.dtype)
        transform = torch.cat([transform, last.expand(len(transform), 1, 3)], dim=1)
    return torch.linalg.inv(transform.double()).contiguous()


def assert_same_loss(actual, expected, case: Case, tol: float = 1e-10, grad_tol: float | None = None, oracle=False):
    """Compare two results of `evaluate`; gradients sample by sample, so that none hides behind a larger one."""
    floor = 1 / math.prod(case.settings["image_size"]) if case.settings["objective"] == "mse" else 1.0
    assert_close(actual[0], expected[0], tol, floor=floor, what="loss", oracle=oracle)
    floors = noise_floors(case)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in actual[1].items():
        assert grad.shape == expected[1][name].shape, name
        for i, one in enumerate(grad):
            what = f"gradient of {name}, sample {i},"
            assert_close(one, expected[1][name][i], grad_tol or tol, floor=floors[name][i], what=what, oracle=oracle)


@contextlib.contextmanager
def poison():
    """Uninitialised memory is NaN."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def golden_cases(folder) -> dict[str, dict[str, np.ndarray]]:
    """The released code's inputs and outputs, by name."""
    return {path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}
