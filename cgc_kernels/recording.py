"""The matrix of an augmentation, found by what it does to points: any pipeline that moves them can be followed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .tensors import described, is_dense

__all__ = ["homography", "record"]

_TOLERANCE = 1e-3  # pixels


def record(pipeline: Callable) -> "Recorded":
    """Makes ``pipeline``, a transform of torchvision's v2, tell by which matrix it moved a view.

    ``aug, matrix = record(pipeline)(view)``: ``view``, a PIL image, a tensor or tv_tensors.Image [..., C, H, W], as the
    pipeline takes it; ``aug``, what the pipeline makes of it, with the same random draws as without the record;
    ``matrix``, [..., 3, 3] float64, from pixels of the view to pixels of ``aug``, centres at integers, as
    :func:`cgc_loss` takes it. The default collate stacks matrices to [B, 3, 3].

    Crops, flips, resizes, pads, rotations, affine and perspective maps in any order are followed, and what changes
    colours alone. Points travel as bounding boxes without extent: KeyPoints are mirrored about another axis than images
    are (torchvision 0.25 to 0.29). A v2.Transform of your own must move bounding boxes as it moves images.
    Next to the border of a crop the loss reads what lies outside it, where the crop has clamped: :class:`CropFlip` is
    the exact record of a RandomResizedCrop.

    Raises TypeError or ValueError at once for what is not of torchvision's v2 (0.25 or later) and for rotations with
    ``expand``, by which torchvision moves points and images differently; when called, ValueError for a pipeline that
    changes the size of the view or is not projective (ElasticTransform).

    Example::

        >>> from torchvision.transforms import v2
        >>> pipeline = v2.Compose([v2.RandomPerspective(0.3), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2)])
        >>> aug, matrix = record(pipeline)(torch.rand(3, 64, 64))
        >>> aug.shape, matrix.shape
        (torch.Size([3, 64, 64]), torch.Size([3, 3]))
    """
    return Recorded(pipeline)


class Recorded:
    """What :func:`record` returns."""

    def __init__(self, pipeline: Callable):
        from torchvision.transforms import v2

        *inner, last = _leaves(pipeline)
        for leaf in (*inner, last):
            _check_leaf(leaf)
        if any(isinstance(leaf, v2.ToPureTensor) for leaf in inner):
            raise ValueError("pipeline must keep types, by which points are known, got v2.ToPureTensor before its end")
        self.pipeline = pipeline
        self._types_end = isinstance(last, v2.ToPureTensor)

    def __call__(self, view: Any) -> tuple[Any, Tensor]:
        from torchvision.transforms.v2 import functional
        from torchvision.tv_tensors import BoundingBoxes

        size = functional.get_size(view)
        points = _lattice(*size)
        boxes = BoundingBoxes(points.repeat(1, 2), format="XYXY", canvas_size=tuple(size), clamping_mode=None)
        aug, moved = self.pipeline(view, boxes)
        if not isinstance(moved, BoundingBoxes) and not self._types_end:
            raise ValueError(f"pipeline must return bounding boxes as such, got {type(moved).__name__}")
        if functional.get_size(aug) != size:
            got = " x ".join(map(str, functional.get_size(aug)))
            raise ValueError(
                f"pipeline must return a view as large as it was given, {size[0]} x {size[1]}, got {got}; "
                f"end it with v2.Resize(({size[0]}, {size[1]}))"
            )
        if moved.shape != boxes.shape:
            raise ValueError(
                f"pipeline must keep all {len(boxes)} points, got {len(moved)}; leave out what sanitises boxes"
            )
        # torchvision counts from the view's edge, half a pixel before the first centre.
        matrix = homography(points - 0.5, moved.as_subclass(Tensor)[:, :2] - 0.5)
        lead = view.shape[:-3] if isinstance(view, Tensor) else ()
        return aug, matrix.expand(*lead, 3, 3)

    def __repr__(self) -> str:
        return f"record({self.pipeline!r})"


def homography(points: Tensor, moved: Tensor) -> Tensor:
    """The matrix [3, 3], float64, of the projective map that takes ``points`` to ``moved``, both [N, 2] as (x, y).

    For augmentations that can carry points but not their matrix, albumentations' for instance: give the corners and a
    few points more, N > 4, so that a map that is not projective is noticed.
    Raises TypeError for what is no tensor, ValueError for fewer than four points, and where no projective map comes
    within a thousandth of a pixel.

    Example::

        >>> corners = torch.tensor([[0, 0], [63, 0], [63, 63], [0, 63], [20, 40]])
        >>> homography(corners, 2 * corners + 1).round(decimals=6)[0]
        tensor([2., 0., 1.], dtype=torch.float64)
    """
    for name, given in (("points", points), ("moved", moved)):
        if not is_dense(given):
            raise TypeError(f"{name} must be a dense tensor [N, 2], got {described(given)}")
    if points.ndim != 2 or points.shape[-1] != 2 or points.shape != moved.shape or len(points) < 4:
        raise ValueError(
            f"points and moved must be [N, 2] with N at least 4, got {list(points.shape)} and {list(moved.shape)}"
        )
    (source, normalise), (target, normalise_target) = map(_normalised, (points.double(), moved.double()))
    ones, zeros = torch.ones_like(source[:, :1]), torch.zeros_like(source)
    row = torch.cat((source, ones), 1)
    blank = torch.cat((zeros, zeros[:, :1]), 1)
    # u = (h0 x + h1 y + h2) / (h6 x + h7 y + 1), v likewise; the centre of the points has a denominator of 1.
    system = torch.cat(
        (torch.cat((row, blank, -target[:, :1] * source), 1), torch.cat((blank, row, -target[:, 1:] * source), 1))
    )
    if not system.isfinite().all():
        raise ValueError("points and moved must be finite, got NaN or infinity")
    entries = torch.linalg.lstsq(system, target.T.reshape(-1, 1), driver="gelsd").solution[:, 0]
    matrix = torch.cat((entries, entries.new_ones(1))).reshape(3, 3)
    matrix = torch.linalg.inv(normalise_target) @ matrix @ normalise
    found = torch.cat((points.double(), ones), 1) @ matrix.T
    error = (found[:, :2] / found[:, 2:] - moved).abs().max().item()
    # Coordinates far outside the view, as those around a small crop, are not known as exactly in float32.
    if not error <= _TOLERANCE + 1e-6 * moved.abs().max().item():
        raise ValueError(
            f"the augmentation must be projective (crop, flip, rotation, affine, perspective), got points {error:.3g} "
            "pixels from where the nearest such map takes them; an elastic one has no matrix"
        )
    return matrix


def _normalised(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points centred and scaled to [-1, 1], which conditions the system, and the matrix that does so."""
    centre = points.mean(0)
    scale = 1 / (points - centre).abs().max().clamp(min=torch.finfo(points.dtype).tiny)
    matrix = torch.diag(torch.stack((scale, scale, torch.ones_like(scale))))
    matrix[:2, 2] = -centre * scale
    return (points - centre) * scale, matrix


def _lattice(height: int, width: int) -> Tensor:
    """Nine points well inside a view, [9, 2] as (x, y), counted from its edge."""
    x, y = (torch.tensor((0.1, 0.5, 0.9), dtype=torch.float64) * side for side in (width, height))
    return torch.cartesian_prod(x, y)


def _check_leaf(leaf: Any) -> None:
    """Raise TypeError or ValueError for a transform that does not move points as it moves images."""
    from torchvision.transforms import v2
    from torchvision.tv_tensors import BoundingBoxes

    name = type(leaf).__name__
    if not isinstance(leaf, v2.Transform):
        raise TypeError(
            "pipeline must be made of torchvision.transforms.v2 transforms, which move points as they move images, got "
            f"{type(leaf).__module__}.{name}; v2 has the names of v1"
        )
    if getattr(leaf, "expand", False):
        raise ValueError(
            f"pipeline must move points as it moves images, got {name}(expand=True), by which torchvision moves them "
            "apart; leave expand out"
        )
    if isinstance(leaf, v2.Lambda) and issubclass(BoundingBoxes, leaf.types):
        raise ValueError(
            "pipeline must not apply a function to points, got v2.Lambda for all types; name those that it is for: "
            "v2.Lambda(function, tv_tensors.Image)"
        )


def _leaves(pipeline: Any) -> Iterator[Any]:
    """The transforms of which a pipeline is made."""
    inner = getattr(pipeline, "transforms", None)
    if inner is None:
        yield pipeline
        return
    for transform in inner:
        yield from _leaves(transform)
