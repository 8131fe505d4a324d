"""Times calls with tiny tensors, for bench/host.py: a line of JSON asks, a line of JSON answers.

Run by its path in the root of a checkout, whose package it measures: of any commit, so public names alone are used.
"""

import gc
import json
import os
import sys
import time
from types import SimpleNamespace

BATCH, CHANNELS, SIDE = 4, 8, 7
NO_OP, UNLAUNCHED = "no-op", "cpu, no launch"
BACKENDS = {"cpu": ("cpp", "torch", "reference"), "cuda": ("cuda", "triton", "torch"), UNLAUNCHED: ("triton",)}


def without_launches() -> None:
    """Have Triton compile for a device that is not there, and do all but the launch, for tensors on the CPU.

    To be called before the package is imported, which takes such tensors only where Triton interprets.
    """
    import triton

    triton.knobs.runtime.interpret = False  # whatever the environment says from here on
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends.compiler import GPUTarget

    properties = {"max_shared_mem": 232448, "multiprocessor_count": 132}
    loaded = 1, 1, 255, 0, 1024  # module, function, registers, spilled bytes, threads at most
    driver = SimpleNamespace(
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda *arguments: loaded,
            unload_module=lambda module: None,
        ),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    triton.runtime.driver.set_active(driver)


if sys.argv[1:2] == [UNLAUNCHED]:
    without_launches()

# After it: which backends there are is found out when the package is imported, of whatever driver is there then.
import torch  # noqa: E402

import cgc_kernels  # noqa: E402
from cgc_kernels import CropFlip, cgc_loss  # noqa: E402


class NoOp(torch.autograd.Function):
    """Takes five tensors, keeps them and allocates what the loss and its gradients take; computes nothing."""

    @staticmethod
    def forward(ctx, a, b, c, d, e):
        ctx.save_for_backward(a, b, c, d, e)
        return a.new_empty(())

    @staticmethod
    def backward(ctx, grad):
        a, b, c, d, _ = ctx.saved_tensors
        return torch.empty_like(a), torch.empty_like(b), torch.empty_like(c), torch.empty_like(d), None


def candidates(device: str, image_size: int) -> dict:
    """Name -> the call, for tensors on a device: the no-op Function and every backend that serves there."""
    place = "cpu" if device == UNLAUNCHED else device
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, BATCH, CHANNELS, SIDE, SIDE, generator=generator).to(place).unbind()
    gradients = torch.randn(2, BATCH, CHANNELS, generator=generator).to(place).unbind()
    leaves = [t.detach().requires_grad_() for pair in zip(features, gradients, strict=True) for t in pair]
    start, length = image_size // 8, image_size // 2
    boxes = [(0, 0, image_size, image_size), (start, 0, length, length + start), (0, start, length, length)]
    crop = CropFlip.from_torchvision([*boxes, (start, start, start, length)], flip=[False, True, False, True])
    crop = crop.to(place)

    def loss(backend):
        return lambda: cgc_loss(leaves[:2], leaves[2:], crop, image_size=image_size, backend=backend)

    found = {NO_OP: lambda: NoOp.apply(*leaves, crop.top)}
    available = cgc_kernels.info()["backends"]
    found |= {name: loss(name) for name in BACKENDS[device] if available[name]["available"]}
    return {name: (call, leaves) for name, call in found.items()}


def seconds(call, leaves: list, backward: bool, calls: int) -> float:
    """The host's time for one call, forward alone or with backward; a GPU is waited for when all have been made."""
    start = time.perf_counter()
    for _ in range(calls):
        loss = call()
        if backward:
            torch.autograd.grad(loss, leaves)
    elapsed = time.perf_counter() - start
    if leaves[0].is_cuda:
        torch.cuda.synchronize()
    return elapsed / calls


def main(device: str, image_size: int) -> None:
    torch.set_num_threads(1)
    gc.disable()
    known = candidates(device, image_size)
    print(json.dumps({"package": cgc_kernels.__file__, "candidates": list(known)}), flush=True)
    for line in sys.stdin:
        name, backward, calls = json.loads(line)
        print(json.dumps(seconds(*known[name], backward, calls)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
