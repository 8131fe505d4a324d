"""Checkpoints from anywhere: what they are wrapped in, what they may hold, and what is explained of them."""

import argparse
from pathlib import Path, PosixPath

import evaluate
import explain
import numpy as np
import pytest
import torch
from driver.storage import CheckpointError
from torch import nn

from tests.driver import data_sets
from tests.driver.cases import assert_same, refused, run
from tests.driver.test_models import create, save

SOURCE = create("small_resnet", seed=1).model.state_dict()
OTHER = create("small_resnet", seed=2).model.state_dict()


def prefixed(prefix, state=SOURCE) -> dict:
    return {prefix + name: value for name, value in state.items()}


ARGS = argparse.Namespace(lr=0.1, data=PosixPath("/data"), device=torch.device("cpu"), crop=(0.2, 1.0), model=None)
FOREIGN = {
    "timm": {"arch": "x", "state_dict": OTHER, "state_dict_ema": SOURCE, "args": ARGS, "metric": np.float64(71.5)},
    "torchvision": {
        "model": OTHER,
        "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.")},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "args": ARGS,
        "epoch": 3,
    },
    "compiled": {"model": prefixed("_orig_mod.")},
    "compiled inside": {name.replace("stages.", "stages._orig_mod."): value for name, value in SOURCE.items()},
    "MoCo": {"state_dict": {**prefixed("module.encoder_q."), **prefixed("module.encoder_k.", OTHER)}},
    "DINO": {"student": prefixed("module.backbone.", OTHER), "teacher": prefixed("backbone.")},
    "Lightning": {"state_dict": {**prefixed("model.", OTHER), **prefixed("ema_model.")}, "hyper_parameters": {"lr": 1}},
    "nested": {"checkpoint": {"ema_state_dict": SOURCE, "net": OTHER}},
    "head outside": {"state_dict": {("" if n.startswith("head") else "backbone.") + n: v for n, v in SOURCE.items()}},
    "averaged without statistics": {"ema": {"head.weight": OTHER["head.weight"]}, "model": SOURCE},
    "DeepSpeed": {"module": prefixed("module.model."), "ds_config": {}},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_checkpoints_of_other_scripts(kind, tmp_path):
    """Whatever they are wrapped in; averaged weights come first, and that is said."""
    loaded = create("small_resnet", init=save(tmp_path, FOREIGN[kind]))
    assert_same(dict(loaded.model.state_dict()), dict(SOURCE))
    said = any("the averaged weights are taken" in note for note in loaded.notes)
    assert said == (kind in ("timm", "torchvision", "DINO", "Lightning", "nested"))


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in SOURCE.items()}, tmp_path / "model.safetensors")
    loaded = create("small_resnet", init=str(tmp_path / "model.safetensors"))
    assert_same(dict(loaded.model.state_dict()), dict(SOURCE))


class Payload:
    """What a checkpoint must not be able to do."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("content", [{"model": SOURCE, "args": Payload()}, nn.Linear(2, 2)], ids=["code", "module"])
def test_types_that_could_do_anything_are_named(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"that holds tensors only.* it holds .*(pathlib|torch\.nn)"):
        create("small_resnet", init=path)
    assert not Path("touched").exists()


def test_long_lists_of_misfits_are_shortened(tmp_path):
    more = {f"projector.{number}.weight": torch.zeros(2) for number in range(40)}
    (note,) = create("small_resnet", init=save(tmp_path, SOURCE | more)).notes
    assert note.endswith("projector.4.weight and 35 more")
    assert "40 not in the model" in note


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = SOURCE | {"head.bias": torch.full((7,), torch.inf)}
    with pytest.raises(CheckpointError, match=r"--init must hold finite weights, got .* in head\.bias"):
        create("small_resnet", init=save(tmp_path, state))


# ---- What is explained.


def test_another_checkpoint_has_the_classes_of_its_head(tmp_path, capsys):
    data_sets.save_image(tmp_path / "a.png", 1)
    path = save(tmp_path, {"state_dict": prefixed("module.")})
    flags = [tmp_path / "a.png", "--checkpoint", path, "--model", "small_resnet", "--image-size", "64", "--size", "64"]
    assert run(explain.main, *flags, "--output", tmp_path / "out", "--class", "6", "--device", "cpu") == 0
    assert "does not say what its classes are called" in capsys.readouterr().err
    assert "number below 7, got '7'" in refused(capsys, explain.main, *flags, "--class", "7")


def test_another_checkpoint_may_lack_counters(tmp_path):
    """As those of PyTorch 0.4, and averaged ones of parameters and statistics alone."""
    state = {name: value for name, value in SOURCE.items() if value.is_floating_point()}
    assert len(state) < len(SOURCE)
    data_sets.save_image(tmp_path / "a.png", 1)
    flags = ["--model", "small_resnet", "--image-size", "64", "--output", tmp_path / "out", "--device", "cpu"]
    assert run(explain.main, tmp_path / "a.png", "--checkpoint", save(tmp_path, state), *flags) == 0


@pytest.mark.parametrize("gone", ["head.", "stages.0."])
def test_another_checkpoint_must_be_whole_to_be_asked(gone, tmp_path, capsys):
    """A head, or anything else, that was left as initialised would be explained like one that was trained."""
    state = {name: value for name, value in SOURCE.items() if not name.startswith(gone)}
    flags = ["--model", "small_resnet", "--image-size", "64"]
    path = save(tmp_path, state)
    for main, *more in (
        (explain.main, "a.png", "--checkpoint", path),
        (evaluate.main, path, "--data", "demo", "--test-images", 10, "--output", tmp_path / "out"),
    ):
        assert gone in refused(capsys, main, *more, *flags)


def test_a_network_without_weights_is_said_to_be_random(tmp_path, capsys):
    data_sets.save_image(tmp_path / "a.png", 1)
    flags = ["--checkpoint", "small_resnet", "--output", tmp_path, "--image-size", "64", "--size", "64"]
    assert run(explain.main, tmp_path / "a.png", *flags, "--device", "cpu") == 0
    assert "small_resnet has random weights" in capsys.readouterr().err


def test_a_checkpoint_that_answers_nan_is_not_explained(tmp_path, capsys):
    data_sets.save_image(tmp_path / "a.png", 1)
    state = {name: value * 1e30 if value.is_floating_point() else value for name, value in SOURCE.items()}
    flags = [
        "--checkpoint",
        save(tmp_path, state),
        "--model",
        "small_resnet",
        "--image-size",
        "64",
        "--output",
        tmp_path,
    ]
    assert run(explain.main, tmp_path / "a.png", *flags, "--device", "cpu") == 1
    assert "not finite" in capsys.readouterr().err
    assert not list(tmp_path.glob("a-*.png"))
