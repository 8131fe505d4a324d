"""A case as callables that give comparable results: the backends, the peers, the reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cgc_kernels import backends, cgc_loss, gradcam

from . import peers
from .cases import Case, heatmaps, random_crop, view
from .floor import Traffic

TEMPERATURE = 0.5
Step = Callable[[], tuple]


@dataclass
class Problem:
    """Inputs of a case and what runs on them.

    A step is a function of no argument that returns the outputs and, if the case has a backward, the gradients of its
    inputs, always fresh. `entry` makes the step of a backend, `peers[name]()` that of a peer; `truth` gives the results
    of the reference in float64; `comparable` brings results to a form in which all formulations agree.
    """

    case: Case
    entry: Callable[[str], Step]
    peers: dict[str, Callable[[], Step]]
    truth: Callable[[], tuple]
    traffic: Traffic
    comparable: Callable[[tuple], tuple] = tuple


def build(case: Case) -> Problem:
    """The problem of a case."""
    return {"cam": _cam, "resample": _resample, "contrast": _contrast, "cgc": _cgc}[case.stage](case)


def _step(case: Case, function: Callable, leaves: list[Tensor], cotangents=None) -> Step:
    """Forward, or forward and backward, of function(*leaves); its output may be a tensor or a tuple of them."""

    def forward():
        with torch.no_grad():
            return _tuple(function(*leaves))

    def both():
        outputs = _tuple(function(*leaves))
        return *(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, cotangents)

    return both if case.backward else forward


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _doubled(leaves):
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


def _sizes(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


# --- stages -----------------------------------------------------------------------------------------------------------


def _backend_weighting(case):
    return "gradcam" if case.weighting == "pooled" else case.weighting


def _view_traffic(case: Case, features: Tensor, gradients: Tensor, views: int) -> Traffic:
    """What the heatmaps of `views` views must move; everything after them is small and not counted.

    For "gradcam" the gradient of the gradients is constant over space: written once per channel.
    """
    feature, gradient = views * _sizes(features), views * _sizes(gradients)
    forward = feature + gradient
    if not case.backward:
        return Traffic(forward, 0, forward, 0)
    if case.weighting == "gradcam":
        small = gradient // gradients[0, 0].numel()
        return Traffic(forward + feature + small, feature + small, forward, feature + small)
    return Traffic(2 * forward, forward, forward, forward)


def _cgc(case: Case) -> Problem:
    leaves = [*view(case, 0), *view(case, 1)]
    crop = random_crop(case.shape[0], case.image_size)
    weighting, size = _backend_weighting(case), (case.image_size,) * 2

    def ours(backend):
        def loss(features, gradients, aug_features, aug_gradients):
            return cgc_loss(
                (features, gradients),
                (aug_features, aug_gradients),
                crop,
                image_size=case.image_size,
                temperature=TEMPERATURE,
                weighting=weighting,
                backend=backend,
            )

        return loss

    options = {"image_size": size, "temperature": TEMPERATURE, "weighting": weighting}

    def peer(make):
        function = make()
        return _step(case, lambda *tensors: function(*tensors, crop, **options), leaves)

    return Problem(
        case,
        lambda backend: _step(case, ours(backend), leaves),
        {name: partial(peer, make) for name, make in peers.LOSSES.items()},
        lambda: _step(case, ours("reference"), _doubled(leaves))(),
        _view_traffic(case, *leaves[:2], views=2),
    )


def _cam(case: Case) -> Problem:
    leaves = list(view(case, 0))
    weighting = _backend_weighting(case)
    batch, _, height, width = case.shape
    cotangent = torch.randn(batch, height, width, generator=torch.Generator().manual_seed(3))

    def steps(function):
        return _step(case, lambda *tensors: function(*tensors, weighting), leaves, [cotangent])

    def entry(backend):
        return steps(lambda *args: gradcam(*args[:2], weighting=args[2], backend=backend))

    def truth():
        function = partial(gradcam, weighting=weighting, backend="reference")
        return _step(case, function, _doubled(leaves), [cotangent.double()])()

    return Problem(
        case,
        entry,
        {"vectorised": lambda: steps(peers.cam), "compiled": lambda: steps(peers.compiled(peers.cam))},
        truth,
        _view_traffic(case, *leaves, views=1),
    )


def _stage(backend: str, name: str) -> Callable:
    return getattr(backends.choose(backend, torch.device("cpu")), name)


def _resample(case: Case) -> Problem:
    """Rows and keys differ between formulations (H * W numbers or S * S), their products do not. The gradients are
    therefore those of sum(W * (rows @ keys.T)) + sum(w * positives) with fixed W and w."""
    leaves = heatmaps(case)
    batch = case.shape[0]
    crop, size = random_crop(batch, case.image_size), (case.image_size,) * 2
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
        return _step(case, function, leaves, cotangents)

    def ours(backend):
        stage = _stage(backend, "resample")
        return lambda *maps: stage(*maps, crop, size, peers.EPS, "released")

    def peer(function):
        return lambda *maps: function(*maps, crop, size)

    fast = peers.vectorised_resample
    coarse = torch.Size((batch, *case.shape[2:])).numel() * leaves[0].element_size()
    read, written = 2 * coarse, 2 * coarse
    traffic = Traffic(read, written, read, written)
    if case.backward:
        traffic = Traffic(2 * read + written, 2 * written, read, written)
    return Problem(
        case,
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


def _contrast(case: Case) -> Problem:
    crop, size = random_crop(case.shape[0], case.image_size), (case.image_size,) * 2
    with torch.no_grad():
        rows = _stage("torch", "resample")(*heatmaps(case), crop, size, peers.EPS, "released")
    leaves = [t.clone().requires_grad_() for t in rows]

    def steps(function, leaves=leaves):
        return _step(case, lambda *tensors: function(*tensors, TEMPERATURE), leaves)

    inputs = _sizes(*leaves)
    traffic = Traffic(2 * inputs, inputs, inputs, inputs) if case.backward else Traffic(inputs, 0, inputs, 0)
    return Problem(
        case,
        lambda backend: steps(_stage(backend, "contrast")),
        {"vectorised": lambda: steps(peers.contrast), "compiled": lambda: steps(peers.compiled(peers.contrast))},
        lambda: steps(_stage("reference", "contrast"), _doubled(leaves))(),
        traffic,
    )
