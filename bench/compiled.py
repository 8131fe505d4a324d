"""`python -m bench.compiled`: a training step through torch.compile(cam) against the same step in eager mode.

Small models of random weights: a ConvNeXt and a ViT, whose Grad-CAM goes through autograd, so that torch.compile takes
what comes before the target layer in parts; a RegNet, which has a closed form and is compiled whole; and torchvision's
ConvNeXt-T at its own size. Beside them what torch.compile does for the model alone, on a step of cross-entropy.
Interleaved: ratios are taken within a round.
Nothing is timed before the gradients of both modes agree.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from cgc_kernels import CropFlip, GradCAM, cgc_loss, tokens_to_map

from .harness import percentiles, steady
from .report import machine

CLASSES, TOLERANCE = 10, 1e-3  # of the largest gradient, float32 through a whole network
STEPS = ("eager", "compiled", "eager, model alone", "compiled, model alone")


class Model(NamedTuple):
    """A model, its target layer, how that becomes a map, and the side of its images."""

    make: Callable[[], nn.Module]
    layer: str
    reshape: Callable[[Tensor], Tensor] | None = None
    size: int = 64


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 2)], num_classes=CLASSES)


def convnext_tiny() -> nn.Module:
    from torchvision.models import convnext_tiny

    return convnext_tiny(num_classes=CLASSES, stochastic_depth_prob=0.0)  # both modes draw from one generator


def regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams([1, 1, 2, 2], [24, 56, 152, 368], [8] * 4, [1.0] * 4, [2] * 4), CLASSES)


def vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    settings = {"patch_size": 8, "embed_dim": 192, "depth": 4, "num_heads": 3}
    model = VisionTransformer(img_size=64, num_classes=CLASSES, **settings)
    for block in model.blocks:
        block.attn.fused_attn = False  # which has no double backward
    return model


MODELS = {
    "convnext": Model(convnext, "features"),
    "regnet": Model(regnet, "trunk_output"),
    "vit": Model(vit, "blocks.3.norm1", tokens_to_map(8, 8)),
    "convnext_tiny": Model(convnext_tiny, "features", size=224),
}
SMALL = ["convnext", "regnet", "vit"]


class Result(NamedTuple):
    """Seconds of every step by round, the path of the gradients, and the number of graphs compiled."""

    seconds: dict[str, list[float]]
    path: str
    graphs: int


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=SMALL)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="inductor")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    steady()
    titles = ("model", "gradients", "graphs", "eager, ms", "compiled / eager", "the same of the model alone")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|", flush=True)
    for name in chosen.models:
        print(row(name, measure(MODELS[name], chosen.rounds, chosen.batch, chosen.backend)), flush=True)
    print(f"\n{machine()}, {chosen.rounds} rounds; medians, ratios [p20-p80] within a round")


def measure(model: Model, rounds: int, batch: int, backend: str) -> Result:
    """Raises AssertionError where the compiled step has other gradients."""
    torch.manual_seed(0)
    torch.compiler.reset()
    network = model.make().to(memory_format=torch.channels_last)
    cam = GradCAM(network, model.layer, reshape=model.reshape)
    views = [torch.rand(batch, 3, model.size, model.size).to(memory_format=torch.channels_last) for _ in range(2)]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(cam, backend=counter)
    steps = {
        "eager": lambda: step(network, lambda: cam(*views)),
        "compiled": lambda: step(network, lambda: compiled(*views)),
    }
    network.eval()  # the statistics of batch norm would move in between
    check(steps["compiled"](), steps["eager"]())
    network.train()
    steps["compiled"]()
    graphs = counter.frame_count
    alone = torch.compile(network.__call__, backend=backend)
    steps["eager, model alone"] = lambda: plain_step(network, network, views)
    steps["compiled, model alone"] = lambda: plain_step(network, alone, views)
    steps["compiled, model alone"]()
    seconds = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name in STEPS:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return Result(seconds, cam.gradient_path, graphs)


def step(network: nn.Module, outputs: Callable) -> tuple[Tensor, ...]:
    """The gradients of cross-entropy of both views and the CGC loss."""
    network.zero_grad()
    out, out_aug = outputs()
    size = out.cam.image_size
    loss = _cross_entropy(out.logits) + _cross_entropy(out_aug.logits)
    loss = loss + 0.5 * cgc_loss(out.cam, out_aug.cam, CropFlip.identity(len(out.logits), size))
    loss.backward()
    return tuple(parameter.grad for parameter in network.parameters())


def check(gradients: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Raise AssertionError unless the two agree."""
    largest = max(float(grad.abs().max()) for grad in expected)
    worst = max(float((a - b).abs().max()) for a, b in zip(gradients, expected, strict=True))
    assert worst <= TOLERANCE * largest, f"the compiled step is off by {worst}, of gradients up to {largest}"


def plain_step(network: nn.Module, run: Callable, views: list[Tensor]) -> None:
    """Cross-entropy of both views alone."""
    network.zero_grad()
    sum(_cross_entropy(run(view)) for view in views).backward()


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)) % CLASSES)


def row(name: str, result: Result) -> str:
    """A line of the table, in markdown."""
    seconds = result.seconds
    ratios = [
        percentiles([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])
        for over, under in (("compiled", "eager"), ("compiled, model alone", "eager, model alone"))
    ]
    cells = [f"{ratio['p50']:.2f} [{ratio['p20']:.2f}-{ratio['p80']:.2f}]" for ratio in ratios]
    milliseconds = 1000 * percentiles(seconds["eager"])["p50"]
    return f"| {name} | {result.path.partition(':')[0]} | {result.graphs} | {milliseconds:.0f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
