"""One of four processes of tests/loss/test_distributed.py: `python distributed_worker.py STORE RANK RESULTS`.

Groups of the first 1, 2, 3 and 4 ranks evaluate every case, each rank on its share of the samples.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cgc_kernels import CGCLoss, CropFlip, GradCAM, backends, cgc_loss, distributed, gradcam, heatmap_loss, info
from cgc_kernels.options import Options
from tests.support.cases import Case, simple_case
from tests.support.models import TinyNet

RANKS = 4
SHARES = {1: (6,), 2: (5, 2), 3: (1, 4, 2), 4: (3, 1, 1, 4)}  # samples of each rank
EVEN = {1: (3,), 2: (2, 2), 3: (3, 3, 3), 4: (2, 2, 2, 2)}
LENGTH = 6  # cells of the rows whose products are counted
BACKENDS = ("reference", "torch", *(["cpp"] if info()["backends"]["cpp"]["available"] else []))
CASES = {
    "released": {"objective": "released"},
    "paper": {"objective": "paper", "weighting": "elementwise"},
    "mse": {"objective": "mse"},
    "consistent": {"objective": "released", "consistency": 3.0, "pooled": True},
    "consistent mse": {"objective": "mse", "consistency": 3.0},
    "consistency alone": {"objective": "consistency"},
    "low temperature": {"objective": "paper", "temperature": 0.01},
    "warp": {"objective": "released", "transform": "warp"},
    "float32": {"objective": "released", "consistency": 1.0, "dtype": torch.float32},
}


def make_case(name: str, sizes: tuple[int, ...]) -> Case:
    """The samples of all ranks of a group."""
    return simple_case(batch=sum(sizes), seed=len(sizes), **CASES[name])


def share(case: Case, sizes: tuple[int, ...], rank: int) -> Case:
    """The samples of one rank."""
    first = sum(sizes[:rank])
    own = slice(first, first + sizes[rank])
    transform = case.transform
    transform = CropFlip(*(f[own] for f in transform)) if isinstance(transform, CropFlip) else transform[own]
    return case._replace(views=tuple(view[own] for view in case.views), transform=transform)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The loss, twice over so that the incoming gradient is not 1, and its gradients."""
    return [loss.detach(), *torch.autograd.grad(2 * loss, leaves)]


def by_features(case: Case, backend: str, **where) -> list[Tensor]:
    leaves = case.leaves()
    return gradients(case.loss(leaves, backend, **where), leaves)


def by_module(case: Case, backend: str, **where) -> list[Tensor]:
    leaves = case.leaves()
    loss = CGCLoss(backend=backend, **case.settings, **where)(leaves[:2], leaves[2:], case.transform)
    return gradients(loss, leaves)


def by_heatmaps(case: Case, backend: str, **where) -> list[Tensor]:
    leaves = case.leaves()
    settings = dict(case.settings)
    weighting = settings.pop("weighting")
    maps = [gradcam(*leaves[i : i + 2], weighting=weighting) for i in (0, 2)]
    return gradients(heatmap_loss(*maps, case.transform, backend=backend, **settings, **where), leaves)


FUNCTIONS = {"cgc_loss": by_features, "heatmap_loss": by_heatmaps, "CGCLoss": by_module}


class Products(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, and those that our operators of stage contrast are asked for."""

    def __init__(self):
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name()
        if name.startswith("aten::addmm"):
            self.multiply_adds += args[1].numel() * args[2].shape[1]
        elif name.startswith("aten::mm"):
            self.multiply_adds += args[0].numel() * args[1].shape[1]
        elif name.startswith("cgc_kernels::contrast"):
            products = 4 if "backward" in name else 1  # similarities and their sums, of rows and of keys
            (rows, _, count) = (args[1], *args[5:7]) if "backward" in name else (args[0], *args[3:5])
            self.multiply_adds += products * count * rows.numel()
        return result


def multiply_adds(backend: str, own: int, group) -> int:
    """Those of stage contrast, forward and backward, on a rank with `own` samples."""
    rows = [torch.rand(own, LENGTH).double().requires_grad_() for _ in range(2)]
    positives = torch.rand(own).double().requires_grad_()
    options = Options((8, 8), 0.5, "gradcam", "released", 0.0, 1e-8)
    given = replace(backends.named(backend), resample=lambda *maps: (*rows, positives))
    maps = torch.rand(own, 2, 3)
    with Products() as products:
        distributed.over(given, group, False).heatmap_loss(maps, maps, None, options).backward()
    return products.multiply_adds


def step(views: tuple[Tensor, Tensor], transform: CropFlip, wrap=lambda cam: cam, **where) -> dict[str, Tensor]:
    """Parameter gradients of a small network after one backward of the loss alone; BatchNorm is frozen."""
    torch.manual_seed(0)
    net = TinyNet().double().eval()
    cam = wrap(GradCAM(net, "body"))  # DDP must outlive the backward
    out, out_aug = cam(*views)
    loss = cgc_loss(out.cam, out_aug.cam, transform, image_size=12, consistency=2.0, **where)
    (loss + 0 * out.logits.sum() + 0 * out_aug.logits.sum()).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def network_inputs() -> tuple[tuple[Tensor, Tensor], CropFlip]:
    """Two views and their crops for all four ranks, two samples each."""
    generator = torch.Generator().manual_seed(3)
    views = torch.rand(2, 2 * RANKS, 3, 12, 12, generator=generator, dtype=torch.float64)
    boxes = [(index, 1, 12 - index, 9) for index in range(2 * RANKS)]
    return tuple(views), CropFlip.from_torchvision(boxes, [False, True] * RANKS)


def refusals(group, other) -> dict[str, str]:
    """What each misuse says."""
    case = simple_case()
    leaves = case.leaves()

    def loss(**where):
        return cgc_loss(leaves[:2], leaves[2:], case.transform, **case.settings, **where)

    def double_backward():
        (grad,) = torch.autograd.grad(loss(group=group), leaves[0], create_graph=True)
        grad.sum().backward()

    def forward_mode():
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(leaves[0], leaves[0])
            cgc_loss((dual, leaves[1]), leaves[2:], case.transform, group=group, **case.settings)

    tries = {
        "type": lambda: loss(group="WORLD"),
        "even": lambda: loss(group=group, even=1),
        "outsider": lambda: loss(group=other),
        "double": double_backward,
        "forward": forward_mode,
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except (TypeError, ValueError, RuntimeError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def main(store: str, rank: int, results: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    groups = {world: dist.new_group(list(range(world))) for world in SHARES}
    kept = {}
    for world, group in groups.items():
        if rank < world:
            for backend in BACKENDS:
                for name in CASES:
                    own = share(make_case(name, SHARES[world]), SHARES[world], rank)
                    for function, run in FUNCTIONS.items():
                        kept[f"{world}/{name}/{backend}/{function}"] = run(own, backend, group=group)
                    own = share(make_case(name, EVEN[world]), EVEN[world], rank)
                    kept[f"{world}/{name}/{backend}/even"] = by_features(own, backend, group=group, even=True)
                kept[f"work/{world}/{backend}"] = multiply_adds(backend, SHARES[world][rank], group)
    views, transform = network_inputs()
    own = slice(2 * rank, 2 * rank + 2)
    mine = tuple(view[own] for view in views), CropFlip(*(field[own] for field in transform))
    kept["ddp"] = step(*mine, torch.nn.parallel.DistributedDataParallel, group=dist.group.WORLD, even=True)
    alone = dist.new_group([0])
    kept["refusals"] = refusals(groups[1], alone) if rank == 0 else {}
    kept["outsider"] = refusals(None, alone) if rank == 1 else {}
    kept["repr"] = repr(CGCLoss(image_size=8, group=groups[4], even=True))
    torch.save(kept, results / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
