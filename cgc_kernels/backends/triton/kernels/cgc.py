"""The three stages chained, a launch each: cam, resample, contrast with the mean; and back.

What follows from the kind of a call is worked out once, for all of its launches together.
"""

import torch

from ....ops.cam import wanted
from ....ops.cgc import saved_bytes
from ....options import accumulation_dtype
from . import cam, contrast, resample
from .launch import Launch, Layout, kind, plans


class _Chain:
    """One way of a kind of call: its launches, and the buffers that they share."""

    def __init__(self, of: cam.Features, pooled: bool, objective: int):
        batch, _, *side = of.shape
        self.side, self.cells, self.batch = tuple(side), side[0] * side[1], batch
        self.released, self.mse = objective == resample.RELEASED.value, objective == resample.MSE.value
        self.dtype, wide = accumulation_dtype(of), torch.float64
        # positives, row losses, weights, heatmaps, rows, keys and state: ops/cgc.py
        dtypes = (wide, wide, *[self.dtype] * 4, wide if self.mse else self.dtype)
        self.saved = Layout(*zip(dtypes, saved_bytes(of, pooled, objective), strict=True))
        self.maps_bytes = batch * self.cells * self.dtype.itemsize
        self.last: Launch

    def places(self, tensors) -> list:
        """What the launches take for tensors."""
        return [tensor.data_ptr() for tensor in tensors] if self.last.compiled else tensors

    def parts(self, layout: Layout, buffer: torch.Tensor) -> list:
        """What they take for the parts of a buffer."""
        return layout.addresses(buffer) if self.last.compiled else layout.tensors(buffer)


class _Forward(_Chain):
    def __init__(self, of, weighting, strides, size, objective):
        super().__init__(of, weighting == cam.MEAN.value, objective)
        self.cam = cam.sums_launch(of, weighting)
        splits = self.cam.grid[1]
        self.resample = resample.forward_launch(self.batch, self.side, size, strides, objective, self.dtype, splits)
        share, pixels = (self.batch, self.cells, 0, self.batch), size[0] * size[1]
        self.contrast = self.last = contrast.loss_launch(*share, objective, pixels, self.dtype)
        # Partial sums of both views, and the contrast's counter.
        self.workspace = Layout((self.dtype, 2 * splits * self.maps_bytes), (torch.int32, 4))


class _Backward(_Chain):
    def __init__(self, of, weighting, strides, size, objective, needs, saved):
        # Its length tells whether weights were saved; these come back as pooled gradients.
        super().__init__(of, saved == sum(saved_bytes(of, True, objective)), objective)
        self.contrast = contrast.gradients_launch(self.batch, self.cells, 0, self.batch, self.dtype, self.released)
        self.resample = resample.backward_launch(self.batch, self.side, size, strides, objective, self.dtype, True)
        self.cam = self.last = cam.gradients_launch(of, weighting, needs)
        rows, keys = 0 if self.mse else self.maps_bytes, 0 if self.mse or self.released else self.maps_bytes
        # Gradients of the positives, of both views' heatmaps, of rows and of keys.
        maps = [(self.dtype, size) for size in (2 * self.maps_bytes, rows, keys)]
        self.workspace = Layout((torch.float64, 0 if self.mse else 8 * self.batch), *maps)


_forward, _backward = plans(_Forward), plans(_Backward)


def cgc(
    features, gradients, aug_features, aug_gradients, transform, height, width, temperature, elementwise, objective,
    consistency, eps,
):  # fmt: skip
    """Kernel of operator cgc."""
    views = features, gradients, aug_features, aug_gradients
    settings = resample.crop_strides(transform), (height, width), objective
    of, weighting = cam.describe(features, aug_features), cam.weighting_number(gradients, elementwise)
    chain = _forward(kind(*views, *transform), of, weighting, *settings)
    loss = features.new_empty((), dtype=chain.dtype)
    saved = features.new_empty(chain.saved.bytes, dtype=torch.uint8)
    workspace = features.new_empty(chain.workspace.bytes, dtype=torch.uint8)
    positives, row_losses, weights, heatmaps, rows, keys, state = chain.parts(chain.saved, saved)
    sums, counter = chain.parts(chain.workspace, workspace)
    *views, to = chain.places([*views, loss])
    fields = chain.places(resample.pointers(transform))
    chain.cam(*views, sums, weights)
    chain.resample(sums, sums, heatmaps, *fields, rows, keys, positives, state, counter, eps)
    if chain.mse:
        chain.contrast(to, row_losses, positives, consistency)
    else:
        chain.contrast(rows, keys, positives, row_losses, to, counter, temperature, consistency)
    return loss, saved


def cgc_backward(
    grad_loss, features, gradients, aug_features, aug_gradients, transform, saved, height, width, temperature,
    elementwise, objective, consistency, eps, needs,
):  # fmt: skip
    """Kernel of operator cgc_backward."""
    views = features, gradients, aug_features, aug_gradients
    settings = resample.crop_strides(transform), (height, width), objective, needs, len(saved)
    of, weighting = cam.describe(features, aug_features), cam.weighting_number(gradients, True)
    chain = _backward(kind(*views, *transform, saved, grad_loss), of, weighting, *settings)
    grads = tuple([wanted(tensor, bool(needs >> i & 1)) for i, tensor in enumerate(views)])
    workspace = features.new_empty(chain.workspace.bytes, dtype=torch.uint8)
    positives, row_losses, _, heatmaps, rows, keys, state = chain.parts(chain.saved, saved)
    grad_positives, grad_heatmaps, grad_rows, grad_keys = chain.parts(chain.workspace, workspace)
    (upstream, *views), to = chain.places([grad_loss, *views]), chain.places(grads)
    fields = chain.places(resample.pointers(transform))
    units, arriving = (rows, keys, positives), (grad_rows, grad_keys, grad_positives)
    if not chain.mse:
        chain.contrast(upstream, *units, row_losses, *arriving, temperature, consistency)
    maps, grad_maps = [heatmaps] * 2, [grad_heatmaps] * 2
    chain.resample(*arriving, upstream, *maps, *fields, *units, state, *grad_maps, eps, consistency)
    chain.cam(grad_heatmaps, heatmaps, *views, *to)
    return grads
