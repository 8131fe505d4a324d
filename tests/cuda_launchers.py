"""The CUDA launchers through ctypes: the same calls drive the emulated kernels on CPU tensors and a device's.

Every function takes and returns tensors as the operator of the same name does (cgc_kernels/ops).
"""

import ctypes
from ctypes import c_bool, c_double, c_int32, c_int64, c_void_p

import torch

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMS = ("automatic", "cooperative", "sequence")


def structure(name: str, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# As in csrc/common/calls.h and csrc/cuda/launch.h.
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
Resample = structure(
    "Resample",
    **dict.fromkeys(("batch", "height", "width", "size_h", "size_w"), c_int64),
    eps=c_double,
    objective=c_int32,
    float64=c_bool,
    **dict.fromkeys(("heatmaps", "aug_heatmaps", "crops", "inverses", "rows", "keys", "positives", "state"), c_void_p),
)
ResampleBackward = structure(
    "ResampleBackward",
    forward=Resample,
    **dict.fromkeys(("grad_rows", "grad_keys", "grad_positives", "grad_heatmaps", "grad_aug_heatmaps"), c_void_p),
)
Contrast = structure(
    "Contrast",
    batch=c_int64,
    length=c_int64,
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
Launch = structure("Launch", stream=c_void_p, workspace=c_void_p, form=c_int32, blocks=c_int32)


class Launchers:
    """The operators of one library. form and blocks: of csrc/cuda/launch.h; watch(**tensors) is told every tensor that
    a call may touch, outputs apart: watch_output(**tensors)."""

    def __init__(self, library, form: str = "automatic", blocks: int = 0, watch=None, watch_output=None):
        self.library = library
        self.form, self.blocks = FORMS.index(form), blocks
        self.watch = watch or (lambda **tensors: None)
        self.watch_output = watch_output or self.watch

    # ---- Operators

    def cam(self, features, gradients, elementwise):
        call = self._cam(features, gradients, elementwise)
        heatmaps = self._new((len(features), *features.shape[2:]), _acc(features), "heatmaps")
        weights = self._weights(call, (len(features), features.shape[1]), features)
        call.heatmaps, call.weights = _pointer(heatmaps), _pointer(weights)
        self._run("cam", call, workspace=True)
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
        outputs = self._rows(call, heatmaps)
        self._run("resample", call)
        return outputs

    def resample_backward(
        self, grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, transform, state, *settings
    ):
        self._see(grad_rows=grad_rows, grad_keys=grad_keys, grad_positives=grad_positives)
        self._see(heatmaps=heatmaps, aug_heatmaps=aug_heatmaps, state=state)
        call = ResampleBackward(self._resample(heatmaps, transform, *settings))
        call.forward.heatmaps, call.forward.aug_heatmaps = _pointer(heatmaps), _pointer(aug_heatmaps)
        call.forward.state = _pointer(state)
        call.grad_rows, call.grad_keys, call.grad_positives = map(_pointer, (grad_rows, grad_keys, grad_positives))
        grads = [self._new(heatmaps.shape, heatmaps.dtype, name) for name in ("grad_heatmaps", "grad_aug_heatmaps")]
        call.grad_heatmaps, call.grad_aug_heatmaps = map(_pointer, grads)
        self._run("resample_backward", call)
        return tuple(grads)

    def contrast(self, rows, keys, positives, temperature):
        self._see(rows=rows, keys=keys, positives=positives)
        row_losses = self._new((len(rows),), torch.float64, "row_losses")
        loss = self._new((), rows.dtype, "loss")
        self._run("contrast", self._contrast(rows, keys, positives, row_losses, temperature), loss, workspace=True)
        return loss, row_losses

    def contrast_backward(self, grad_loss, rows, keys, positives, row_losses, temperature):
        self._see(grad_loss=grad_loss, rows=rows, keys=keys, positives=positives, row_losses=row_losses)
        call = ContrastBackward(self._contrast(rows, keys, positives, row_losses, temperature), _scalar(grad_loss))
        grads = [self._new(t.shape, t.dtype, "grad") for t in (rows, keys, positives)]
        call.grad_rows, call.grad_keys, call.grad_positives = map(_pointer, grads)
        self._run("contrast_backward", call)
        return tuple(grads)

    def cgc(
        self, features, gradients, aug_features, aug_gradients, transform, size_h, size_w, temperature, elementwise,
        objective, consistency, eps,
    ):  # fmt: skip
        batch, channels, height, width = features.shape
        views = (self._cam(features, gradients, elementwise), self._cam(aug_features, aug_gradients, elementwise))
        call = Cgc((Cam * 2)(*views), consistency=consistency)
        heatmaps = self._new((2, batch, height, width), _acc(features), "heatmaps")
        weights = self._weights(call.views[0], (2, batch, channels), features)
        for i, view in enumerate(call.views):
            view.heatmaps, view.weights = _pointer(heatmaps[i]), _pointer(weights[i])
        call.resample = self._resample(heatmaps[0], transform, size_h, size_w, eps, objective)
        call.resample.heatmaps, call.resample.aug_heatmaps = map(_pointer, heatmaps)
        rows, keys, positives, state = self._rows(call.resample, heatmaps[0])
        row_losses = self._new((batch,), torch.float64, "row_losses")
        call.contrast = self._contrast(rows, keys, positives, row_losses, temperature)
        loss = self._new((), _acc(features), "loss")
        self._run("cgc", call, loss, workspace=True)
        return loss, heatmaps, weights, rows, keys, positives, row_losses, state

    def cgc_backward(
        self, grad_loss, features, gradients, aug_features, aug_gradients, transform, heatmaps, rows, keys, positives,
        row_losses, state, size_h, size_w, temperature, elementwise, objective, consistency, eps, needs,
    ):  # fmt: skip
        self._see(grad_loss=grad_loss, heatmaps=heatmaps, rows=rows, keys=keys, positives=positives)
        self._see(row_losses=row_losses, state=state)
        tensors = (features, gradients, aug_features, aug_gradients)
        grads = self._grads(tensors, [needs >> i & 1 for i in range(4)])
        call = CgcBackward(consistency=consistency)
        for i in range(2):
            view = CamBackward(self._cam(*tensors[2 * i : 2 * i + 2], True))
            view.forward.heatmaps = _pointer(heatmaps[i])
            view.grad_features, view.grad_gradients = map(_pointer, grads[2 * i : 2 * i + 2])
            call.views[i] = view
        forward = self._resample(heatmaps[0], transform, size_h, size_w, eps, objective)
        forward.heatmaps, forward.aug_heatmaps = map(_pointer, heatmaps)
        forward.positives, forward.state = _pointer(positives), _pointer(state)
        upstream = [self._new(t.shape, t.dtype, "upstream") for t in (rows, keys, positives)]
        call.resample = ResampleBackward(forward, *map(_pointer, upstream))
        contrast = self._contrast(rows, keys, positives, row_losses, temperature)
        call.contrast = ContrastBackward(contrast, _scalar(grad_loss), *map(_pointer, upstream))
        self._run("cgc_backward", call, workspace=True)
        return tuple(grads)

    # ---- Tensors to structures

    def _cam(self, features, gradients, elementwise):
        batch, channels, height, width = features.shape
        last = not features.is_contiguous()
        weighting = 0 if gradients.dim() == 2 else 2 if elementwise else 1
        self._see(features=features, gradients=gradients)
        types = (TYPES.index(t.dtype) for t in (features, gradients))
        return Cam(batch, channels, height * width, *types, weighting, last, _pointer(features), _pointer(gradients))

    def _resample(self, heatmaps, transform, size_h, size_w, eps, objective):
        self._see(transform=transform)
        call = Resample(*heatmaps.shape, size_h, size_w, eps, objective, heatmaps.dtype == torch.float64)
        if transform.dim() == 2:
            call.crops = _pointer(transform)
        else:
            call.inverses = _pointer(transform)
        return call

    def _rows(self, call, heatmaps):
        """The outputs of stage resample, put into its call."""
        batch, height, width = heatmaps.shape
        length = 0 if call.objective == 2 else height * width
        rows = self._new((batch, length), heatmaps.dtype, "rows")
        keys = self._new((batch, length), heatmaps.dtype, "keys")
        positives = self._new((batch,), torch.float64, "positives")
        state = self._new((batch, 3, height, width), torch.float64, "state")
        call.rows, call.keys, call.positives, call.state = map(_pointer, (rows, keys, positives, state))
        return rows, keys, positives, state

    def _contrast(self, rows, keys, positives, row_losses, temperature):
        pointers = map(_pointer, (rows, keys, positives, row_losses))
        return Contrast(*rows.shape, temperature, rows.dtype == torch.float64, *pointers)

    def _weights(self, call, shape, features):
        shape = shape if call.weighting == 1 else (*shape[:-2], 0)
        return self._new(shape, _acc(features), "weights")

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

    def _run(self, name, call, loss=None, workspace=False):
        launch = Launch(None, None, self.form, self.blocks)
        kept = None
        if workspace:
            size = getattr(self.library, f"cgc_cuda_{name}_workspace")
            size.restype = c_int64
            kept = torch.full((size(ctypes.byref(call)),), 255, dtype=torch.uint8)
            self.watch_output(workspace=kept)
            launch.workspace = _pointer(kept)
        arguments = [call] if loss is None else [call, _scalar(loss)]
        error = getattr(self.library, f"cgc_cuda_{name}")(*map(ctypes.byref, (*arguments, launch)))
        if error != 0:
            message = self.library.cgc_cuda_error
            message.restype = ctypes.c_char_p
            raise RuntimeError(f"cgc_cuda_{name}: {message(error).decode()}")


def _acc(features):
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _pointer(tensor):
    return tensor.data_ptr() or None


def _scalar(tensor):
    return Scalar(_pointer(tensor), tensor.dtype == torch.float64)
