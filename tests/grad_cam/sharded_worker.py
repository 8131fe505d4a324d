"""One of two processes of tests/grad_cam/test_sharded.py: `python sharded_worker.py STORE RANK RESULTS`.

A model under fully_shard, wrapped before or after, takes two steps; kept is each parameter's gradient or the error.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cgc_kernels import CropFlip, GradCAM, cgc_loss
from tests.support.models import ResNet18

RANKS = 2
WAYS = ("before", "after", "root is the GradCAM", "autograd", "sharded head")


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet18(width=4).double().eval()


def views(rank: int) -> Tensor:
    """Two views [2, B, 3, 64, 64] of a rank's own samples."""
    generator = torch.Generator().manual_seed(rank)
    return torch.rand(2, 2, 3, 64, 64, dtype=torch.float64, generator=generator)


def step(cam: nn.Module, rank: int) -> None:
    """Gradients of the whole loss of a rank."""
    out, out_aug = cam(*views(rank))
    loss = cgc_loss(out.cam, out_aug.cam, CropFlip.identity(2, 64), image_size=64, consistency=2.0)
    (loss + out.logits.square().mean() + out_aug.logits.square().mean()).backward()


def wrap(way: str, mesh) -> tuple[nn.Module, GradCAM]:
    """The network and its GradCAM, sharded."""
    net = network()
    layer = "layer3" if way == "autograd" else "layer4"
    cam = GradCAM(net, layer) if way in ("after", "root is the GradCAM") else None
    for block in (net.layer1, net.layer2, net.layer3, net.layer4, *([net.fc] if way == "sharded head" else [])):
        fully_shard(block, mesh=mesh)
    fully_shard(cam if way == "root is the GradCAM" else net, mesh=mesh)
    return net, cam or GradCAM(net, layer)


def run(way: str, mesh, rank: int) -> dict[str, Tensor] | str:
    net, cam = wrap(way, mesh)
    try:
        for _ in range(2):
            cam.zero_grad()
            step(cam, rank)
    except RuntimeError as error:
        return str(error)
    names = [name for name, _ in cam.named_parameters()]
    assert names == [name for name, _ in network().named_parameters()]
    return {name: parameter.grad.full_tensor() for name, parameter in net.named_parameters()}


def closed_again(mesh, rank: int) -> Tensor:
    """Logits of a sharded model after a GradCAM came and went."""
    net, cam = wrap("before", mesh)
    cam.close()
    return net(views(rank)[0]).detach()


def main(store: str, rank: int, results: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    kept = {way: run(way, mesh, rank) for way in WAYS}
    kept["closed again"] = closed_again(mesh, rank)
    torch.save(kept, results / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
