"""What the emulator takes as order between launches: streams, dependent launches and the poison before their wait."""

import pytest
import torch

from tests.cuda.simt import missing
from tests.cuda.simt_cases import FAULTS, SEEDS, chain, samples, shares_in_sequence, sum_by_last, values

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.mark.parametrize("fault", ["WAIT", "WAIT_OF_ONE", "EARLY_READ", "EARLY_INPUT"])
def test_results_of_the_predecessor_are_poison_before_the_wait_without_instrumentation_too(fault):
    case, _ = FAULTS[fault]
    device = samples("plain", fault)
    for seed in SEEDS:
        device.setup(seed)
        assert not case(device), f"seed {seed}"
        assert device.error_counts()["dependence"] == (fault == "WAIT")
        device.setup(seed, dependent=False)  # as on a device that starts no launch before the end of another
        assert case(device), f"seed {seed}"
        device.assert_clean()


def test_a_launch_that_never_waits_is_named():
    device = samples("plain", "WAIT")
    device.setup()
    chain(device)
    assert "20 of 20 blocks of a dependent launch never wait for the predecessor; launched at " in device.messages()
    assert "samples.cu:" in device.messages()


def test_who_waits_sees_what_its_predecessor_waited_for_and_no_more():
    device = samples("instrumented", "WAIT")
    device.setup()
    chain(device)
    # Launch 2 reads what launch 1 wrote; launch 3, which waits for launch 2 alone, does so before and after its wait.
    assert device.error_counts()["dependence"] == 3 * (20 * 64 - 3) + 1
    device = samples("instrumented", "EARLY_READ")
    device.setup()
    chain(device)
    assert device.error_counts()["dependence"] == 20 * 64 - 3


def test_launches_on_two_streams_are_not_ordered():
    device = samples()
    device.setup()
    assert shares_in_sequence(device, 1, 2)
    assert device.error_counts()["race"] > 0
    assert "another stream" in device.messages()


@pytest.mark.parametrize("written_by", ["host", "kernel"])
def test_a_dependent_launch_relies_on_no_input_that_is_newer_than_its_predecessor(written_by):
    device, count = samples("instrumented", "EARLY_INPUT"), 64
    device.setup()
    x, work = values(count), torch.full((2 * count,), torch.nan)
    y, z = (torch.full((count,), torch.nan) for _ in range(2))
    device.watch(x=x)
    device.watch_output(work=work, y=y, z=z)
    assert device.launch_chain(x, work, y, count, False) == 0
    assert device.launch_chain(x, work, z, count, False) == 0
    source = x if written_by == "host" else y
    assert device.launch_chain(source, work, z, count, True) == 0
    device.assert_clean()
    device.watch(again=source)  # passed again: written by who knows what just before
    assert device.launch_chain(source, work, z, count, True) == 0
    assert device.error_counts()["dependence"] == count
    assert " + 0, which no earlier launch has waited for, before the wait" in device.messages()


def test_a_ticket_needs_no_barrier_after_what_its_thread_did_itself():
    device = samples("instrumented", "TICKET_BARRIER")
    for seed in SEEDS:
        device.setup(seed, 0.05)
        assert sum_by_last(device, threads=32)
        device.assert_clean()


def test_what_is_written_is_not_read_by_the_read_only_path():
    device, x = samples(), torch.zeros(64, 4)
    device.setup()
    device.watch(x=x)
    assert device.launch_copy_stream(x, x, 64) == 0
    assert device.error_counts()["misuse"] == 64
    assert "write of x + 0, which block 0 thread 0 of the launch read with gld_stream" in device.messages()
