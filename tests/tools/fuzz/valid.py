"""Valid calls: drawn from a seed, compared with the float64 reference on the same inputs."""

import math
import random
import threading
from dataclasses import dataclass, field

import torch

from cgc_kernels import CropFlip, backends, cgc_loss, gradcam, heatmap_loss
from cgc_kernels.backends.backend import LARGEST_SIDE
from cgc_kernels.backends.reference.resample import fine_maps, transform_maps
from cgc_kernels.options import NEAR_DEAD_SUM, OBJECTIVES
from tests.support.cases import CROPS, KINDS, LAYOUTS, WARPS, WEIGHTINGS, crop_flip, lay_out, views, warp, with_inverse
from tests.support.compare import assert_close, assert_same_bits

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Elements of one tensor: the reference runs every call, and kernels in an emulator or interpreter are slow.
ELEMENTS = {"cpp": 60_000, "torch": 60_000, "cuda": 8_000, "triton": 1_500}
FINE = {"cpp": 60_000, "torch": 60_000, "cuda": 20_000, "triton": 2_000}
# Kernels that are simulated run one call at a time.
SIMULATED = ("cuda", "triton")
_alone = threading.Lock()


def missing(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    return backends.unavailable(name)


@dataclass
class Call:
    """One call: which function, on what, with which settings, and what is asked of it."""

    function: str
    tensors: list[torch.Tensor]
    transform: CropFlip | torch.Tensor | None
    settings: dict
    wanted: list[bool]
    upstream: torch.Tensor
    notes: dict = field(default_factory=dict)

    def __call__(self, backend: str, dtype: torch.dtype | None = None):
        """Result and gradients (None where none is wanted); dtype: of other tensors of the same values."""
        pairs = zip(self.tensors, self.wanted, strict=True)
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_(w) for t, w in pairs]
        if self.function == "gradcam":
            result = gradcam(*leaves, backend=backend, **self.settings)
        elif self.function == "heatmap_loss":
            result = heatmap_loss(*leaves, self.transform, backend=backend, **self.settings)
        else:
            result = cgc_loss(leaves[:2], leaves[2:], self.transform, backend=backend, **self.settings)
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(result, asked, self.upstream.to(result.dtype)) if asked else ())
        return result.detach(), [next(grads) if w else None for w in self.wanted]


# ---- Drawing


def spread(rng: random.Random, most: int) -> int:
    """1 to `most`, small and large ones alike often."""
    return min(most, int(math.exp(rng.uniform(0, math.log(most + 1)))))


def draw(rng: random.Random, backend: str) -> Call:
    """One call that the library must serve."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    most = LARGEST_SIDE if backend in SIMULATED else 33
    function = rng.choice(["cgc_loss", "cgc_loss", "cgc_loss", "heatmap_loss", "gradcam"])
    while True:
        batch, channels = min(spread(rng, 130), spread(rng, 130)), spread(rng, 300)
        side, size = (spread(rng, most), spread(rng, most)), (spread(rng, 33), spread(rng, 33))
        if (
            batch * channels * side[0] * side[1] <= ELEMENTS[backend]
            and batch * size[0] * size[1] <= FINE[backend]
            and batch * side[0] * side[1] <= FINE[backend]
        ):
            break
    dtype = rng.choice(DTYPES[:2] if function == "heatmap_loss" else DTYPES)
    weighting = rng.choice(list(WEIGHTINGS))
    of_gradients = dtype if rng.random() < 0.5 or dtype == torch.float64 else torch.float32
    shape = batch, channels, *side
    pairs = [draw_view(rng, generator, shape, weighting, dtype, of_gradients) for _ in range(2)]
    settings = {
        "image_size": size,
        "temperature": 10 ** rng.uniform(math.log10(0.005), 1),
        "objective": rng.choice(OBJECTIVES),
        "consistency": rng.choice([0.0, 0.0, 0.7, 10.0]),
        "eps": 10 ** rng.uniform(-12, -2),
    }
    upstream = torch.tensor(rng.choice([1.0, -2.5, 1e-3, 64.0]), dtype=torch.float64)
    transform = draw_transform(rng, generator, batch, size)
    if function == "heatmap_loss":
        maps = [gradcam(f.double(), g.double(), weighting="elementwise", backend="reference") for f, g in pairs]
        tensors = [place(rng, m.to(dtype)) for m in maps]
        return Call(function, tensors, transform, settings, wants(rng, 2), upstream)
    named = {"weighting": WEIGHTINGS[weighting][1]}
    if function == "gradcam":
        upstream = torch.randn(batch, *side, generator=generator, dtype=torch.float64)
        return Call(function, [place(rng, t) for t in pairs[0]], None, named, wants(rng, 2), upstream)
    tensors = [place(rng, t) for pair in pairs for t in pair]
    return Call(function, tensors, transform, settings | named, wants(rng, 4), upstream)


def wants(rng, count):
    """Which tensors require gradients: mostly all, at times none."""
    return [True] * count if rng.random() < 0.5 else [rng.random() < 0.5 for _ in range(count)]


def draw_view(rng, generator, shape, weighting, dtype, of_gradients):
    """Features and gradients of one view, no heatmap so close to 0 that rounding decides on which side it is."""
    kinds = [rng.choice(KINDS) for _ in range(shape[0])]
    pooled = WEIGHTINGS[weighting][0]
    features, gradients = views(generator, *shape, kinds, pooled)
    if dtype != torch.float64 and rng.random() < 0.2:  # as large as float16 holds
        features = features * (65504 / features.abs().max().clamp_min(1e-30))
    features, gradients = features.to(dtype), gradients.to(of_gradients)
    weights = gradients.double() if weighting != "gradcam" else gradients.double().mean(dim=(2, 3))
    weights = weights[:, :, None, None] if weights.dim() == 2 else weights
    terms = features.double() * weights
    doubtful = terms.sum(dim=1, keepdim=True).abs() < 1e-3 * terms.abs().sum(dim=1, keepdim=True)
    signs = torch.where(weights < 0, -1.0, 1.0).to(dtype)
    return torch.where(doubtful, features.abs() * signs, features), gradients


def place(rng, tensor):
    """The same values with other strides, or behind others in their storage."""
    tensor = lay_out(tensor, rng.choice(LAYOUTS))
    if rng.random() < 0.3 and tensor.numel():
        offset = rng.randrange(1, 9)
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        storage = torch.full((offset + last + 1,), math.nan, dtype=tensor.dtype)
        moved = storage.as_strided(tensor.shape, tensor.stride(), offset)
        return moved.copy_(tensor)
    return tensor


def draw_transform(rng, generator, batch, size):
    """A CropFlip, its rows, or matrices of either shape, some of which see a sliver of a pixel."""
    kind = rng.choice(["crop", "crop", "rows", "affine", "homography", "sliver"])
    if kind in ("crop", "rows"):
        crop = crop_flip(generator, size, [rng.choice(CROPS) for _ in range(batch)])
        if kind == "rows":
            return crop.rows().to(rng.choice([torch.int64, torch.int32, torch.int16]))
        small = rng.choice([torch.int64, torch.int32, torch.int16, torch.uint8])
        return CropFlip(*(f.to(small) for f in crop[:4]), crop.flip)
    allowed = WARPS if kind == "homography" else WARPS[:-2]
    matrix = warp(generator, size, [rng.choice(allowed) for _ in range(batch)])
    if kind == "sliver":
        for one in matrix:
            one[:] = torch.eye(3)
            axis = rng.randrange(2)
            one[axis, 2] = rng.choice([-1, 1]) * (size[1 - axis] - 10 ** rng.uniform(-8, 0))
    matrix = matrix.to(rng.choice([torch.float64, torch.float64, torch.float32]))
    return matrix[:, :2] if kind == "affine" and not (matrix[:, 2, :2] != 0).any() else matrix


# ---- Comparing


def run(backend: str, seed: str, number: int) -> None:
    """Draws the call and compares; raises AssertionError where it is wrong."""
    call = draw(random.Random(seed), backend)
    compare(call, backend)


def compare(call: Call, backend: str) -> None:
    before = [t.clone() for t in call.tensors]
    if backend in SIMULATED:
        with _alone:
            result, grads = call(backend)
    else:
        result, grads = call(backend)
    for given, kept in zip(call.tensors, before, strict=True):
        assert_same_bits(given, kept, "an input after the call")
    exact, exact_grads = call("reference", torch.float64)
    wide = all(t.dtype == torch.float64 for t in call.tensors)
    (compare_cam if call.function == "gradcam" else compare_loss)(call, result, grads, exact, exact_grads, wide)


def compare_cam(call, result, grads, exact, exact_grads, wide):
    """Sums of products, rounded a few times each: in units of the sums of their magnitudes."""
    tol = 1e-13 if wide else 1e-5
    features, gradients = (t.double().abs() for t in call.tensors)
    if gradients.dim() == 4 and call.settings["weighting"] == "gradcam":
        gradients = gradients.mean(dim=(2, 3))
    gradients = gradients[:, :, None, None] if gradients.dim() == 2 else gradients
    sums = (features * gradients).sum(dim=1)
    error = (result.double() - exact).abs().flatten(1).amax(dim=1)
    assert bool((error <= tol * sums.flatten(1).amax(dim=1)).all()), "heatmaps"  # not of NaN
    flow = call.upstream.abs()[:, None]
    floors = (flow * gradients).flatten(1).amax(1), (features * flow).flatten(2).sum(2).amax(1)
    compare_grads(grads, exact_grads, floors, torch.full((len(flow),), tol, dtype=torch.float64))


def compare_loss(call, result, grads, exact, exact_grads, wide):
    """A logit is a cosine over tau, so its rounding grows by 1 / tau; a gradient is what is left of larger terms."""
    settings, weight = call.settings, abs(call.upstream.item())
    floor = 1 / math.prod(settings["image_size"]) if settings["objective"] == "mse" else 1.0
    tau = settings["temperature"]
    floors, conditions = magnitudes(call, weight)
    tol = 1e-12 + 1e-13 / tau if wide else 1e-5 + 2e-6 / tau
    condition = conditions.max().item()
    # A view of nothing but rounding, 1e-16 of a pixel, may have any cosine: the loss is known to within its weight.
    doubt = condition * ((2 * floor if settings["objective"] == "mse" else 1 / tau) + settings["consistency"])
    floor = max(floor * (1 + settings["consistency"]), doubt / tol)
    assert_close(result, exact, tol, floor=floor, what="loss", oracle=True)
    tol = 1e-10 + 1e-12 / tau if wide else 1e-4 + 5e-5 / tau
    compare_grads(grads, exact_grads, floors, torch.full_like(conditions, tol + 100 * condition))


def compare_grads(grads, exact_grads, floors, tols):
    """Sample by sample, so that none hides behind a larger one; and as their dtype rounds them."""
    for name, (grad, exact, floor) in enumerate(zip(grads, exact_grads, floors, strict=True)):
        if grad is None:
            continue
        assert grad.shape == exact.shape, f"gradient {name}: {list(grad.shape)}, expected {list(exact.shape)}"
        assert not bool(grad.isnan().any()), f"gradient {name}: NaN"
        kind = torch.finfo(grad.dtype)
        # What float16 cannot hold is infinite.
        grad, exact = (t.double().flatten(1).clamp(kind.min, kind.max) for t in (grad, exact))
        largest = exact.abs().amax(dim=1).maximum(floor)
        bound = (tols * largest)[:, None] + kind.smallest_normal * kind.eps
        bound = bound + (kind.eps * exact.abs() if kind.bits == 16 else 0)
        error = (grad - exact).abs()
        bound = bound.expand_as(error)
        sample, place = divmod(int((error - bound).argmax()), grad.shape[1])
        assert bool((error <= bound).all()), (
            f"gradient {name}, sample {sample}: got {grad[sample, place]!r}, expected {exact[sample, place]!r}, "
            f"error {error[sample, place]:.3g} > {bound[sample, place]:.3g} of {largest[sample]:.3g}"
        )


def magnitudes(call, weight):
    """For each tensor, [B]: the size of the terms whose difference a sample's gradient is, times 0.01; and [B], what
    the rounding of a warp's positions, 1e-16 of the view, does to a view of which little is seen."""
    settings = call.settings
    size, eps = settings["image_size"], settings["eps"]
    tensors = [t.double() for t in call.tensors]
    maps = tensors
    if call.function == "cgc_loss":
        maps = [gradcam(*tensors[i : i + 2], weighting=settings["weighting"], backend="reference") for i in (0, 2)]
    batch = len(maps[0])
    weight = weight * (2 / math.prod(size) if settings["objective"] == "mse" else 1 / settings["temperature"])
    weight = (weight + abs(call.upstream.item()) * settings["consistency"]) / batch
    transform = call.transform
    if isinstance(transform, torch.Tensor) and transform.shape[1:] == (5,):
        transform = CropFlip.from_rows(transform)
    transform = with_inverse(transform)
    floors, conditions = [], torch.zeros(batch, dtype=torch.float64)
    for i, heatmaps in enumerate(maps):
        fine = fine_maps(heatmaps, size, eps)
        seen = (transform_maps(fine, transform) if i == 0 else fine).flatten(1)
        norm = seen.norm(dim=1)
        sums = (fine_sums(heatmaps, size)).clamp_min(NEAR_DEAD_SUM)
        scale = torch.where(norm == 0, 0, 0.01 * weight / (norm.clamp_min(eps) * sums))
        if i == 0 and not isinstance(transform, CropFlip):
            largest = fine.flatten(1).amax(dim=1)
            conditions = torch.where(norm == 0, 0, 1e-15 * max(size) * largest * seen.shape[1] ** 0.5 / norm)
        if call.function == "heatmap_loss":
            floors.append(scale)
            continue
        features, gradients = (t.flatten(1).abs().amax(dim=1) for t in tensors[2 * i : 2 * i + 2])
        floors += [scale * gradients, scale * features * heatmaps[0].numel()]
    return floors, conditions.clamp_max(1.0)


def fine_sums(heatmaps, size):
    """s of every heatmap, [B]."""
    return torch.nn.functional.interpolate(heatmaps[:, None], size=size, mode="bilinear").sum(dim=(1, 2, 3))
