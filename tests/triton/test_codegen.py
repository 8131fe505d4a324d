"""Machine code of the Triton kernels, compiled without a GPU: no spilled register, wide accesses to the features."""

import functools
import os
from importlib.util import find_spec

import pytest

if not find_spec("triton") or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs triton, and its compiler rather than its interpreter", allow_module_level=True)

import torch
from triton.runtime.jit import JITFunction

from bench import codegen, codegen_page, sass
from cgc_kernels.backends.triton.kernels import cgc
from cgc_kernels.backends.triton.kernels.launch import MANY_PROGRAMS, MANY_ROWS, ceil_div
from cgc_kernels.options import MSE, OBJECTIVES

SHARDS = 16  # for parallel workers: every launch belongs to one


@functools.cache
def every_launch():
    found = [launch for call in codegen.calls() for launch in codegen.launches(call)]
    for rows, _, _ in MANY_ROWS:
        for objective in ("released", "paper"):
            found += codegen.launches(codegen.Call(objective=objective), batch=MANY_PROGRAMS * rows, channels=16)
    return found


@functools.cache
def on_one_architecture():
    return codegen.covering(every_launch())


@functools.cache
def on(architecture):
    return [(launch, architecture) for launch, _, _ in codegen.distinct(every_launch(), architecture)]


def assert_good(jobs):
    assert jobs
    assert not [fault for job in jobs for fault in faults(job)]


def faults(job):
    """What is wrong with the code of one launch."""
    demanded = codegen.demanded(job[0])
    code = codegen.compiled(job, facts=any(demanded))
    what = f"{code.kernel}, {code.case}, sm_{code.architecture}"
    if code.spills:
        yield f"{what}: {code.stack} bytes of stack, {code.local} of local memory"
    if code.shared > codegen.LEAST_SHARED:
        yield f"{what}: {code.shared} bytes of shared memory"
    for kind, wanted in zip(("loads", "stores"), demanded, strict=True):
        if code.wide(kind) < wanted:
            yield f"{what}: {kind} {dict(getattr(code.facts, kind))} by bits, of 16 bytes {wanted} expected"


@pytest.mark.parametrize("weighting", codegen.WEIGHTINGS)
@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
def test_training_in_bfloat16_on_every_architecture(architecture, weighting):
    """The main case: channels_last features of mixed-precision training."""
    call = codegen.Call((torch.bfloat16, torch.bfloat16), "channels_last", weighting)
    streams = [launch for launch in codegen.launches(call) if "BLOCK" in launch.arguments]
    assert_good([(launch, architecture) for launch in streams])
    assert all(sum(codegen.demanded(launch)) > 0 for launch in streams)


@pytest.mark.parametrize("shard", [pytest.param(i, marks=[pytest.mark.slow] * (i % 4 > 0)) for i in range(SHARDS)])
def test_every_configuration_on_one_architecture(shard):
    """Every fourth of them in CI."""
    assert_good(on_one_architecture()[shard::SHARDS])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_configuration_on_every_architecture(shard, architecture):
    assert_good(on(architecture)[shard::SHARDS])


def fused(name, **call):
    """A launch of the fused loss by the name of its kernel."""
    launches = codegen.launches(codegen.Call((torch.bfloat16, torch.bfloat16), **call))
    return next(found for found in launches if found.kernel.__name__ == f"{name}_kernel")


@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
@pytest.mark.parametrize("objective", ["released", "paper"])
def test_the_gradient_of_a_map_waits_rarely(objective, architecture):
    """Barriers that a program runs through: 672 with steps of 16 pixels; the released objective's has no such step."""
    launch = fused("resample_backward", objective=objective)
    rounds = ceil_div(224, launch.arguments["STEP"])
    assert launch.arguments["STEP"] >= 64
    assert sass.barriers_run(codegen.instructions(launch, architecture), rounds) <= 60


@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
@pytest.mark.parametrize("name", ["contrast", "contrast_backward", "resample"])
def test_products_run_on_tensor_cores(name, architecture):
    names = [each.name for each in codegen.instructions(fused(name), architecture)]
    assert "HMMA" in names


def test_the_page_shows_what_triton_compiles():
    """Launches of the tests above, which Triton's own cache holds."""
    shown = codegen_page.shown("triton")
    if codegen_page.compiler(shown) != codegen.COMPILER:
        pytest.skip(f"docs/codegen.md shows code of {codegen_page.compiler(shown)}, this is {codegen.COMPILER}")
    section = codegen.section(map(codegen.compiled, codegen.shown()))
    assert section == shown, "docs/codegen.md must list what the compiler gives; run: make codegen"


def test_a_spill_and_a_narrow_access_are_seen():
    """The check can fail: few registers spill, and maps of odd size have no wide accesses."""
    launches = codegen.launches(codegen.Call(side=(32, 32)))
    launch = next(found for found in launches if found.kernel.__name__ == "resample_backward_kernel")
    starved = launch._replace(options={**launch.options, "maxnreg": 32}), 90
    assert codegen.compiled(starved).spills
    with pytest.raises(AssertionError, match="bytes of stack"):
        assert_good([starved])
    odd = codegen.launches(codegen.Call(layout="contiguous", weighting="elementwise"))[0]
    assert codegen.demanded(odd) == (0, 0)
    assert codegen.compiled((odd, 90)).wide("loads") == 0


class Ready:
    """What stands for compiled code: notes what it is launched with."""

    def __init__(self, kernel, launched):
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid):
        return lambda *arguments: self.launched.append((self.kernel, grid, arguments))


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("objective", range(len(OBJECTIVES)))
def test_later_launches_are_given_what_the_first_ones_were(objective, crop, monkeypatch):
    """By Triton itself first, as tensors and by name; then straight, in the order of the kernel's parameters."""
    named, straight = [], []

    def run(self, *arguments, grid, warmup, **keywords):
        options = {name: keywords.pop(name) for name in codegen.OPTIONS if name in keywords}
        assert len(options) in (0, 2, 3)
        named.append((self, grid, self.signature.bind(*arguments, **keywords).arguments))
        return Ready(self, straight)

    monkeypatch.setattr(JITFunction, "run", run)
    for plan in (cgc._forward, cgc._backward):
        plan.cache_clear()
    views = [torch.rand(3, 5, 4, 6), torch.rand(3, 5), torch.rand(3, 5, 4, 6), torch.rand(3, 5)]
    fields = [torch.ones(3, 2, dtype=torch.int64)[:, 0] for _ in range(5)]
    transform = fields if crop else [torch.rand(3, 3, 3).double()]
    for _ in range(2):
        loss, saved = cgc.cgc(*views, transform, 16, 16, 0.5, False, objective, 0.1, 1e-8)
        cgc.cgc_backward(loss, *views, transform, saved, 16, 16, 0.5, False, objective, 0.1, 1e-8, 15)
    for plan in (cgc._forward, cgc._backward):
        plan.cache_clear()
    assert len(named) == len(straight) == (5 if objective == MSE else 6)
    for (kernel, grid, bound), (again, same_grid, values) in zip(named, straight, strict=True):
        assert (kernel, grid) == (again, same_grid)
        assert list(bound) == kernel.arg_names[: len(values)] == kernel.arg_names
        starts = {}
        for first, later in zip(bound.values(), values, strict=True):
            if isinstance(first, torch.Tensor) and first.numel() > 0:
                storage = first.untyped_storage().data_ptr()
                starts.setdefault(storage, set()).add(later - (first.data_ptr() - storage))
            elif not isinstance(first, torch.Tensor):
                assert later == first
        assert all(len(start) == 1 for start in starts.values())
        for given in (*views, *transform):
            assert starts.get(given.untyped_storage().data_ptr(), {0}) <= {0, given.untyped_storage().data_ptr()}
