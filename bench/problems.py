"""A workload as callables that give comparable results: the backends, the peers, the reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cgc_kernels import CropFlip, backends, cgc_loss, gradcam

from . import peers
from .floor import Traffic
from .workloads import Workload, heatmaps, random_crop, view

TEMPERATURE = 0.5
Step = Callable[[], tuple]


@dataclass
class Problem:
    """Inputs of a workload and what runs on them.

    A step is a function of no argument that returns the outputs and, if the workload has a backward, the gradients of
    its inputs, always fresh. `backend(name)` makes the step of a backend, `peers[name]()` that of a peer; `truth` gives
    the results of the reference in float64; `comparable` brings results to a form in which all formulations agree.
    """

    workload: Workload
    backend: Callable[[str], Step]
    peers: dict[str, Callable[[], Step]]
    truth: Callable[[], tuple]
    traffic: Traffic
    comparable: Callable[[tuple], tuple] = tuple


def build(workload: Workload) -> Problem:
    """The problem of a workload."""
    return {"cam": _cam, "resample": _resample, "contrast": _contrast, "cgc": _cgc}[workload.stage](workload)


def _step(workload: Workload, function: Callable, leaves: list[Tensor], cotangents=None) -> Step:
    """Forward, or forward and backward, of function(*leaves); its output may be a tensor or a tuple of them."""

    def forward():
        with torch.no_grad():
            return _tuple(function(*leaves))

    def both():
        outputs = _tuple(function(*leaves))
        return *(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, cotangents)

    return both if workload.backward else forward


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _doubled(leaves):
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


def _sizes(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


# --- stages -----------------------------------------------------------------------------------------------------------


def _backend_weighting(workload: Workload) -> str:
    return "gradcam" if workload.weighting == "pooled" else workload.weighting


def backend_loss(workload: Workload, crop: CropFlip, backend: str) -> Callable[..., Tensor]:
    """cgc_loss of a workload as a function of its four tensors."""

    def loss(features, gradients, aug_features, aug_gradients):
        return cgc_loss(
            (features, gradients),
            (aug_features, aug_gradients),
            crop,
            image_size=workload.image_size,
            temperature=TEMPERATURE,
            weighting=_backend_weighting(workload),
            backend=backend,
        )

    return loss


def peer_loss(workload: Workload, crop: CropFlip, name: str) -> Callable[..., Tensor]:
    """The same of a peer, compiled where it has to be."""
    function = peers.LOSSES[name]()
    settings = {
        "image_size": (workload.image_size,) * 2,
        "temperature": TEMPERATURE,
        "weighting": _backend_weighting(workload),
    }
    return lambda *tensors: function(*tensors, crop, **settings)


def _view_traffic(workload: Workload, features: Tensor, gradients: Tensor, views: int) -> Traffic:
    """What the heatmaps of `views` views must move; everything after them is small and not counted.

    For "gradcam" the gradient of the gradients is constant over space: written once per channel.
    """
    feature, gradient = views * _sizes(features), views * _sizes(gradients)
    forward = feature + gradient
    if not workload.backward:
        return Traffic(forward, 0, forward, 0)
    if workload.weighting == "gradcam":
        small = gradient // gradients[0, 0].numel()
        return Traffic(forward + feature + small, feature + small, forward, feature + small)
    return Traffic(2 * forward, forward, forward, forward)


def _cgc(workload: Workload) -> Problem:
    leaves = [*view(workload, 0), *view(workload, 1)]
    crop = random_crop(workload.shape[0], workload.image_size)

    def peer(name):
        return _step(workload, peer_loss(workload, crop, name), leaves)

    return Problem(
        workload,
        lambda backend: _step(workload, backend_loss(workload, crop, backend), leaves),
        {name: partial(peer, name) for name in peers.LOSSES},
        lambda: _step(workload, backend_loss(workload, crop, "reference"), _doubled(leaves))(),
        _view_traffic(workload, *leaves[:2], views=2),
    )


def _cam(workload: Workload) -> Problem:
    leaves = list(view(workload, 0))
    weighting = _backend_weighting(workload)
    batch, _, height, width = workload.shape
    cotangent = torch.randn(batch, height, width, generator=torch.Generator().manual_seed(3))

    def steps(function):
        return _step(workload, lambda *tensors: function(*tensors, weighting), leaves, [cotangent])

    def ours(backend):
        return steps(lambda *args: gradcam(*args[:2], weighting=args[2], backend=backend))

    def truth():
        function = partial(gradcam, weighting=weighting, backend="reference")
        return _step(workload, function, _doubled(leaves), [cotangent.double()])()

    return Problem(
        workload,
        ours,
        {"vectorised": lambda: steps(peers.cam), "compiled": lambda: steps(peers.compiled(peers.cam))},
        truth,
        _view_traffic(workload, *leaves, views=1),
    )


def _stage(backend: str, name: str) -> Callable:
    return getattr(backends.choose(backend, torch.device("cpu")), name)


def _resample(workload: Workload) -> Problem:
    """Rows and keys differ between formulations (H * W numbers or S * S), their products do not. The gradients are
    therefore those of sum(W * (rows @ keys.T)) + sum(w * positives) with fixed W and w."""
    leaves = heatmaps(workload)
    batch = workload.shape[0]
    crop, size = random_crop(batch, workload.image_size), (workload.image_size,) * 2
    generator = torch.Generator().manual_seed(5)
    pair_weights, weights = (
        torch.randn(batch, batch, generator=generator),
        torch.randn(batch, generator=generator),
    )

    def steps(function, like=None, leaves=leaves):
        with torch.no_grad():
            rows, keys, positives = (like or function)(*leaves)
        upstream = pair_weights.to(rows.dtype)
        cotangents = [upstream @ keys, upstream.T @ rows, weights.to(positives.dtype)]
        return _step(workload, function, leaves, cotangents)

    def ours(backend):
        stage = _stage(backend, "resample")
        return lambda *maps: stage(*maps, crop, size, peers.EPS, "released")

    def peer(function):
        return lambda *maps: function(*maps, crop, size)

    fast = peers.vectorised_resample
    coarse = torch.Size((batch, *workload.shape[2:])).numel() * leaves[0].element_size()
    read, written = 2 * coarse, 2 * coarse
    traffic = Traffic(read, written, read, written)
    if workload.backward:
        traffic = Traffic(2 * read + written, 2 * written, read, written)
    return Problem(
        workload,
        lambda backend: steps(ours(backend)),
        {
            "literal": lambda: steps(peer(peers.literal_resample)),
            "vectorised": lambda: steps(peer(peers.vectorised_resample)),
            "compiled": lambda: steps(peer(peers.compiled(fast)), like=peer(fast)),
        },
        lambda: steps(ours("reference"), leaves=_doubled(leaves))(),
        traffic,
        lambda results: (results[0] @ results[1].T, *results[2:]),
    )


def _contrast(workload: Workload) -> Problem:
    crop, size = random_crop(workload.shape[0], workload.image_size), (workload.image_size,) * 2
    with torch.no_grad():
        rows = _stage("torch", "resample")(*heatmaps(workload), crop, size, peers.EPS, "released")
    leaves = [t.clone().requires_grad_() for t in rows]

    def steps(function, leaves=leaves):
        return _step(workload, lambda *tensors: function(*tensors, TEMPERATURE), leaves)

    inputs = _sizes(*leaves)
    traffic = Traffic(2 * inputs, inputs, inputs, inputs) if workload.backward else Traffic(inputs, 0, inputs, 0)
    return Problem(
        workload,
        lambda backend: steps(_stage(backend, "contrast")),
        {"vectorised": lambda: steps(peers.contrast), "compiled": lambda: steps(peers.compiled(peers.contrast))},
        lambda: steps(_stage("reference", "contrast"), _doubled(leaves))(),
        traffic,
    )
