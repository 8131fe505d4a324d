"""What the package is measured against: the same loss on the fine S_h x S_w grid, as good as plain PyTorch makes it.

`literal` is the released code's pipeline, one sample at a time; `vectorised` is the fastest formulation over the batch
that was found; `grid_sample` is the one that is written first; `compiled` is torch.compile of the fastest under it.
All share `cam`. None uses the H x W algebra of the package (docs/mathematics.md). Autograd makes every backward.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cgc_kernels import CropFlip

EPS = 1e-8


def literal(features, gradients, aug_features, aug_gradients, crop, **options) -> Tensor:
    """The released code's pipeline: a Python loop over the samples for crop, resize and flip."""
    return _loss(_literal_maps, _plain_cosines, features, gradients, aug_features, aug_gradients, crop, **options)


def vectorised(features, gradients, aug_features, aug_gradients, crop, **options) -> Tensor:
    """The pipeline over the whole batch in eager PyTorch."""
    return _loss(_batched_maps, _fast_cosines, features, gradients, aug_features, aug_gradients, crop, **options)


def grid_sample(features, gradients, aug_features, aug_gradients, crop, **options) -> Tensor:
    """The pipeline over the whole batch, with interpolate and grid_sample."""
    return _loss(_sampled_maps, _plain_cosines, features, gradients, aug_features, aug_gradients, crop, **options)


def compiled(function: Callable = vectorised) -> Callable:
    """torch.compile (inductor, static shapes) of the whole loss, or of a stage; a fresh one at every call."""
    torch._dynamo.reset()  # it gives up after eight variants of one function
    warnings.filterwarnings("ignore", module=r"torch\.")  # the compiler warns of its own deprecations
    return torch.compile(function, dynamic=False)


def no_compiler() -> str | None:
    """Why inductor cannot compile for the CPU here; None if it can."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return (
        None if shutil.which(compiler.split()[0]) else f"torch.compile needs a C++ compiler, {compiler} was not found"
    )


# --- stages -----------------------------------------------------------------------------------------------------------


def cam(features: Tensor, gradients: Tensor, weighting: str) -> Tensor:
    """Heatmaps [B, H, W]. Elementwise also tried: einsum and batched matmul (which copy), vecdot (equal). Weights also
    tried: mean, whose backward fills a tensor where that of sum is an expanded view, adaptive_avg_pool2d; then einsum
    (equal to bmm), multiply and sum, matmul over permuted features."""
    if weighting == "elementwise" and gradients.dim() == 4:
        return torch.relu((gradients.flatten(2) * features.flatten(2)).sum(1, dtype=_wide(features))).unflatten(
            1, features.shape[2:]
        )
    if gradients.dim() == 4:
        gradients = gradients.sum((2, 3)) / gradients[0, 0].numel()
    heatmaps = torch.bmm(gradients[:, None].to(features.dtype), features.flatten(2))
    return torch.relu(heatmaps.to(_wide(features))).view(len(features), *features.shape[2:])


def literal_resample(heatmaps, aug_heatmaps, crop, image_size) -> tuple[Tensor, Tensor, Tensor]:
    """Unit fine maps twice (rows and keys of the released objective) and positives."""
    return _unit_rows(*_literal_maps(heatmaps, aug_heatmaps, crop, image_size))


def vectorised_resample(heatmaps, aug_heatmaps, crop, image_size) -> tuple[Tensor, Tensor, Tensor]:
    """`literal_resample` over the whole batch."""
    return _unit_rows(*_batched_maps(heatmaps, aug_heatmaps, crop, image_size))


def contrast(rows: Tensor, keys: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the full [B, B] matrix."""
    return _cross_entropy((rows @ keys.T).diagonal_scatter(positives), temperature)


# --- the loss ---------------------------------------------------------------------------------------------------------


def _loss(
    maps,
    cosines,
    features,
    gradients,
    aug_features,
    aug_gradients,
    crop: CropFlip,
    *,
    image_size: tuple[int, int],
    temperature: float = 0.5,
    weighting: str = "gradcam",
    objective: str = "released",
) -> Tensor:
    heatmaps, aug_heatmaps = cam(features, gradients, weighting), cam(aug_features, aug_gradients, weighting)
    transformed, augmented = (m.flatten(1) for m in maps(heatmaps, aug_heatmaps, crop, image_size))
    if objective == "mse":
        return F.mse_loss(F.normalize(augmented), F.normalize(transformed))
    return _cross_entropy(cosines(transformed, augmented, objective), temperature)


def _cross_entropy(cosines: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(cosines / temperature, torch.arange(len(cosines), device=cosines.device))


def _plain_cosines(transformed, augmented, objective):
    """[B, B] cosines of unit vectors, positives on the diagonal."""
    transformed, augmented = F.normalize(transformed), F.normalize(augmented)
    if objective == "paper":
        return transformed @ augmented.T
    return (augmented @ augmented.T).diagonal_scatter((augmented * transformed).sum(1))


def _fast_cosines(transformed, augmented, objective):
    """The same without unit vectors in memory: products first, norms after. Also tried: F.normalize, batched dot
    products by bmm, norms from vector_norm."""
    norm = torch.linalg.vector_norm(transformed, dim=1)
    if objective == "paper":
        return (transformed @ augmented.T) / (norm[:, None] * torch.linalg.vector_norm(augmented, dim=1))
    # The product is symmetric: with one factor detached its backward is one matrix product instead of two.
    half = augmented @ augmented.detach().T
    gram = half + half.T - half.detach()
    aug_norm = gram.diagonal().sqrt()
    positives = torch.linalg.vecdot(augmented, transformed) / (aug_norm * norm)
    return (gram / (aug_norm[:, None] * aug_norm)).diagonal_scatter(positives)


def _unit_rows(transformed, augmented):
    rows = F.normalize(augmented.flatten(1))
    return rows, rows, (rows * F.normalize(transformed.flatten(1))).sum(1)


# --- fine maps: (transformed originals, augmented), [B, S_h, S_w] each -----------------------------------------------


def _literal_maps(heatmaps, aug_heatmaps, crop, image_size):
    fine = _normalise(_interpolate(heatmaps, image_size))
    transformed = torch.cat([_crop_one(m, *box) for m, *box in zip(fine, *(f.tolist() for f in crop), strict=True)])
    return transformed, _normalise(_interpolate(aug_heatmaps, image_size))


def _batched_maps(heatmaps, aug_heatmaps, crop, image_size):
    """The crop is applied to the two upsampling matrices of each sample instead of to its map. Also tried, up to four
    times slower: copying or gathering and blending rows and columns of the maps, batched products with [S, S]
    interpolation matrices, grid_sample, four-tap indexing, embedding_bag for the rows."""
    (height, width), dtype = image_size, heatmaps.dtype
    up_y, up_x = _upsamplers(heatmaps, image_size)
    crop_y = _blended_rows(up_y, *_taps(crop.top, crop.height, None, height, dtype))
    crop_x = _blended_rows(up_x, *_taps(crop.left, crop.width, crop.flip, width, dtype))
    sums = up_y.sum(0) @ heatmaps @ up_x.sum(0)
    return _scaled(crop_y @ heatmaps @ crop_x.mT, sums[:, None, None]), _upsample(aug_heatmaps, image_size)


def _sampled_maps(heatmaps, aug_heatmaps, crop, image_size):
    fine = _normalise(_interpolate(heatmaps, image_size))
    return _sample(fine, crop), _normalise(_interpolate(aug_heatmaps, image_size))


def _interpolate(maps, size):
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _normalise(fine):
    return fine / (fine.sum((1, 2), keepdim=True) + EPS) + EPS


def _upsample(heatmaps, image_size):
    """Upsampled and normalised. Also tried: interpolate, one product with the Kronecker matrix, F.linear, einsum."""
    up_y, up_x = _upsamplers(heatmaps, image_size)
    fine = up_y @ heatmaps @ up_x.T
    return _scaled(fine, fine.sum((1, 2), keepdim=True))


def _upsamplers(heatmaps, image_size):
    sizes = zip(image_size, heatmaps.shape[1:], strict=True)
    return [_hat(_centres(size, n, heatmaps.device), n, heatmaps.dtype) for size, n in sizes]


def _scaled(fine, sums):
    return torch.addcmul(torch.full((), EPS, dtype=fine.dtype, device=fine.device), fine, 1 / (sums + EPS))


def _centres(size, length, device):
    """Source positions of `size` output pixels in `length` input ones, clamped at the border."""
    return ((torch.arange(size, dtype=torch.float64, device=device) + 0.5) * (length / size) - 0.5).clamp(0, length - 1)


def _hat(position, n, dtype):
    return (1 - (position[:, None] - torch.arange(n, device=position.device)).abs()).clamp_min(0).to(dtype)


def _crop_one(fine, top, left, height, width, flip):
    resized = _interpolate(fine[None, top : top + height, left : left + width], fine.shape)
    return resized.flip(2) if flip else resized


def _blended_rows(matrix, low, high, share):
    """Rows of a [S, n] matrix at the source positions of every output pixel, [B, S, n]."""
    return torch.lerp(matrix[low], matrix[high], share[:, :, None])


def _taps(start, length, flip, size, dtype):
    """The two source pixels of every output pixel, [B, size] each, and the share of the second."""
    position = _source(start, length, flip, size)
    low = position.floor()
    share = (position - low).to(dtype)
    return low.long(), torch.minimum(low.long() + 1, (start + length - 1)[:, None]), share


def _source(start, length, flip, size):
    """Source pixel of every output pixel, [B, size] float64, clamped at the crop's own border."""
    length = length[:, None]
    pixels = torch.arange(size, device=start.device)
    position = ((pixels + 0.5) * (length.double() / size) - 0.5).clamp_min(0).minimum(length - 1)
    if flip is not None:
        position = torch.where(flip[:, None], position.flip(1), position)
    return position + start[:, None]


def _sample(maps, crop):
    """Crop, resize and flip by grid_sample at positions clamped to the crop."""
    height, width = maps.shape[1:]
    y = _source(crop.top, crop.height, None, height) * (2 / max(height - 1, 1)) - 1
    x = _source(crop.left, crop.width, crop.flip, width) * (2 / max(width - 1, 1)) - 1
    grid = torch.stack((x[:, None].expand(maps.shape), y[:, :, None].expand(maps.shape)), -1).to(maps.dtype)
    return F.grid_sample(maps[:, None], grid, align_corners=True, padding_mode="border")[:, 0]


def _wide(features):
    return torch.float64 if features.dtype == torch.float64 else torch.float32


# Each value makes the function: a new torch.compile for every use, which specialises on its shapes.
LOSSES: dict[str, Callable[[], Callable]] = {
    "literal": lambda: literal,
    "grid_sample": lambda: grid_sample,
    "vectorised": lambda: vectorised,
    "compiled": compiled,
}
