"""Target layers that cannot be explained: outputs laid out otherwise than [B, C, H, W], maps that no logit reads."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .logits import find_logits
from .reshape import Reshape, ToMap


def check_map(features: Tensor, view: Tensor, name: str, reshape: Reshape | None, proven: bool) -> None:
    """Refuse what is no map of the view: ``features``, the output of target layer ``name`` as ``reshape`` gives it.

    ``proven``: the closed form has shown that the layer's output is one. Raises ValueError.
    """
    check_features(features, view, name)
    if isinstance(reshape, ToMap):
        check_aspect(features, view, name)
    elif reshape is None and not proven:
        check_layout(features, view, name)


def check_features(features: Tensor, view: Tensor, name: str) -> None:
    """Refuse all but one [B, C, H, W] for each view [B, ...], of more than one cell: raises ValueError."""
    if features.ndim != 4:
        raise ValueError(
            f"the output of target layer {name!r} must be [B, C, H, W], got {list(features.shape)}; "
            "give reshape=, tokens_to_map(height, width) for a ViT"
        )
    if features.shape[0] != view.shape[0]:
        raise ValueError(
            f"the output of target layer {name!r} must have batch {view.shape[0]}, got {features.shape[0]}"
        )

    if features.shape[2] == 1 and features.shape[3] == 1:
        raise ValueError(
            f"the output of target layer {name!r} must be a map of more than one cell, got {list(features.shape)}, "
            "whose heatmap tells nothing and has no gradient; choose an earlier layer, or give larger views"
        )


def check_layout(features: Tensor, view: Tensor, name: str) -> None:
    """Refuse [B, H, W, C]: a map has its view's height to width, and channels have nothing to do with it.

    ``features``: 4-d; ``view``: [B, ...], looked at where it is [B, C, H, W]. Raises ValueError if the last two
    dimensions fit the view worse than the two before them do. By shapes alone, so that [B, 8, 8, 8] passes.
    """
    if view.ndim != 4 or min(features.shape[1:]) < 1:
        return
    channels, height, width = features.shape[1:]
    aspect = math.log(view.shape[2] / view.shape[3])
    as_first, as_last = (abs(math.log(h / w) - aspect) for h, w in ((height, width), (channels, height)))
    if as_last < as_first and as_last < math.log(1.5):
        raise ValueError(
            f"the output of target layer {name!r} must be [B, C, H, W], got {list(features.shape)}, which for views of "
            f"{view.shape[2]} x {view.shape[3]} looks like [B, H, W, C]; give reshape=lambda x: x.permute(0, 3, 1, 2), "
            "or use GradCAM.auto(model)"
        )


def check_aspect(features: Tensor, view: Tensor, name: str) -> None:
    """Refuse a map whose height to width was taken from the model, when the view's differs: raises ValueError."""
    if view.ndim != 4:
        return
    strides = view.shape[2] / features.shape[2], view.shape[3] / features.shape[3]
    if max(strides) > 1.5 * min(strides):
        raise ValueError(
            f"views must have the aspect that the model is built for, got {view.shape[2]} x {view.shape[3]} for maps "
            f"of {features.shape[2]} x {features.shape[3]}; give GradCAM(model, {name!r}, reshape=), as tokens_to_map"
        )


def is_map_read(gradients: Tensor, score: Tensor, features: Tensor, reshape: Reshape) -> bool | None:
    """Whether the logits read the map that ``reshape`` makes of ``features``: None if this batch cannot tell.

    ``gradients`` of ``score`` with respect to ``features``. Zero may be chance: a head that starts at zero, dead ReLUs.
    Needs the graph of ``score``.
    """
    if reshape(gradients).any():
        return True
    (probe,) = _probe(score, [features])
    return False if probe.isnan().any() and not reshape(probe).isnan().any() else None


def name_working_layer(model: nn.Module, view: Tensor, features: Tensor, reshape: Reshape) -> str:
    """The last module with an output like ``features`` whose map the logits read, a norm if there is one; else "".

    Runs the model once more, in evaluation mode: for an error's message.
    """
    training = {module: module.training for module in model.modules()}
    recorder = _Recorder(features.shape[1:])
    handles = [module.register_forward_hook(recorder.hook(name)) for name, module in model.named_modules() if name]
    try:
        model.eval()
        with torch.enable_grad():
            score = find_logits(model(view.detach().clone().requires_grad_(view.is_floating_point()))).sum()
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    outputs = recorder.usable()
    probes = zip(outputs, _probe(score, list(outputs.values())), strict=True)
    working = [name for name, probe in probes if probe is not None and reshape(probe).isnan().any()]
    norms = [name for name in working if name.rpartition(".")[2].startswith(("norm", "ln", "layernorm"))]
    return (norms or working or [""])[-1]


def _probe(score: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """NaN in the place of the gradients of ``score``: it passes every weight, zero or not, and stops where nothing was
    read. A dead ReLU stops it as well."""
    if not tensors:
        return ()
    seed = torch.full_like(score, torch.nan)
    with torch.autograd.set_detect_anomaly(False):
        return torch.autograd.grad(score, tensors, seed, retain_graph=True, allow_unused=True)


class _Recorder:
    """Keeps the outputs of one shape that a model's modules make."""

    def __init__(self, shape: torch.Size):
        self.shape, self.calls = shape, {}

    def hook(self, name: str) -> Callable:
        """The forward hook of that module."""

        def keep(module: nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad and output.shape[1:] == self.shape:
                self.calls.setdefault(name, []).append((output, output._version))

        return keep

    def usable(self) -> dict[str, Tensor]:
        """Of the modules that ran once and whose output was not changed later."""
        once = {name: calls[0] for name, calls in self.calls.items() if len(calls) == 1}
        return {name: output for name, (output, version) in once.items() if output._version == version}
