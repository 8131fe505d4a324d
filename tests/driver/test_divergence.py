"""NaN and infinities: they never count as right, are never saved as good, and the batch that did it is kept."""

import math

import pytest
import torch
from driver import engine, evaluation, measuring, metrics, storage
from driver.data import open_data
from driver.settings import Settings
from torch import nn

from cgc_kernels import CropFlip
from cgc_kernels.metrics import live
from tests.driver.cases import no_bar, tiny_trainer

BAD = [math.nan, math.inf, -math.inf]


# ---- Measures.


@pytest.mark.parametrize("bad", BAD)
def test_a_row_that_is_not_finite_ranks_last(bad):
    logits = torch.tensor([[bad] * 3, [0.0, bad, 1.0], [1.0, 0.0, 0.0]])
    ranks = metrics.label_ranks(logits, torch.tensor([0, 2, 0]))
    assert (ranks[:2] >= 5).all()  # not even in the top 5, of three classes
    assert ranks[2] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])  # what is negative is no heatmap
def test_a_heatmap_that_is_not_finite_is_dead_and_spoils_no_other(bad):
    maps = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = metrics.twins_found(maps, maps, CropFlip.identity(4, 8))
    maps[2, 3, 3] = bad
    assert live(maps).tolist() == [True, True, False, True]
    found = metrics.twins_found(maps, maps, CropFlip.identity(4, 8))
    assert found.tolist() == [bool(value) and index != 2 for index, value in enumerate(expected)]
    assert metrics.consistencies(maps, maps, CropFlip.identity(4, 8)).isnan().tolist() == [False, False, True, False]


def test_a_model_of_nan_is_never_right():
    data = open_data(Settings(train_images=20, val_images=20, test_images=20))

    def answer(views, labels):
        nothing = torch.full((len(labels), 10), math.nan)
        return nothing, [torch.full((len(labels), 4, 4), math.nan) for _ in views]

    answer.model = nn.Identity()
    explained = evaluation.explain(answer, data.test, data, torch.device("cpu"), seed=0)
    summary = measuring.summarise(measuring.measures(explained))
    assert (summary["accuracy"], summary["top5"], summary["dead_heatmaps"]) == (0, 0, 100)
    values = evaluation.per_image(answer, data.val, range(20), data, torch.device("cpu"), seed=0, stream="val")
    assert measuring.summarise(values)["accuracy"] == 0


def test_a_training_batch_of_nan_is_never_right():
    trainer = tiny_trainer("--batch-size", "16")
    nn.init.constant_(trainer.state.model.head.bias, math.nan)
    batch, free = next(iter(trainer.batches(0)))
    assert trainer.step.backward(batch._replace(labels=torch.zeros(16, dtype=torch.int64)), free, 0.0)[2] == 0


# ---- Training.


def diverge(folder, *flags, at=2, spoil=lambda state: nn.init.constant_(state.model.head.bias, math.nan)):
    """A training whose weights are spoilt in its step `at`, counted from 0; returns what it raised."""
    trainer = tiny_trainer("--epochs", "2", "--batch-size", "16", *flags, folder=folder)
    backward, done = trainer.step.backward, iter(range(100))

    def spoilt(*batch, **how):
        figures = backward(*batch, **how)
        if next(done) == at:
            spoil(trainer.state)
        return figures

    trainer.step.backward = spoilt
    with pytest.raises(engine.divergence.Diverged) as caught:
        engine.train(trainer, no_bar())
    return trainer, str(caught.value)


def finite(state: dict) -> bool:
    return all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(("at", "epochs"), [(2, 0), (3, 0), (6, 1)])  # four steps an epoch; 3: in its last update
def test_the_last_good_checkpoint_stays_and_the_batches_are_kept(tmp_path, at, epochs):
    trainer, message = diverge(tmp_path, at=at)
    last, best = storage.load(tmp_path / "last.pt"), storage.load(tmp_path / "best.pt")
    assert last["epoch"] == epochs
    assert finite(last)
    assert finite(best)
    kept = storage.load(tmp_path / "diverged.pt")
    assert at in kept["batches"]
    batch = kept["batches"][at]["order"]
    expected = next(iter(trainer.batches(at)))[0]
    assert torch.equal(batch["aug"], expected.views["aug"])
    assert torch.equal(batch["labels"], expected.labels)
    labels = {record.path: record.label for record in trainer.data.train.records}
    assert [labels[path] for path in batch["images"]] == batch["labels"].tolist()
    assert "must be finite" in message
    assert str(tmp_path / "last.pt") in message


def test_checkpoints_inside_an_epoch_are_looked_at_too(tmp_path):
    diverge(tmp_path, "--checkpoint-every", "1", at=2)
    assert storage.load(tmp_path / "last.pt")["step"] == 2


def test_a_loss_that_was_not_finite_leaves_no_later_checkpoint(tmp_path):
    """Though the weights are finite, as where fp16 skips the update."""
    trainer = tiny_trainer(folder=tmp_path)
    trainer.watch.see(torch.tensor([1.0, math.nan]), 1)
    trainer.watch.see(torch.tensor([1.0, 1.0]), 2)
    with pytest.raises(engine.divergence.Diverged, match="the loss of epoch 1 must be finite"):
        trainer.save(tmp_path / "last.pt")


def test_averaged_weights_are_looked_at_too(tmp_path):
    def spoil(state):
        nn.init.constant_(state.averaged.model.head.bias, math.inf)

    _, message = diverge(tmp_path, "--ema", "0.9", at=1, spoil=spoil)
    assert "the weights of epoch 1 must be finite" in message
    assert "head.bias" in message


def test_unlabeled_batches_are_kept_as_well(tmp_path):
    diverge(tmp_path, "--fraction", "0.5", "--unlabeled", "rest", at=1)
    assert storage.load(tmp_path / "diverged.pt")["batches"][1].keys() == {"order", "unlabeled order"}


def test_a_rank_that_diverged_stops_all(tmp_path):
    """The others' figures are finite; the step of the first to fail is named."""
    trainer = tiny_trainer("--batch-size", "16", folder=tmp_path)
    ranks = trainer.ranks

    class Other(type(ranks)):
        def collect(self, value):
            return [value, (1, "")]

    trainer.ranks = Other()
    with pytest.raises(engine.divergence.Diverged, match="after step 2 of 4"):
        trainer.save(tmp_path / "last.pt")
    assert not (tmp_path / "last.pt").exists()
