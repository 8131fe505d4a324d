"""Machine code of the Triton kernels, compiled without a GPU: no spilled register, wide accesses to the features."""

import functools
import os
from importlib.util import find_spec

import pytest

if not find_spec("triton") or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs triton, and its compiler rather than its interpreter", allow_module_level=True)

import torch

from bench import codegen

SHARDS = 16  # for parallel workers: every launch belongs to one


@functools.cache
def every_launch():
    return [launch for call in codegen.calls() for launch in codegen.launches(call)]


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
    code = codegen.compiled(job, accesses=any(demanded))
    what = f"{code.kernel}, {code.case}, sm_{code.architecture}"
    if code.spills:
        yield f"{what}: {code.stack} bytes of stack, {code.local} of local memory"
    for kind, wanted in zip(("loads", "stores"), demanded, strict=True):
        if code.wide(kind) < wanted:
            yield f"{what}: {kind} {getattr(code, kind)}, of 16 bytes {wanted} expected"


@pytest.mark.parametrize("weighting", codegen.WEIGHTINGS)
@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
def test_training_in_bfloat16_on_every_architecture(architecture, weighting):
    """The main case: channels_last features of mixed-precision training."""
    call = codegen.Call((torch.bfloat16, torch.bfloat16), "channels_last", weighting)
    streams = [launch for launch in codegen.launches(call) if "BLOCK" in launch.arguments]
    assert_good([(launch, architecture) for launch in streams])
    assert all(sum(codegen.demanded(launch)) > 0 for launch in streams)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_configuration_on_one_architecture(shard):
    assert_good(on_one_architecture()[shard::SHARDS])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_configuration_on_every_architecture(shard, architecture):
    assert_good(on(architecture)[shard::SHARDS])


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
