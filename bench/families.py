"""`python -m bench.families`: `GradCAM.auto` on a model of every family of torchvision and timm, into docs/families.md.

A family is a module of torchvision.models or of timm's list; its model is the one with the fewest parameters, with
random weights and images of 128 pixels where it takes them. Each must make a step, with a gradient that is not zero and
heatmaps equal to those of torch.autograd.grad on the bare model, before the step is timed against cross-entropy alone
on the same two views; both run in every round, and the ratio is taken within a round.
"""

import argparse
import gc
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cgc_kernels import GradCAM, GradCAMOutput, cgc_loss, gradcam
from cgc_kernels.grad_cam.families import find_target

from .report import machine
from .workloads import random_crop

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN = "<!-- made by python -m bench.families -->"
SIZES = (128, 126, None)  # the second for patches of 14 pixels, the third is the model's own
CLASSES, BATCH = 10, 2
# Whose random weights let every place see the whole image: their attention drowns the rest, or starts uniform.
GLOBAL = ("timm/gemma4_vit", "timm/levit")
HEADINGS = ("family", "model", "M parameters", "px", "target layer", "map C x H x W", "gradients", "step / plain")
TOLERANCE = 1e-5  # of the largest value of a heatmap, float32


class Example(NamedTuple):
    """The model of a family: its name, "torchvision/..." or "timm/...", and the height and width of its images."""

    name: str
    model: nn.Module
    size: int


class Row(NamedTuple):
    """A line of the table, as it is printed there: see the headings."""

    family: str
    model: str
    millions: str
    size: str
    layer: str
    shape: str
    path: str
    ratio: str


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.families", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="all by default")
    parser.add_argument("--missing", action="store_true", help="those that the table lacks: go on where it stopped")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # CPU seconds are compared
    found, rows, failed = families(), {row.family: row for row in read_table()}, []
    for family in chosen.only or found:
        if chosen.missing and family in rows:
            continue
        try:
            rows[family] = measure(family, cheapest(found[family]), chosen.rounds)
            print(*rows[family], flush=True)
        except Exception as error:
            failed.append(family)
            print(f"{family}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        write_table([rows[family] for family in found if family in rows])
        gc.collect()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def families() -> dict[str, list[str]]:
    """The classifiers of torchvision and timm by the module that defines them."""
    import timm
    import torchvision

    found = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        module = torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
        found.setdefault(f"torchvision/{module}", []).append(f"torchvision/{name}")
    for module in timm.list_modules():
        if names := timm.list_models(module=module):
            found[f"timm/{module}"] = [f"timm/{name}" for name in names]
    return found


def cheapest(names: Iterable[str]) -> str:
    """The name of the model with the fewest parameters."""
    return min(names, key=_parameters)


def _parameters(name: str) -> float:
    library, _, architecture = name.partition("/")
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model_weights(architecture).DEFAULT.meta["num_params"]
    with torch.device("meta"):
        model = build(name)
    # An encoder takes the number of classes and ignores it.
    return sum(parameter.numel() for parameter in model.parameters()) if model.num_classes == CLASSES else math.inf


def build(name: str, size: int | None = None) -> nn.Module:
    """The model with random weights, for images of ``size`` pixels where its architecture depends on that."""
    library, _, name = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (_build_timm if library == "timm" else _build_torchvision)(name, size)


def _build_torchvision(name: str, size: int | None) -> nn.Module:
    import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if size and name.startswith("vit_"):
        options["image_size"] = size
    if size and name.startswith("maxvit"):
        options["input_size"] = (size, size)
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


def _build_timm(name: str, size: int | None) -> nn.Module:
    import timm

    if size:
        try:
            return timm.create_model(name, num_classes=CLASSES, img_size=size)
        except TypeError:  # a convolutional network, which takes images of any size
            pass
    return timm.create_model(name, num_classes=CLASSES)


def example(name: str) -> Example:
    """The model at the first of the sizes that it runs at; heads that start at zero made random."""
    torch.manual_seed(0)
    for size in SIZES:
        try:
            model = build(name, size)
            pixels = size or _own_size(name, model)
            with torch.no_grad():
                model(torch.rand(BATCH, 3, pixels, pixels))
            break
        except (AssertionError, RuntimeError, ValueError, TypeError):
            if size is None:
                raise
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    return Example(name, model, pixels)


def _own_size(name: str, model: nn.Module) -> int:
    if name.startswith("timm/"):
        return model.pretrained_cfg["input_size"][1]
    return 299 if "inception" in name else 224


def views(given: Example) -> tuple[Tensor, Tensor]:
    """Two batches of random images."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, BATCH, 3, given.size, given.size, generator=generator))


def check(given: Example) -> tuple[GradCAM, str]:
    """Raise AssertionError unless a step runs and its heatmaps are those of autograd.grad; the GradCAM and its map."""
    first, second = views(given)
    want = heatmaps_by_autograd(given, first)
    cam = GradCAM.auto(given.model)
    torch.manual_seed(0)
    out = step(cam, first, second)
    gradients, heatmaps = out.cam.gradients.detach(), gradcam(out.cam).detach()
    assert min(out.cam.features.shape[2:]) > 1, f"the map is {list(out.cam.features.shape)}"
    assert gradients.any(), "the gradient is zero"
    error = (heatmaps - want).abs().max() / want.abs().max()
    assert error <= TOLERANCE, f"heatmaps differ by {error:.2g}"
    return cam, " x ".join(map(str, out.cam.features.shape[1:]))


def heatmaps_by_autograd(given: Example, view: Tensor) -> Tensor:
    """ReLU of the features weighted by the mean gradient, [B, H, W], from a hook and torch.autograd.grad."""
    layer, reshape = find_target(given.model)
    kept = []
    # BatchNorm's running statistics do not enter in train mode; dropout is drawn with the same seed.
    with given.model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output)):
        torch.manual_seed(0)
        output = given.model(view)
    logits = getattr(output, "logits", output)
    (gradients,) = torch.autograd.grad(logits.amax(1).sum(), kept)
    features, gradients = reshape(kept[0]).detach(), reshape(gradients)
    return (gradients.mean((2, 3), keepdim=True) * features).sum(1).relu()


def check_places(given: Example) -> None:
    """Raise AssertionError unless the corners of a map that reshape made see the image in the order of its corners.

    In double: behind layer scales of 1e-5 what a corner sees is small.
    """
    layer, reshape = find_target(given.model)
    kept, view = [], views(given)[0].double().requires_grad_()
    given.model.eval().double()
    try:
        with given.model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output)):
            given.model(view)
        features = reshape(kept[0])
        if features is kept[0]:
            return
        corners = [(row, column) for row in (0, -1) for column in (0, -1)]
        centres = {(row, column): _centre_of_sight(features[:, :, row, column], view) for row, column in corners}
    finally:
        given.model.train().float()
    for side in (0, -1):
        assert centres[0, side][0] < centres[-1, side][0], f"rows are not in place: {centres}"
        assert centres[side, 0][1] < centres[side, -1][1], f"columns are not in place: {centres}"


def _centre_of_sight(features: Tensor, view: Tensor) -> tuple[float, float]:
    """Where, in pixels, the part of the view lies that a place's features depend on."""
    (seen,) = torch.autograd.grad(features.square().sum(), view, retain_graph=True)
    seen = seen.square().sum((0, 1)) / seen.square().sum()
    pixels = torch.arange(len(seen), dtype=seen.dtype)
    return float(seen.sum(1) @ pixels), float(seen.sum(0) @ pixels)


def step(cam: GradCAM, first: Tensor, second: Tensor) -> GradCAMOutput:
    """Forward and backward of cross-entropy and the loss; what the first view gave."""
    out, out_aug = cam(first, second)
    labels = torch.arange(len(first))
    loss = cross_entropy(out.logits, labels) + cross_entropy(out_aug.logits, labels)
    term = cgc_loss(out.cam, out_aug.cam, random_crop(len(first), first.shape[-1]))
    (loss + 0.5 * term).backward()
    return out


def plain_step(model: nn.Module, first: Tensor, second: Tensor) -> None:
    """Forward and backward of cross-entropy on the same views."""
    labels, outputs = torch.arange(len(first)), (model(view) for view in (first, second))
    sum(cross_entropy(getattr(output, "logits", output), labels) for output in outputs).backward()


def measure(family: str, name: str, rounds: int) -> Row:
    """The family's line, after its checks."""
    given = example(name)
    cam, shape = check(given)
    if family not in GLOBAL:
        check_places(given)
    first, second = views(given)
    ratios = []
    for _ in range(rounds):
        ours = _seconds(step, cam, first, second)
        ratios.append(ours / _seconds(plain_step, given.model, first, second))
    millions = f"{sum(parameter.numel() for parameter in given.model.parameters()) / 1e6:.1f}"
    path = "closed form" if cam.closed_form else "autograd"
    _, _, architecture = name.partition("/")
    size, ratio = str(given.size), f"{np.median(ratios):.2f}"
    return Row(family, architecture, millions, size, cam.target_layer, shape, path, ratio)


def _seconds(run: Callable, *arguments: object) -> float:
    began = time.process_time()
    run(*arguments)
    return time.process_time() - began


def write_table(rows: list[Row]) -> None:
    """Put the rows into the page, below the mark."""
    head, _, _ = PAGE.read_text().partition(BEGIN)
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    PAGE.write_text("\n".join([f"{head}{BEGIN}", "", *lines, "", f"{machine()}, {_versions()}.", ""]))


def _versions() -> str:
    return ", ".join(f"{library} {version(library)}" for library in ("torchvision", "timm"))


def read_table() -> list[Row]:
    """The rows of the page."""
    lines = PAGE.read_text().partition(BEGIN)[2].splitlines()
    return [Row(*line.strip("| ").split(" | ")) for line in lines if line.startswith("| t")]


if __name__ == "__main__":
    main()
