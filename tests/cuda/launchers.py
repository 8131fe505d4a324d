"""The CUDA launchers through ctypes: the same calls drive the emulated kernels on CPU tensors and a device's.

Every function takes and returns tensors as the operator of the same name does (cgc_kernels/ops).
"""

import ctypes
import math
from ctypes import c_bool, c_double, c_int32, c_int64, c_void_p

import torch

from cgc_kernels.options import MSE, contrasts

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def structure(name: str, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# As in csrc/common/calls.h.
POOLED, MEAN, ELEMENTWISE = range(3)
Scalar = structure("Scalar", data=c_void_p, float64=c_bool)
Cam = structure(
    "Cam",
    **dict.fromkeys(("batch", "channels", "positions"), c_int64),
    **dict.fromkeys(("features_type", "gradients_type", "weighting"), c_int32),
    channels_last=c_bool,
    **dict.fromkeys(("features", "gradients", "heatmaps", "weights"), c_void_p),
)
CamBackward = structure(
    "CamBackward", forward=Cam, grad_heatmaps=c_void_p, grad_features=c_void_p, grad_gradients=c_void_p
)
Column = structure("Column", data=c_void_p, stride=c_int64, type=c_int32)
Resample = structure(
    "Resample",
    **dict.fromkeys(("batch", "height", "width", "size_h", "size_w"), c_int64),
    eps=c_double,
    objective=c_int32,
    float64=c_bool,
    **dict.fromkeys(("heatmaps", "aug_heatmaps"), c_void_p),
    crops=Column * 5,
    **dict.fromkeys(("inverses", "rows", "keys", "positives", "state"), c_void_p),
)
ResampleBackward = structure(
    "ResampleBackward",
    forward=Resample,
    **dict.fromkeys(("grad_rows", "grad_keys", "grad_positives", "grad_heatmaps", "grad_aug_heatmaps"), c_void_p),
)
Contrast = structure(
    "Contrast",
    **dict.fromkeys(("batch", "length", "first", "count"), c_int64),
    temperature=c_double,
    float64=c_bool,
    **dict.fromkeys(("rows", "keys", "positives", "row_losses"), c_void_p),
)
ContrastBackward = structure(
    "ContrastBackward",
    forward=Contrast,
    grad_loss=Scalar,
    **dict.fromkeys(("grad_rows", "grad_keys", "grad_positives"), c_void_p),
)
Cgc = structure("Cgc", views=Cam * 2, resample=Resample, contrast=Contrast, consistency=c_double)
CgcBackward = structure(
    "CgcBackward",
    views=CamBackward * 2,
    resample=ResampleBackward,
    contrast=ContrastBackward,
    consistency=c_double,
)


class Launchers:
    """The operators of one library. watch(**tensors) is told every tensor that a call may touch, outputs apart:
    watch_output(**tensors)."""

    def __init__(self, library, watch=None, watch_output=None):
        self.library = library
        self.watch = watch or (lambda **tensors: None)
        self.watch_output = watch_output or self.watch

    # ---- Operators

    def cam(self, features, gradients, elementwise):
        call = self._cam(features, gradients, elementwise)
        heatmaps = self._new((len(features), *features.shape[2:]), _acc(features), "heatmaps")
        weights = self._new(features.shape[:2] if call.weighting == MEAN else (0,), _acc(features), "weights")
        call.heatmaps, call.weights = _pointer(heatmaps), _pointer(weights)
        self._run("cam", call)
        return heatmaps, weights

    def cam_backward(self, grad_heatmaps, heatmaps, features, gradients, need_features, need_gradients):
        self._see(grad_heatmaps=grad_heatmaps, heatmaps=heatmaps)
        call = CamBackward(self._cam(features, gradients, True), _pointer(grad_heatmaps))
        call.forward.heatmaps = _pointer(heatmaps)
        grads = self._grads((features, gradients), (need_features, need_gradients))
        call.grad_features, call.grad_gradients = map(_pointer, grads)
        self._run("cam_backward", call)
        return tuple(grads)

    def resample(self, heatmaps, aug_heatmaps, transform, size_h, size_w, eps, objective):
        self._see(heatmaps=heatmaps, aug_heatmaps=aug_heatmaps)
        call = self._resample(heatmaps, transform, size_h, size_w, eps, objective)
        call.heatmaps, call.aug_heatmaps = _pointer(heatmaps), _pointer(aug_heatmaps)
        batch, height, width = heatmaps.shape
        length = height * width if contrasts(objective) else 0
        rows, keys = (self._new((batch, length), heatmaps.dtype, name) for name in ("rows", "keys"))
        positives = self._new((batch,), torch.float64, "positives")
        state = self._new((batch, 3, height, width), torch.float64 if objective == MSE else heatmaps.dtype, "state")
        call.rows, call.keys, call.positives, call.state = map(_pointer, (rows, keys, positives, state))
        self._run("resample", call)
        return rows, keys, positives, state

    def resample_backward(
        self, grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, rows, keys, positives, transform, state,
        *settings,
    ):  # fmt: skip
        self._see(grad_rows=grad_rows, grad_keys=grad_keys, grad_positives=grad_positives)
        self._see(heatmaps=heatmaps, aug_heatmaps=aug_heatmaps, rows=rows, keys=keys, positives=positives, state=state)
        call = ResampleBackward(self._resample(heatmaps, transform, *settings))
        forward = call.forward
        forward.heatmaps, forward.aug_heatmaps = _pointer(heatmaps), _pointer(aug_heatmaps)
        forward.rows, forward.keys, forward.positives = map(_pointer, (rows, keys, positives))
        forward.state = _pointer(state)
        call.grad_rows, call.grad_keys, call.grad_positives = map(_pointer, (grad_rows, grad_keys, grad_positives))
        grads = [self._new(heatmaps.shape, heatmaps.dtype, name) for name in ("grad_heatmaps", "grad_aug_heatmaps")]
        call.grad_heatmaps, call.grad_aug_heatmaps = map(_pointer, grads)
        self._run("resample_backward", call)
        return tuple(grads)

    def contrast(self, rows, keys, positives, first, count, temperature):
        self._see(rows=rows, keys=keys, positives=positives)
        row_losses = self._new((count,), torch.float64, "row_losses")
        loss = self._new((), rows.dtype, "loss")
        self._run("contrast", self._contrast(rows, keys, positives, row_losses, first, count, temperature), loss)
        return loss, row_losses

    def contrast_backward(self, grad_loss, rows, keys, positives, row_losses, first, count, temperature):
        self._see(grad_loss=grad_loss, rows=rows, keys=keys, positives=positives, row_losses=row_losses)
        forward = self._contrast(rows, keys, positives, row_losses, first, count, temperature)
        call = ContrastBackward(forward, _scalar(grad_loss))
        grads = [self._new((count, *t.shape[1:]), t.dtype, "grad") for t in (rows, keys, positives)]
        call.grad_rows, call.grad_keys, call.grad_positives = map(_pointer, grads)
        self._run("contrast_backward", call)
        return tuple(grads)

    def cgc(
        self, features, gradients, aug_features, aug_gradients, transform, size_h, size_w, temperature, elementwise,
        objective, consistency, eps,
    ):  # fmt: skip
        views = (self._cam(features, gradients, elementwise), self._cam(aug_features, aug_gradients, elementwise))
        call = Cgc((Cam * 2)(*views), consistency=consistency)
        saved = Saved(features, gradients, elementwise, objective)
        self.watch_output(**saved.parts)
        call.resample = self._resample(saved.heatmaps[0], transform, size_h, size_w, eps, objective)
        saved.fill(call.views, call.resample)
        call.contrast = self._saved_contrast(saved, temperature)
        loss = self._new((), _acc(features), "loss")
        self._run("cgc", call, loss)
        return loss, saved.memory

    def cgc_backward(
        self, grad_loss, features, gradients, aug_features, aug_gradients, transform, memory, size_h, size_w,
        temperature, elementwise, objective, consistency, eps, needs,
    ):  # fmt: skip
        saves_weights = gradients.dim() == 2 and gradients.untyped_storage().data_ptr() == memory.data_ptr()
        saved = Saved(features, None if saves_weights else gradients, elementwise, objective, memory)
        self._see(grad_loss=grad_loss, **saved.parts)
        tensors = (features, gradients, aug_features, aug_gradients)
        grads = self._grads(tensors, [needs >> i & 1 for i in range(4)])
        call = CgcBackward(consistency=consistency)
        for i in range(2):
            view = CamBackward(self._cam(*tensors[2 * i : 2 * i + 2], True))
            view.grad_features, view.grad_gradients = map(_pointer, grads[2 * i : 2 * i + 2])
            call.views[i] = view
        forward = self._resample(saved.heatmaps[0], transform, size_h, size_w, eps, objective)
        saved.fill((call.views[0].forward, call.views[1].forward), forward)
        call.resample = ResampleBackward(forward)
        contrast = self._saved_contrast(saved, temperature)
        call.contrast = ContrastBackward(contrast, _scalar(grad_loss))
        self._run("cgc_backward", call)
        return tuple(grads)

    # ---- Tensors to structures

    def _cam(self, features, gradients, elementwise):
        batch, channels, height, width = features.shape
        last = not features.is_contiguous()
        weighting = POOLED if gradients.dim() == 2 else ELEMENTWISE if elementwise else MEAN
        self._see(features=features, gradients=gradients)
        types = (TYPES.index(t.dtype) for t in (features, gradients))
        return Cam(batch, channels, height * width, *types, weighting, last, _pointer(features), _pointer(gradients))

    def _resample(self, heatmaps, transform, size_h, size_w, eps, objective):
        self._see(**{f"transform{i}": field for i, field in enumerate(transform)})
        call = Resample(*heatmaps.shape, size_h, size_w, eps, objective, heatmaps.dtype == torch.float64)
        if len(transform) == 1:
            call.inverses = _pointer(transform[0])
        else:
            columns = (Column(_pointer(t), t.stride(0), INTEGERS.index(t.dtype)) for t in transform)
            call.crops = (Column * 5)(*columns)
        return call

    def _contrast(self, rows, keys, positives, row_losses, first, count, temperature):
        pointers = map(_pointer, (rows, keys, positives, row_losses))
        return Contrast(*rows.shape, first, count, temperature, rows.dtype == torch.float64, *pointers)

    def _saved_contrast(self, saved, temperature):
        batch = len(saved.positives)
        return self._contrast(saved.rows, saved.keys, saved.positives, saved.row_losses, 0, batch, temperature)

    def _grads(self, tensors, needs):
        return [self._like(t) if need else t.new_empty(0) for t, need in zip(tensors, needs, strict=True)]

    # ---- Memory and launches

    def _see(self, **tensors):
        self.watch(**tensors)

    def _new(self, shape, dtype, name):
        tensor = torch.full(shape, float("nan"), dtype=dtype)
        self.watch_output(**{name: tensor})
        return tensor

    def _like(self, tensor):
        grad = torch.full_like(tensor, float("nan"))
        self.watch_output(grad=grad)
        return grad

    def needed(self, name, *arguments) -> int:
        """Bytes of workspace that a call takes, as its launcher says."""
        needed = c_int64(0)
        getattr(self.library, f"cgc_cuda_{name}")(*arguments, None, ctypes.byref(needed))
        return needed.value

    def _run(self, name, call, loss=None):
        function = getattr(self.library, f"cgc_cuda_{name}")
        arguments = [ctypes.byref(a) for a in ([call] if loss is None else [call, _scalar(loss)])]
        workspace = torch.full((self.needed(name, *arguments),), 255, dtype=torch.uint8)
        self.watch_output(workspace=workspace)
        error = function(*arguments, c_void_p(_pointer(workspace)), None)
        if error != 0:
            message = self.library.cgc_cuda_error
            message.restype = ctypes.c_char_p
            raise RuntimeError(f"cgc_cuda_{name}: {message(error).decode()}")


class Saved:
    """What the fused loss keeps for its backward: one tensor of bytes, in parts that follow one another."""

    def __init__(self, features, gradients, elementwise, objective, memory=None):
        batch, channels, *side = features.shape
        acc = _acc(features)
        length = side[0] * side[1] if contrasts(objective) else 0
        pools = gradients is None or (gradients.dim() == 4 and not elementwise)
        shapes = {
            "positives": ((batch,), torch.float64),
            "row_losses": ((batch,), torch.float64),
            "weights": ((2, batch, channels if pools else 0), acc),
            "heatmaps": ((2, batch, *side), acc),
            "rows": ((batch, length), acc),
            "keys": ((batch, length), acc),
            "state": ((batch, 3, *side), torch.float64 if objective == MSE else acc),
        }
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values()]
        self.memory = torch.full((sum(sizes),), 255, dtype=torch.uint8) if memory is None else memory
        pieces = zip(shapes.items(), self.memory.split(sizes), strict=True)
        self.parts = {name: piece.view(dtype).view(shape) for (name, (shape, dtype)), piece in pieces}
        vars(self).update(self.parts)

    def fill(self, views, resample):
        """Put the parts into the calls of the stages."""
        for view, heatmaps, weights in zip(views, self.heatmaps, self.weights, strict=True):
            view.heatmaps, view.weights = _pointer(heatmaps), _pointer(weights)
        resample.heatmaps, resample.aug_heatmaps = map(_pointer, self.heatmaps)
        resample.rows, resample.keys = _pointer(self.rows), _pointer(self.keys)
        resample.positives, resample.state = _pointer(self.positives), _pointer(self.state)


def _acc(features):
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _pointer(tensor):
    return tensor.data_ptr() or None


def _scalar(tensor):
    return Scalar(_pointer(tensor), tensor.dtype == torch.float64)
