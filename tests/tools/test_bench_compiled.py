"""The benchmark of compiled steps: both modes compute the same, and the graphs are counted."""

import pytest
import torch
from torch import nn

from bench import compiled

TINY = compiled.Model(
    lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU()), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 10)
    ),
    "1",
)


# Dynamo looks at every input of a graph, and hides the warning, but not from those that make it an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_every_step_is_timed_and_graphs_are_counted():
    result = compiled.measure(TINY, rounds=2, batch=2, backend="eager")
    assert tuple(result.seconds) == compiled.STEPS
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in result.seconds.values())
    assert result.graphs >= 1
    assert compiled.row("tiny", result).startswith(f"| tiny | autograd | {result.graphs} |")


def test_a_step_that_computes_something_else_is_not_timed():
    gradients = torch.ones(3), torch.zeros(2)
    compiled.check(gradients, gradients)
    with pytest.raises(AssertionError, match=r"off by 0\.5"):
        compiled.check((gradients[0] + 0.5, gradients[1]), gradients)
