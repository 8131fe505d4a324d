"""The public functions: check the input once, choose a backend, call it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from . import backends, checks
from .backends.backend import Backend
from .grad_cam import CAM
from .options import CONSISTENCY, WEIGHTINGS, Options, widest_dtype
from .tensors import is_dense
from .transforms import CropFlip


def cgc_loss(
    cam: CAM | Sequence[torch.Tensor],
    aug_cam: CAM | Sequence[torch.Tensor],
    transform: CropFlip | torch.Tensor,
    *,
    image_size: int | tuple[int, int] | None = None,
    temperature: float = 0.5,
    weighting: str = "gradcam",
    objective: str = "released",
    consistency: float = 0.0,
    eps: float = 1e-8,
    backend: str = "auto",
    group: "dist.ProcessGroup | None" = None,
    even: bool = False,
) -> torch.Tensor:
    """Contrastive Grad-CAM consistency loss (CGC, Pillai et al., CVPR 2022) of a batch of image pairs.

    Grad-CAM heatmaps of both views are upsampled to the view's size and normalised; the heatmap of the original view is
    cropped, resized and flipped as the image was; the loss asks that it match the augmented view's heatmap and differ
    from the other images'. It is computed exactly on the H x W maps: no S_h x S_w map and no [B, B] matrix is stored.

    Args:
        cam: (features, gradients) of the original views, a :class:`CAM` or any such pair. features: [B, C, H, W],
            float32, float64, bfloat16 or float16, contiguous or channels_last (read in place). gradients of the class's
            logit: [B, C, H, W], or pooled, their mean over H and W, [B, C]; the features' dtype or float32.
        aug_cam: the same of the augmented views, with the same shapes and dtypes.
        transform: how each augmented view was cut from its original: :class:`CropFlip`, or its rows [B, 5], integers
            (top, left, height, width, flip), or affine [B, 2, 3] or homography [B, 3, 3] matrices from original to
            augmented pixels (centres at integers, zero outside; pixels whose homogeneous denominator is <= 0 are
            outside). Matrices get no gradient.
        image_size: S or (S_h, S_w), pixels of a view. A :class:`CAM` from GradCAM carries it: None then, and another
            size is an error. Other pairs need it, since a wrong default would be silent.
        temperature: tau > 0.
        weighting: "gradcam", channel weights are the mean of the gradients over space (Grad-CAM as published);
            "elementwise", gradients times features before the sum over channels (the released code; HiResCAM).
        objective: "released", positives against <augmented_i, augmented_j>, as the released code; "paper", against
            <transformed original_i, augmented_j>, equation 3; "mse", mean squared difference of the unit maps;
            "consistency", the term below alone, without negatives (1/2 for a sample whose matrix shows nothing).
        consistency: >= 0, weight of mean(1 - positive cosine), added to any other objective; ours, not the paper's.
        eps: > 0, added to the heatmap's sum and to the quotient.
        backend: "auto", "cpp", "torch", "reference", "triton" or "cuda".
        group: a torch.distributed process group, ``torch.distributed.group.WORLD`` for all ranks: negatives come from
            all of its ranks, all of which must make this call. Every rank then returns the mean over all ranks'
            samples; the gradients it gives are W (ranks) times that mean's, so that DistributedDataParallel, which
            averages over ranks, arrives at the true one. [B, H * W] rows, [B] positives and then [B] row losses travel,
            features do not; each rank contrasts its own samples with all (backend "reference": all with all). Batch
            sizes may differ between ranks. None: this process alone.
        even: every rank of the group has the same B: sizes are then not exchanged, and the host does not wait for a
            GPU. Sizes that differ nevertheless are an error of the communication, or a hang.

    Returns:
        Scalar, float64 for float64 features, float32 otherwise. Differentiable once, with respect to features and
        gradients. A batch of one has no negatives: "released" and "paper" are then 0, with zero gradients, before the
        consistency term. NaN anywhere makes the loss NaN. The gradient of a near-dead heatmap, one whose upsampled
        sum s is below 1e-3, is multiplied by (s + eps) / 1e-3; the released code's grows without bound there.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what it must be and what it is. Values
            inside tensors (a crop outside the view) are checked for CPU tensors in eager mode.
        RuntimeError: tensors on different devices, a backend that cannot serve, or a double backward.

    Unlike the released code, a flip is recorded only where one was made, and a batch of one is allowed.

    Example::

        >>> import torch
        >>> from cgc_kernels import CropFlip, cgc_loss
        >>> features, aug_features = torch.rand(2, 8, 16, 7, 7, requires_grad=True)
        >>> gradients, aug_gradients = torch.randn(2, 8, 16, 7, 7)
        >>> transform = CropFlip.identity(8, 224)
        >>> loss = cgc_loss((features, gradients), (aug_features, aug_gradients), transform, image_size=224)
        >>> loss.backward()
    """
    options = checks.options(image_size, temperature, weighting, objective, consistency, eps)
    return _loss(cam, aug_cam, transform, options, backend, group, even)


def heatmap_loss(
    heatmaps: torch.Tensor,
    aug_heatmaps: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    *,
    image_size: int | tuple[int, int],
    temperature: float = 0.5,
    objective: str = "released",
    consistency: float = 0.0,
    eps: float = 1e-8,
    backend: str = "auto",
    group: "dist.ProcessGroup | None" = None,
    even: bool = False,
) -> torch.Tensor:
    """The loss of :func:`cgc_loss` for heatmaps from anywhere, another explainer's for instance.

    Args:
        heatmaps: of the original views, [B, H, W], float32 or float64, non-negative.
        aug_heatmaps: of the augmented views, same shape and dtype.
        transform, image_size, temperature, objective, consistency, eps, backend, group, even: as in :func:`cgc_loss`.

    Returns:
        Scalar of the heatmaps' dtype, differentiable once with respect to both heatmaps.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`cgc_loss`.

    Example::

        >>> import torch
        >>> from cgc_kernels import CropFlip, heatmap_loss
        >>> heatmaps, aug_heatmaps = torch.rand(2, 8, 7, 7, requires_grad=True)
        >>> heatmap_loss(heatmaps, aug_heatmaps, CropFlip.identity(8, 224), image_size=224).backward()
    """
    options = checks.sized(
        checks.options(image_size, temperature, objective=objective, consistency=consistency, eps=eps)
    )
    checks.heatmaps(heatmaps, "heatmaps")
    checks.heatmaps(aug_heatmaps, "aug_heatmaps")
    checks.same_kind("aug_heatmaps", aug_heatmaps, "heatmaps", heatmaps)
    transform = _prepare(transform, heatmaps, options.image_size)
    chosen = _choose(backend, heatmaps, group, even)
    return _computed(chosen.heatmap_loss, heatmaps, aug_heatmaps, transform, options)


def gradcam(
    features: torch.Tensor | CAM,
    gradients: torch.Tensor | None = None,
    *,
    weighting: str = "gradcam",
    backend: str = "auto",
) -> torch.Tensor:
    """Grad-CAM heatmaps ReLU(sum_c weight_c * A_c), fused and differentiable (Selvaraju et al. 2017, equation 2).

    Args:
        features: A, [B, C, H, W], float32, float64, bfloat16 or float16; or a :class:`CAM`, which holds both.
        gradients: G of the class's logit, [B, C, H, W] or pooled [B, C], the features' dtype or float32.
        weighting: "gradcam" or "elementwise", as in :func:`cgc_loss`.
        backend: as in :func:`cgc_loss`.

    Returns:
        [B, H, W], >= 0, not scaled or resized; float64 for float64 features, float32 otherwise. Unlike the maps of
        Grad-CAM libraries it stays attached to the graph. Differentiable once.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`cgc_loss`.

    Example::

        >>> import torch
        >>> from cgc_kernels import gradcam
        >>> gradcam(torch.rand(8, 16, 7, 7), torch.randn(8, 16)).shape
        torch.Size([8, 7, 7])
    """
    checks.choice("weighting", weighting, WEIGHTINGS)
    if isinstance(features, CAM):
        features, gradients, _ = features
    checks.features_and_gradients(features, gradients)
    return _choose(backend, features).cam(features, gradients, weighting)


class CGCLoss(torch.nn.Module):
    """:func:`cgc_loss` with its settings fixed, as a module.

    Takes the keyword arguments of :func:`cgc_loss` and checks them at once; ``forward(cam, aug_cam, transform)``
    returns the scalar.

    Example::

        >>> import torch
        >>> from cgc_kernels import CAM, CGCLoss, CropFlip
        >>> criterion = CGCLoss(consistency=10.0)
        >>> cam = CAM(torch.rand(8, 16, 7, 7), torch.randn(8, 16), image_size=(224, 224))
        >>> loss = criterion(cam, cam, CropFlip.identity(8, 224))
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        temperature: float = 0.5,
        weighting: str = "gradcam",
        objective: str = "released",
        consistency: float = 0.0,
        eps: float = 1e-8,
        backend: str = "auto",
        group: "dist.ProcessGroup | None" = None,
        even: bool = False,
    ):
        super().__init__()
        self.options = checks.options(image_size, temperature, weighting, objective, consistency, eps)
        self.backend = checks.choice("backend", backend, backends.BACKENDS)
        checks.group(group, even)
        self.group, self.even = group, even

    def forward(
        self,
        cam: CAM | Sequence[torch.Tensor],
        aug_cam: CAM | Sequence[torch.Tensor],
        transform: CropFlip | torch.Tensor,
    ) -> torch.Tensor:
        """The loss, a scalar; arguments as in :func:`cgc_loss`."""
        return _loss(cam, aug_cam, transform, self.options, self.backend, self.group, self.even)

    def extra_repr(self) -> str:
        """The settings, for print(module)."""
        settings = {**self.options._asdict(), "backend": self.backend}
        if self.group is not None:
            settings |= {"ranks": dist.get_world_size(self.group), "even": self.even}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _loss(cam, aug_cam, transform, options: Options, backend: str, group, even: bool) -> torch.Tensor:
    """cgc_loss with checked options."""
    views = checks.views(cam, aug_cam)
    options = checks.sized(options, cam, aug_cam)
    transform = _prepare(transform, views[0], options.image_size)
    return _computed(_choose(backend, views[0], group, even).cgc, *views, transform, options)


def _computed(loss, *args) -> torch.Tensor:
    """A backend's loss of these arguments, the last of which are the options."""
    options = args[-1]
    if options.objective != CONSISTENCY:
        return loss(*args)
    height, width = options.image_size  # 1 - cos is half the square of the difference of unit maps
    return loss(*args[:-1], options._replace(objective="mse")) * (height * width / 2)


def _prepare(transform, like: torch.Tensor, image_size: tuple[int, int]) -> CropFlip | torch.Tensor:
    """The checked transform as backends take it: a CropFlip, or inverse matrices [B, 3, 3]."""
    if not isinstance(transform, CropFlip):
        if not is_dense(transform) or transform.shape[1:] != (5,):
            return _inverse(checks.matrix(transform, like))
        transform = checks.crop_of_rows(transform)
    checks.crop(transform, like, image_size)
    return transform


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Inverse by the adjugate, which, unlike a solver, does not synchronise a GPU."""
    first, second, third = matrix.to(widest_dtype(matrix.device)).unbind(dim=1)
    adjugate = torch.stack(
        [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)], dim=2
    )
    return adjugate / (first * adjugate[:, :, 0]).sum(dim=1)[:, None, None]


def _choose(backend: str, like: torch.Tensor, group=None, even: bool = False) -> Backend:
    checks.choice("backend", backend, backends.BACKENDS)
    checks.group(group, even)
    height, width = like.shape[-2:]
    chosen = backends.choose(backend, like.device, max(height, width))
    if group is None:
        return chosen
    from . import distributed  # not before it is needed: it imports torch._dynamo

    return distributed.over(chosen, group, even)
