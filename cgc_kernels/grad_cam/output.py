"""What GradCAM returns."""

from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from ..trees import from_iterables


@from_iterables
class CAM(NamedTuple):
    """What one view's Grad-CAM heatmap is made of.

    ``features``: [B, C, H, W], the output of the target layer. ``gradients``: of the logit of each sample's class with
    respect to them, [B, C, H, W] in the features' dtype, or pooled, [B, C], their mean over H and W. ``image_size``:
    (height, width) of the view, None if it was not [B, C, height, width].
    """

    features: Tensor
    gradients: Tensor
    image_size: tuple[int, int] | None = None


@from_iterables
class GradCAMOutput(NamedTuple):
    """What :class:`GradCAM` returns per view: ``logits`` [B, K] and the ``cam`` (None for an extra view)."""

    logits: Tensor
    cam: CAM | None


class GradCAMOutputs(tuple):
    """A tuple of :class:`GradCAMOutput`, one for each view, also where there is one view; says so if taken for one."""

    __slots__ = ()

    @property
    def logits(self) -> Tensor:
        raise AttributeError(
            "the output of GradCAM must be unpacked, a tuple with one output for each view: (out,) = cam(x), then "
            "out.logits and out.cam; for logits alone, cam.model(x)"
        )

    cam = logits


# Not a leaf, as other subclasses of tuple are: what walks trees must find the tensors.
pytree.register_pytree_node(
    GradCAMOutputs,
    lambda outputs: (list(outputs), None),
    lambda outputs, _: GradCAMOutputs(outputs),
    serialized_type_name="cgc_kernels.GradCAMOutputs",
)
