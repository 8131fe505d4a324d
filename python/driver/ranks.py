"""The processes of a training started by torchrun; one process alone is the case of one rank."""

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=30)  # of a collective: others wait while a rank writes
PATIENCE = timedelta(days=7)  # where the others wait for what one of them does alone


class Ranks(NamedTuple):
    """This process among the others."""

    rank: int = 0
    world: int = 1
    local: int = 0
    patient: "dist.ProcessGroup | None" = None  # the group of all ranks in which one may be waited for

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """The group of all ranks, None where there is one."""
        return dist.group.WORLD if self.world > 1 else None

    def device(self, wanted: str) -> torch.device:
        """Where this rank computes, by the setting auto, cpu or cuda. Raises ValueError where GPUs are too few.

        A process that sees one GPU takes it: some launchers show each process its own.
        """
        if wanted == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        count = torch.cuda.device_count()
        index = self.local if count > 1 else 0
        if index >= count:
            raise ValueError(f"--device must be cpu for more processes than the {count} GPUs, got local rank {index}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def parallel(self, net: nn.Module, device: torch.device) -> nn.Module:
        """The module as it is trained: in DistributedDataParallel where there are several ranks."""
        if self.world == 1:
            return net
        return DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)

    def apart(self, net: nn.Module) -> AbstractContextManager:
        """Where gradients go into the parameters of :meth:`parallel`'s module, but are not yet those of all ranks."""
        return net.no_sync() if self.world > 1 else nullcontext()

    def share(self, value: Any) -> Any:
        """Rank 0's value, for all."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all ranks are here, however long one of them takes."""
        if self.world > 1:
            dist.barrier(self.patient)

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value, for all."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def average(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor."""
        if self.world > 1:
            dist.all_reduce(values)
        return values / self.world

    def align_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers for all: BatchNorm's running statistics differ by what each rank saw last."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def join() -> Ranks:
    """Join the processes that torchrun started, told by its environment; a process of its own where there are none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), world, int(os.environ["LOCAL_RANK"]), patient)


def leave() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
