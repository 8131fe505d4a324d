"""The repairs of Triton's interpreter are in force, and its counters count right."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.compare import assert_close, assert_same_bits
from tests.triton.interpreted import kernels as kernels
from tests.triton.interpreter import (
    Dot,
    OutOfBounds,
    Race,
    Traffic,
    counting,
    only_configuration,
    program_order,
    repair,
    unfit,
    without_races,
)


@pytest.fixture(scope="module")
def stock():
    """What the interpreter makes of bfloat16 without the repairs."""
    command = [sys.executable, "-m", kernels.__name__]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", kernels.CASES)
def test_bf16_is_right_here_and_wrong_without_the_repairs(name, stock):
    run, *arguments = kernels.CASES[name]
    assert run(*arguments)
    assert stock[name] == (name in kernels.RIGHT_IN_STOCK)


def test_repair_again_is_nothing():
    repair()
    assert kernels.run_dot()
    assert unfit() is None


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_what_does_not_fit_is_told(interpret, tmp_path):
    """Another version of triton, and a triton that was imported without TRITON_INTERPRET."""
    script = "import triton\nfrom tests.triton import interpreter as i\n" + (
        "triton.__version__ = '9.9'\n" if interpret == "1" else ""
    )
    script += "try:\n    i.repair()\nexcept RuntimeError as error:\n    print(error)"
    env = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert {"0": "TRITON_INTERPRET=1 must be set", "1": "not 9.9"}[interpret] in run.stdout, run.stderr


# ---- Bounds


def padded(values, *padding):
    """`values` as a view inside a larger tensor: memory that is there, but is not the kernel's."""
    return torch.nn.functional.pad(values, padding)[padding[0] : padding[0] + len(values)]


def test_masked_lanes_neither_raise_nor_count():
    x, out = padded(torch.arange(10.0), 8, 8), padded(torch.zeros(10), 8, 8)
    with counting() as counts:
        kernels.plus_one[(3,)](x, out, 10, BLOCK=4)
    assert_close(out, torch.arange(10.0) + 1, tol=0)
    assert counts.loads(x).bytes == counts.stores(out).bytes == 40


@pytest.mark.parametrize("kernel", [kernels.plus_one_unmasked, kernels.store_unmasked])
def test_unmasked_tail_raises(kernel):
    x = padded(torch.arange(10.0), 8, 8)
    kernel[(2,)](x[:8], torch.zeros(8), 8, BLOCK=4)
    kind = "load" if kernel is kernels.plus_one_unmasked else "store"
    with pytest.raises(OutOfBounds, match=rf"{kind} of 2 lanes outside \w+ \(10,\) of {kernel.__name__}, 40 bytes"):
        kernel[(3,)](x, padded(torch.zeros(10), 8, 8), 10, BLOCK=4)


def test_another_tensor_is_out_of_bounds_too():
    """Both views lie in one allocation, so the address belongs to an argument, but not to the pointer's."""
    both = torch.zeros(16)
    with pytest.raises(OutOfBounds, match="load of 4 lanes"):
        kernels.plus_one_unmasked[(3,)](both[:8], both[8:], 8, BLOCK=4)


@pytest.mark.parametrize("offset", [0, -1, 1])
def test_gaps_belong_to_a_strided_tensor_but_no_more(offset):
    x, out = torch.arange(32.0)[1:22:3], torch.zeros(8)
    kernels.strided_copy[(1,)](x, out, 3, 7, BLOCK=8)
    assert_close(out[:7], x.contiguous(), tol=0)
    with pytest.raises(OutOfBounds):
        kernels.strided_copy[(1,)](x, out, 3, 8, BLOCK=8)


def test_a_pointer_to_either_of_two_tensors():
    x, y, out = torch.zeros(8), torch.ones(8), torch.empty(8)
    kernels.one_of_two[(1,)](x, y, out, WHICH=0, BLOCK=8)
    assert_close(out, torch.tensor([0.0, 1.0] * 4), tol=0)
    with pytest.raises(OutOfBounds, match="of 1 lanes outside every tensor"):
        kernels.one_of_two[(1,)](x, y[:7], out, WHICH=0, BLOCK=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_masked_off_and_no_other_is_poison(dtype):
    out = torch.zeros(8, dtype=dtype)
    kernels.masked_without_other[(1,)](torch.ones(8, dtype=dtype), out, 5, BLOCK=8)
    assert (out[:5] == 1).all()
    assert out[5:].isnan().all() if dtype.is_floating_point else (out[5:] == 2**31 - 1).all()


# ---- Counts


@pytest.mark.parametrize(
    ("stride", "dtype", "sectors", "use"),
    [(1, torch.float32, 8, 1.0), (2, torch.float32, 16, 0.5), (8, torch.float32, 64, 0.125), (1, torch.half, 4, 1.0)],
)
def test_counts_of_a_known_kernel(stride, dtype, sectors, use):
    storage = torch.zeros(64 * 8 + 8, dtype=dtype)
    first = -storage.data_ptr() % 32 // storage.element_size()  # a sector's first element
    x = storage[first : first + 64 * stride : stride]
    out = torch.zeros(64, dtype=dtype)
    with counting() as counts:
        kernels.strided_copy[(1,)](x, out, stride, 64, BLOCK=64)
    assert counts.loads(x) == Traffic(64 * storage.element_size(), sectors, 1)
    assert counts.loads(x).sector_use == use
    assert counts.loads(out) == counts.stores(x) == Traffic()
    assert counts.stores(out).bytes == counts.stores().bytes == 64 * storage.element_size()


def test_lanes_that_share_an_address_move_it_once():
    x, out = torch.zeros(64), torch.zeros(64)
    with counting() as counts:
        kernels.strided_copy[(1,)](x, out, 0, 64, BLOCK=64)
    assert counts.loads(x) == Traffic(4, 1, 1)


def test_counts_by_launch_and_by_part():
    x, out = torch.zeros(2, 8), torch.zeros(8)
    with counting() as counts:
        for part in x:
            kernels.plus_one[(2,)](part, out, 8, BLOCK=4)
    kernels.plus_one[(2,)](x[0], out, 8, BLOCK=4)  # not counted any more
    assert [(launch.kernel, launch.grid) for launch in counts.launches] == [("plus_one", (2, 1, 1))] * 2
    assert counts.loads(x).bytes == 64
    assert counts.loads(x[0]).bytes == counts.loads(x[1]).bytes == 32
    assert counts.loads().accesses == 4
    assert "plus_one" in str(counts)
    with pytest.raises(LookupError, match="no kernel was given"):
        counts.loads(torch.zeros(8))


def test_atomics_are_counted_apart():
    ticket, out = torch.zeros(1, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    with counting() as counts:
        kernels.order_of_programs[(2, 3)](ticket, out, WIDTH=3)
    assert counts.atomics(ticket).bytes == counts.atomics().bytes == 6 * 4
    assert counts.loads() == Traffic()
    assert counts.stores().bytes == 6 * 4


# ---- Order of programs


def order(grid, seed):
    ticket, out = torch.zeros(1, dtype=torch.int32), torch.full(grid, -1, dtype=torch.int32)
    with program_order(seed):
        kernels.order_of_programs[grid](ticket, out, WIDTH=grid[1])
    return out.flatten().tolist()


def test_programs_are_permuted_by_a_seed():
    ascending = order((4, 5), None)
    assert ascending == list(range(20))
    assert order((4, 5), 1) == order((4, 5), 1) != order((4, 5), 2)
    for seed in range(3):
        assert order((4, 5), seed) != ascending
        assert sorted(order((4, 5), seed)) == ascending


# ---- Races


def sum_by_the_last(sem="acq_rel", barrier=True):
    x, out, counter = torch.arange(16.0), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    with without_races(), program_order(1):
        kernels.sum_by_the_last[(4,)](x, torch.zeros(16), counter, out, SEM=sem, BARRIER=barrier, BLOCK=4)
    assert out.item() == 120


def test_the_last_program_may_read_what_all_have_stored():
    sum_by_the_last()


WITHOUT_ORDER = [("relaxed", True), ("release", True), ("acquire", True), ("acq_rel", False)]


@pytest.mark.parametrize(("sem", "barrier"), WITHOUT_ORDER)
def test_without_order_it_may_not(sem, barrier):
    with pytest.raises(Race, match=r"load of parts \(16,\) of \w+ by program \d after a store by program \d"):
        sum_by_the_last(sem, barrier)


@pytest.mark.parametrize(("first", "second", "earlier"), [(0, 4, "store"), (4, 0, "load"), (2, 0, "load")])
def test_programs_that_overlap_race(first, second, earlier):
    """One program stores what another one loads, later or earlier."""
    x = torch.arange(16.0)
    given = x[first : first + 8], x[second : second + 8]
    kernels.shift[(2,)](*given, BY=0, BLOCK=4)
    with without_races():
        kernels.shift[(2,)](given[0], torch.zeros(8), BY=0, BLOCK=4)
        with pytest.raises(Race, match=f"by program 1 after a {earlier} by program 0"):
            kernels.shift[(2,)](*given, BY=0, BLOCK=4)


def test_programs_that_overlap_in_elements_of_two_sizes_race():
    """As views of one buffer may: the four numbers that a program stores lie over those that the next one loads."""
    memory = torch.zeros(64, dtype=torch.uint8)
    with without_races(), pytest.raises(Race, match="by program 1 after a store by program 0"):
        kernels.shift[(2,)](memory.view(torch.float32), memory.view(torch.float64), BY=0, BLOCK=4)


def test_programs_that_store_to_one_place_race():
    with without_races(), pytest.raises(Race, match=r"store of out .* by program 1 after a store by program 0"):
        kernels.divide[(2,)](torch.ones(1), torch.ones(1), 2.0)


# ---- Dots


def product(precision, dtype=torch.float32, inner=16):
    a, b = (kernels.random(16, 16, seed=seed, dtype=dtype) for seed in range(2))
    a, b, out = a[:, :inner].contiguous(), b[:inner].contiguous(), torch.empty(16, 16, dtype=torch.float32)
    with counting() as counts:
        kernels.matmul[(1,)](a, b, out, 16, 16, inner, precision)
    return out, a.double() @ b.double(), counts


def test_tf32_rounds_and_is_recorded():
    out, exact, counts = product("ieee")
    assert_close(out.double(), exact, tol=1e-6)
    assert counts.dots == {Dot("fp32", "fp32", "ieee"): 1}
    assert counts.rounded_dots() == []
    out, exact, counts = product("tf32")
    assert 1e-5 < (out - exact).abs().max() < 1e-2
    assert counts.rounded_dots() == [Dot("fp32", "fp32", "tf32")]
    assert product("tf32", torch.bfloat16)[2].rounded_dots() == []
    out, exact, counts = product("tf32x3")
    assert_close(out.double(), exact, tol=1e-6)
    assert not torch.equal(out, product("ieee")[0])
    assert counts.rounded_dots() == []


def test_a_dot_must_be_as_large_as_the_compiler_demands():
    product("ieee", inner=8)
    with pytest.raises(AssertionError, match="K >= 8"):
        product("ieee", inner=4)
    with pytest.raises(AssertionError, match="K >= 16"):
        product("ieee", torch.bfloat16, inner=8)


# ---- The rest


def test_a_float_argument_is_float32():
    out = torch.zeros(1, dtype=torch.float64)
    kernels.divide[(1,)](torch.ones(1, dtype=torch.float64), out, 0.1)
    assert out.item() == 1 / float(np.float32(0.1)) != 1 / 0.1


def test_a_float_argument_is_float64_where_annotated():
    out = torch.zeros(1, dtype=torch.float64)
    kernels.divide_exactly[(1,)](torch.ones(1, dtype=torch.float64), out, 0.1)
    assert out.item() == 1 / 0.1


def test_infinity_is_a_value_not_a_warning():
    out = torch.zeros(1)
    kernels.divide[(1,)](torch.ones(1), out, 0.0)
    assert out.item() == float("inf")


def test_device_functions():
    x, out = kernels.random(32), torch.zeros(1)
    kernels.sum_of_squares[(1,)](x, out, BLOCK=32)
    assert_close(out[0], x.float().square().sum(), tol=1e-6)
    with pytest.raises(AssertionError, match="refused"):
        kernels.fails_inside[(1,)](out, out)


def test_every_configuration_runs():
    x, seen = torch.zeros(16), torch.zeros(32, dtype=torch.int32)
    kernels.tuned[(1,)](x, seen, 16)
    assert_close(x, torch.tensor([3.0] * 4 + [2.0] * 4 + [1.0] * 8), tol=0)
    assert seen.nonzero().flatten().tolist() == [4, 8, 16]
    with only_configuration(1):
        kernels.tuned[(1,)](x, seen.zero_(), 16)
    assert seen.nonzero().flatten().tolist() == [8]


def test_what_a_configuration_must_restore_is_restored():
    x = torch.zeros(8)
    kernels.tuned_in_place[(1,)](x, 8)
    assert_same_bits(x, torch.ones(8))
