"""The training step: it stands on one screen, and its views and outputs go by their names."""

import ast

import pytest
import torch

from tests.driver.cases import ROOT, tiny_trainer

DRIVER = ROOT / "python"


def losses_and_gradients(trainer, batch, free):
    """Of one batch, from the weights that the trainer has."""
    trainer.train_mode()
    figures = trainer.step.backward(batch, free, weight=0.5)
    return [figures, *(parameter.grad.clone() for parameter in trainer.state.model.parameters())]


def changed(batch, views):
    return batch and batch._replace(views=views(batch.views))


# ---- Its size


def test_the_step_stands_on_one_screen():
    assert len((DRIVER / "driver" / "step.py").read_text().splitlines()) <= 150


def test_functions_have_at_most_40_lines():
    long = {}
    for path in DRIVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 40:
                long[f"{path.relative_to(DRIVER)}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert not long


# ---- Its names


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("baseline", []),
        ("cgc_consistent", []),
        ("cgc_consistent", ["--ema", "0.9", "--teacher"]),
        ("cgc_consistent", ["--batched-views", "--accumulate", "2"]),
        ("cgc_consistent", ["--ce-views", "1", "--fraction", "0.5", "--unlabeled", "rest"]),
    ],
)
def test_the_order_of_the_views_changes_nothing(method, flags):
    trainer = tiny_trainer("--batch-size", "8", "--freeze-batchnorm", *flags, method=method)
    batches = next(iter(trainer.batches(0)))
    expected = losses_and_gradients(trainer, *batches)
    turned = [changed(batch, lambda views: dict(reversed(views.items()))) for batch in batches]
    assert list(turned[0].views) == ["extra", "aug", "view"]
    for actual, wanted in zip(losses_and_gradients(trainer, *turned), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_views_that_are_one_tensor_are_told_apart():
    trainer = tiny_trainer("--batch-size", "8", "--freeze-batchnorm")
    trainer.train_mode()
    batch, _ = next(iter(trainer.batches(0)))
    one = changed(batch, lambda views: dict.fromkeys(views, views["view"]))
    copies = changed(batch, lambda views: {name: views["view"].clone() for name in views})
    assert trainer.step.losses(one, None) == trainer.step.losses(copies, None)


@pytest.mark.parametrize(
    ("flags", "explained", "plain"),
    [
        ([], ["view", "aug"], ["extra"]),
        (["--ema", "0.9", "--teacher"], ["aug"], ["view", "extra"]),
        (["--ce-views", "1", "--fraction", "0.5", "--unlabeled", "rest"], ["free view", "free aug"], ["extra"]),
    ],
)
def test_each_view_has_an_output_of_its_name(flags, explained, plain):
    trainer, seen = tiny_trainer("--batch-size", "8", *flags), []
    trainer.step.net.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    losses_and_gradients(trainer, *next(iter(trainer.batches(0))))
    (outputs,) = seen
    assert list(outputs) == [*explained, *plain]
    assert [name for name, output in outputs.items() if output.cam is not None] == explained
