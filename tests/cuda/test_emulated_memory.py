"""What the emulator sees of the CUDA kernels: races, accesses out of bounds, bytes and sectors."""

import math
import os
import subprocess
import sys

import pytest
import torch

from cgc_kernels import cgc_loss
from cgc_kernels.options import OBJECTIVES
from tests.cuda import simt
from tests.cuda.cases import LAYOUTS, case_of
from tests.support import ROOT
from tests.support.cases import WEIGHTINGS, evaluate

pytestmark = pytest.mark.skipif(bool(simt.missing()), reason=simt.missing() or "there is one")


@pytest.fixture(scope="session")
def watched():
    from tests.cuda.emulation import Emulation

    return Emulation("instrumented")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_race_and_nothing_out_of_bounds(watched, weighting, layout):
    index = list(WEIGHTINGS).index(weighting)
    for transform, dtype in (("crop", torch.float32), ("warp", torch.bfloat16), ("crop", torch.float64)):
        objective = OBJECTIVES[(index + (dtype == torch.float64)) % len(OBJECTIVES)]
        case = case_of(3, 12, (4, 4), weighting, layout, transform=transform, objective=objective, size=(5, 7)).to(
            dtype
        )
        with watched.running(seed=1 + index, yield_p=0.05):
            evaluate(case, "cuda")
            watched.emulator.assert_clean()


@pytest.mark.parametrize("side", [(2, 9), (9, 2)])
def test_shared_memory_holds_the_tables_of_large_views(watched, side):
    """A chunk of pixels fills the table: whatever else is in shared memory must have been counted."""
    case = case_of(2, 8, side, "pooled", size=(120, 130)).to(torch.float32)
    with watched.running():
        evaluate(case, "cuda")
        watched.emulator.assert_clean()


@pytest.mark.parametrize("weighting", ["pooled", "gradcam"])
def test_columns_that_do_not_divide_a_block(watched, weighting):
    """24 vectors of channels: 10 threads share each, and the 16 that are left over must do nothing."""
    case = case_of(1, 96, (7, 7), weighting, "channels_last", size=(9, 9)).to(torch.float32)
    with watched.running():
        evaluate(case, "cuda")
        watched.emulator.assert_clean()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooled_gradients_need_no_alignment(watched, layout):
    """They are read and written one by one; beside them the features still move in vectors of 16 bytes."""
    features, gradients = case_of(2, 64, (4, 4), "pooled", layout).to(torch.float32).views[:2]
    shifted = torch.empty(gradients.numel() + 1)[1:].view_as(gradients).copy_(gradients)
    assert features.data_ptr() % 16 == 0 != shifted.data_ptr() % 16
    with watched.running() as kernels:
        heatmaps, _ = kernels.cam(features, shifted, False)
        assert watched.emulator.loads("features").requested == 16 * watched.emulator.loads("features").lanes
        watched.emulator.setup()
        kernels.cam_backward(torch.ones_like(heatmaps), heatmaps, features, shifted, True, True)
        assert watched.emulator.loads("features").requested == 16 * watched.emulator.loads("features").lanes
        watched.emulator.assert_clean()


def traffic(watched, case):
    """Bytes that move, and the traffic of the features, of the forward and of the backward."""
    emulator, found = watched.emulator, []
    leaves = [v.detach().requires_grad_() for v in case.views]
    with watched.running():
        loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend="cuda", **case.settings)
        emulator.assert_clean()
        found.append(moved(emulator))
        grad = torch.ones_like(loss)
        emulator.setup()
        loss.backward(grad)
        emulator.assert_clean()
        found.append(moved(emulator))
    return found


NAMES = (
    "features", "gradients", "heatmaps", "weights", "rows", "keys", "positives", "state", "row_losses", "loss",
    "transform0", "transform1", "transform2", "transform3", "transform4", "workspace", "grad", "grad_loss",
)  # fmt: skip


def moved(emulator):
    """Distinct bytes of every warp request, and the requests of the features and gradients."""
    total, large = 0, []
    for name in NAMES:
        for direction in (emulator.loads, emulator.stores):
            try:
                one = direction(name)
            except KeyError:
                continue
            total += one.distinct
            if one.requests and name in ("features", "gradients", "grad"):
                large.append(one)
    return total, large


# All that moves, of the floor. What is no feature tensor is in float32 and double whatever the features are.
ALLOWED = {torch.float32: 1.05, torch.bfloat16: 1.08}


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("side", [(7, 7), (14, 14)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_bytes_and_sectors(watched, weighting, layout, side, dtype):
    """Little more than must move (docs/mathematics.md, section 5), in well-used sectors."""
    batch, channels = 8, 1024 // dtype.itemsize  # features of as many bytes in every type
    case = case_of(batch, channels, side, weighting, layout, size=(28, 28)).to(dtype)
    tensor = batch * channels * math.prod(side) * dtype.itemsize
    pooled = batch * channels * dtype.itemsize  # of the features' type here; means of gradients are in float32
    floors = {
        "pooled": (2 * tensor + 2 * pooled, 4 * tensor + 4 * pooled),
        "gradcam": (4 * tensor, 4 * tensor + 2 * batch * channels * 4),
        "elementwise": (4 * tensor, 8 * tensor),
    }[weighting]
    for (total, large), floor, what in zip(traffic(watched, case), floors, ("forward", "backward"), strict=True):
        assert total <= ALLOWED[dtype] * floor, (what, total / floor)
        assert sum(one.distinct for one in large) <= 1.02 * floor, (what, sum(one.distinct for one in large) / floor)
        used = sum(one.distinct for one in large) / (32 * sum(one.sectors for one in large))
        assert used >= 0.93, (what, used)
        maps = [one for one in large if one.requested > tensor // 2]
        assert maps, what
        assert all(one.requested >= 13 * one.lanes for one in maps), what  # vectors of 16 bytes; pooled gradients less
        assert not any(one.wasteful for one in large), what


ASAN = """
import torch
from tests.support.cases import evaluate, lay_out, simple_case
from tests.cuda.emulation import Emulation

kernels = Emulation("asan")
for layout in ("contiguous", "channels_last"):
    for dtype, weighting in ((torch.float32, "elementwise"), (torch.bfloat16, "gradcam"), (torch.float64, "gradcam")):
        for channels in (9, 16):
            case = simple_case(batch=3, channels=channels, side=(3, 5), weighting=weighting).to(dtype)
            case = case._replace(views=tuple(lay_out(v, layout) for v in case.views))
            with kernels.running():
                loss, _ = evaluate(case, "cuda")
            assert loss.isfinite()
print("clean")
"""


def test_address_sanitizer():
    env = {**simt.asan_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", ASAN], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.split() == ["clean"]
