"""The benchmark of a whole step: what it compares computes the same, and its sections are the step."""

import pytest
import torch
from driver.settings import Settings

from bench import step

TINY = step.Model("tiny", Settings(batch_size=4, ramp=0.0), 10)


def test_every_section_of_every_step_is_timed():
    seconds = step.measure(TINY, rounds=2)
    assert tuple(seconds) == step.STEPS
    for name, rows in seconds.items():
        assert len(rows) == 2
        for row in rows:
            assert tuple(row) == step.SECTIONS
            assert all(value > 0 for section, value in row.items() if (name, section) != ("plain", "CGC"))
    assert all(row["CGC"] == 0 for row in seconds["plain"])
    table = step.report(TINY, seconds)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(step.STEPS)


def test_a_step_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(step, "literal_loss", lambda features, *_, **__: features.sum() * 1e-3)
    with pytest.raises(AssertionError, match="literal and driver differ"):
        step.agree(TINY, step.make_batch(TINY))


def test_the_literal_step_moves_the_weights():
    trainer = step.make_trainer(TINY, "literal")
    before = trainer.state.model.head.weight.detach().clone()
    step.literal_step(trainer, step.make_batch(TINY))
    assert not torch.equal(before, trainer.state.model.head.weight)
