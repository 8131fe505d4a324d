"""`python -m bench.step`: a whole training step with the loss, without it, and as the released code makes it.

- plain: the driver's step with cross-entropy alone, on the same three views;
- driver: the driver's step with the CGC loss, Grad-CAM in closed form, the fused kernels;
- literal: three forwards, gradients by autograd with a graph (a double backward), and the loss on S x S maps with a
  loop over the samples, as in the released code; optimizer and cross-entropy as in the others.

Interleaved: every round runs each once, and ratios are taken within a round. Nothing is timed before the gradients of
the three agree where they must: literal and driver everywhere, plain and driver without the loss's weight.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .harness import percentiles, steady
from .peers import literal as literal_loss
from .report import machine
from .workloads import random_crop

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))  # the driver is scripts, not a part of the package
from driver import engine
from driver.ranks import Ranks
from driver.settings import Settings
from driver.views import Batch

SECTIONS = ("forward", "CGC", "backward", "update")
NAMES = ("view", "aug", "extra")
STEPS = ("plain", "driver", "literal")
TOLERANCE = 1e-3  # of the largest gradient, float32 through a whole network


class Model(NamedTuple):
    """What is trained in a benchmark."""

    title: str
    settings: Settings
    classes: int


MODELS = {
    "demo": Model("demo model, batch 32, 64 px", Settings(ramp=0.0), 10),
    "resnet50": Model(
        "ResNet-50, batch 8, 224 px",
        Settings(model="resnet50", image_size=224, batch_size=8, optimizer="sgd", lr=0.01, weight_decay=1e-4, ramp=0.0),
        1000,
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    steady()
    for name in chosen.models:
        print(f"{name} ...", flush=True)
        print(f"\n{report(MODELS[name], measure(MODELS[name], chosen.rounds))}\n", flush=True)
    print(f"{machine()}, {chosen.rounds} rounds; medians, ratios [p20-p80] within a round")


def measure(model: Model, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of every section of every step, by round. Raises AssertionError where the steps disagree."""
    batch = make_batch(model)
    agree(model, batch)
    steps = {name: make_step(name, make_trainer(model, name), batch) for name in STEPS}
    for step in steps.values():
        step()  # warm
    seconds = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(step())
    return seconds


def make_batch(model: Model) -> Batch:
    """Three views of random images and their crops."""
    size, count = model.settings.image_size, model.settings.batch_size
    views = torch.rand(3, count, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % model.classes
    return Batch(dict(zip(NAMES, views, strict=True)), random_crop(count, size), labels, [])


def make_trainer(model: Model, name: str) -> engine.Trainer:
    """The driver's trainer: of cross-entropy alone for plain, with the released objective otherwise."""
    data = SimpleNamespace(
        train=range(1000 * model.settings.batch_size),
        unlabeled=None,
        classes=[str(index) for index in range(model.classes)],
        image_size=model.settings.image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    run = engine.Run("baseline" if name == "plain" else "cgc", 0, Path("unused"))
    trainer = engine.Trainer(run, model.settings, data, torch.device("cpu"), Ranks())
    trainer.train_mode()
    return trainer


def make_step(name: str, trainer: engine.Trainer, batch: Batch) -> Callable[[], dict[str, float]]:
    """A step that returns the seconds of its sections."""
    return (lambda: literal_step(trainer, batch)) if name == "literal" else driver_step(trainer, batch)


def driver_step(trainer: engine.Trainer, batch: Batch) -> Callable[[], dict[str, float]]:
    """The driver's own step, watched by hooks."""
    marks = {}

    def mark(name: str) -> Callable:
        return lambda *_: marks.__setitem__(name, time.perf_counter())

    trainer.step.net.register_forward_hook(mark("forward"))
    if trainer.step.heatmap_loss is not None:
        trainer.step.heatmap_loss.register_forward_pre_hook(mark("loss"))
        trainer.step.heatmap_loss.register_forward_hook(mark("CGC"))
    trainer.state.optimizer.register_step_pre_hook(mark("backward"))

    def step() -> dict[str, float]:
        marks.clear()
        began = time.perf_counter()
        trainer.advance(batch, None, 500)
        ended = time.perf_counter()
        loss = marks["CGC"] - marks["loss"] if "CGC" in marks else 0.0
        forward = marks["forward"] - began
        backward = marks["backward"] - marks["forward"] - loss
        return dict(zip(SECTIONS, (forward, loss, backward, ended - marks["backward"]), strict=True))

    return step


def literal_step(trainer: engine.Trainer, batch: Batch) -> dict[str, float]:
    """The step as the released code makes it, on the trainer's model and optimizer."""
    times = [time.perf_counter()]
    trainer.state.optimizer.zero_grad(set_to_none=True)
    batch = batch.on(trainer.device, trainer.data, trainer.settings.channels_last)
    ce, cams = literal_forward(trainer, batch)
    times.append(time.perf_counter())
    term = literal_loss(*cams, batch.crops, image_size=(trainer.settings.image_size,) * 2, weighting="elementwise")
    times.append(time.perf_counter())
    (ce + trainer.step.weight * term).backward()
    times.append(time.perf_counter())
    trainer.state.optimizer.step()
    times.append(time.perf_counter())
    return dict(zip(SECTIONS, np.diff(times).tolist(), strict=True))


def literal_forward(trainer: engine.Trainer, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Cross-entropy of three views, and features and gradients of two for the class predicted on the first."""
    model, kept = trainer.state.model, []
    layer = model.get_submodule(trainer.state.cam.target_layer)
    with layer.register_forward_hook(lambda module, args, output: kept.append(output)):
        logits = [model(view) for view in batch.views.values()]
    target, cams = logits[0].argmax(1, keepdim=True), []
    for view_logits, features in zip(logits[:2], kept, strict=False):
        score = view_logits.gather(1, target).sum()
        cams += [features, *torch.autograd.grad(score, features, create_graph=True)]
    return sum(cross_entropy(view_logits, batch.labels) for view_logits in logits), cams


def agree(model: Model, batch: Batch) -> None:
    """Raise AssertionError unless the steps compute the same gradients, from the same weights."""
    found = {}
    for name in STEPS:
        trainer = make_trainer(model, name)
        if name == "literal":
            placed = batch.on(trainer.device, trainer.data, trainer.settings.channels_last)
            ce, cams = literal_forward(trainer, placed)
            size = (model.settings.image_size,) * 2
            (
                ce + trainer.step.weight * literal_loss(*cams, placed.crops, image_size=size, weighting="elementwise")
            ).backward()
        else:
            trainer.step.backward(batch, None, trainer.step.weight)
        found[name] = {key: parameter.grad for key, parameter in trainer.state.model.named_parameters()}
        if name == "driver":
            trainer.step.backward(batch, None, 0.0)
            found["unweighted"] = {key: parameter.grad for key, parameter in trainer.state.model.named_parameters()}
    for one, other in (("literal", "driver"), ("plain", "unweighted")):
        for key, gradient in found[one].items():
            error, largest = (found[other][key] - gradient).abs().max(), gradient.abs().max()
            assert error <= TOLERANCE * largest + 1e-6, f"{one} and {other} differ by {error:.3g} in {key}"


def report(model: Model, seconds: dict[str, list[dict[str, float]]]) -> str:
    """The medians as a Markdown table."""
    totals = {name: np.array([sum(row.values()) for row in rows]) for name, rows in seconds.items()}
    lines = [
        f"| {model.title} | ms | {' | '.join(SECTIONS)} | / plain | / driver |",
        "|---|" + "---|" * (len(SECTIONS) + 3),
    ]
    for name, rows in seconds.items():
        sections = [f"{1e3 * np.median([row[section] for row in rows]):.1f}" for section in SECTIONS]
        ratios = [percentiles(totals[name] / totals[base]) for base in ("plain", "driver")]
        shown = [f"{r['p50']:.3f} [{r['p20']:.3f}-{r['p80']:.3f}]" for r in ratios]
        lines.append(f"| {name} | {1e3 * np.median(totals[name]):.1f} | {' | '.join(sections + shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
