"""A network up to a layer, which stays as it is: frozen, run on its own, and left out of the rest."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Frozen(NamedTuple):
    """What of a model is frozen.

    Attributes:
        layer: dotted name of the layer through whose output alone the logits see all that is frozen.
        modules: names of the outermost modules that are done when that output is there; the layer is the last.
        obstacle: why the rest of the model cannot be run from that output on; "" where it can.
    """

    layer: str
    modules: tuple[str, ...]
    obstacle: str


class _Reached(Exception):
    """Carries a layer's output out of the forward that it is in."""


def freeze(model: nn.Module, layer: str, size: int) -> Frozen:
    """Take the gradient from all parameters that the logits see through a layer's output only; runs the model twice.

    size: side of the images. The model's mode is left as it is; frozen modules are put in eval mode by whoever trains.

    Raises:
        ValueError: there is no such layer, something goes past it, or nothing would be left to train.
    """
    if layer not in dict(model.named_modules()) or not layer:
        near = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"--freeze-until must name a module of the model, got {layer!r}; at the top: {near}")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        done, unseen = _before(model, layer, size)
        own = {name for name in done if not any(name.startswith(f"{other}.") for other in done)}
        outermost = tuple(name for name in done if name in own)
        _check(model, layer, outermost, unseen)
        for parameter in unseen:
            parameter.requires_grad_(False)
        return Frozen(layer, outermost, _obstacle(model, Frozen(layer, outermost, ""), size))
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def output_of(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """A layer's output, without gradient; what comes after it is not run."""

    def leave(module, args, output):
        raise _Reached(output)

    handle = model.get_submodule(layer).register_forward_hook(leave)
    try:
        model(images)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{layer} must be run by the model's forward, got one that leaves it out")


def rest_of(model: nn.Module, frozen: Frozen) -> nn.Module:
    """The model from the layer's output on, which it takes in place of images; its modules are the model's own."""
    return _without(model, frozenset(frozen.modules))


def _without(module: nn.Module, names: Iterable[str], prefix: str = "") -> nn.Module:
    """A module whose submodules of these names hand on what they get."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    for name, child in module.named_children():
        if f"{prefix}{name}" in names:
            copied._modules[name] = nn.Identity()
        elif any(own.startswith(f"{prefix}{name}.") for own in names):
            copied._modules[name] = _without(child, names, f"{prefix}{name}.")
    return copied


def _before(model: nn.Module, layer: str, size: int) -> tuple[list[str], list[nn.Parameter]]:
    """The modules that are done when the layer is, in order, and the parameters that are seen through it only."""
    done: list[str] = []
    reached: list[int] = []

    def note(name: str):
        def hook(module, args, output):
            done.append(name)
            if name != layer:
                return None
            if not isinstance(output, Tensor):
                raise ValueError(f"--freeze-until must name a layer that gives one tensor, got {layer}")
            reached.append(len(done))
            return output.detach().requires_grad_()

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            logits = model(torch.zeros(2, 3, size, size, device=parameters[0].device))
            seen = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    if len(reached) != 1:
        raise ValueError(f"--freeze-until must name a layer that runs once in a forward, got {layer}: {len(reached)}")
    unseen = [parameter for parameter, gradient in zip(parameters, seen, strict=True) if gradient is None]
    return list(dict.fromkeys(done[: reached[0]])), unseen


def _check(model: nn.Module, layer: str, modules: tuple[str, ...], unseen: list[nn.Parameter]) -> None:
    known = {id(parameter) for parameter in unseen}
    for name in modules:
        if any(
            parameter.requires_grad and id(parameter) not in known
            for parameter in model.get_submodule(name).parameters()
        ):
            raise ValueError(
                f"--freeze-until must name a layer that all goes through, got {layer}: {name} goes past it"
            )
    if all(id(parameter) in known or not parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze-until must leave something to train, got {layer}")


@torch.no_grad()
def _obstacle(model: nn.Module, frozen: Frozen, size: int) -> str:
    """Why the two parts, one after the other, are not the model; "" where they are, to the last bit."""
    device = next(model.parameters()).device
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        same = torch.equal(rest_of(model, frozen)(output_of(model, frozen.layer, images)), model(images))
    except Exception as error:  # whatever a forward raises that is given another's input
        return f"{type(model).__name__} does not run from there on: {error}"
    return "" if same else f"{type(model).__name__} does more before it than its modules say"
