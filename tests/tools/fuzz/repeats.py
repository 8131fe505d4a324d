"""Repeats of one call: the same bits each time, whatever the other threads do."""

import functools
import random

from tests.support.compare import assert_same_bits
from tests.tools.fuzz import valid

EACH = 50  # repeats of one call, before the next


@functools.cache
def first(backend: str, seed: str):
    """The call, and what it has given."""
    call = valid.draw(random.Random(seed), backend)
    call.wanted = [True] * len(call.wanted)
    return call, call(backend)


def run(backend: str, seed: str, number: int) -> None:
    """One repeat; raises AssertionError where a bit differs."""
    if backend in valid.SIMULATED:
        with valid._alone:
            return repeat(backend, seed, number)
    return repeat(backend, seed, number)


def repeat(backend, seed, number):
    call, (result, grads) = first(backend, f"{seed.split(':')[0]}:{number // EACH}")
    again, grads_again = call(backend)
    for one, other in zip((again, *grads_again), (result, *grads), strict=True):
        assert_same_bits(one, other)
