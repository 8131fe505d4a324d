"""--freeze-until: what is frozen, the rest run on its own, features made once, and a training resumed on them."""

import json

import evaluate
import pytest
import torch
import train
from driver import data, engine, evaluation, freezing, measuring, settings, storage
from driver.ranks import Ranks

from tests.driver import data_sets
from tests.driver.cases import TINY, assert_same, refused, run, tiny_trainer, train_steps
from tests.driver.test_models import create

pytest.importorskip("timm", reason="timm is in the train extra")

KEPT = ("--freeze-until", "stages.0", "--views", "2", "--batch-size", "8")


# ---- Models in two parts.

LAYERS = {  # a layer, and a parameter before it and after it
    "small_resnet": ("stages.0", "stem.0.weight", "stages.1.conv1.weight"),
    "resnet18": ("layer2", "layer2.1.bn2.weight", "layer3.0.conv1.weight"),
    "densenet121": ("features.transition1", "features.conv0.weight", "features.denseblock2.denselayer1.conv1.weight"),
    "mobilenet_v3_small": ("features.4", "features.4.block.0.0.weight", "features.5.block.0.0.weight"),
    "convnext_tiny": ("features.3", "features.3.2.layer_scale", "features.4.0.weight"),
    "swin_t": ("features.1", "features.1.0.attn.qkv.weight", "features.2.norm.weight"),
    "efficientnet_lite0": ("blocks.5", "conv_stem.weight", "blocks.6.0.conv_pw.weight"),
    "timm/resnet18": ("layer1.0", "layer1.0.conv1.weight", "layer1.1.conv1.weight"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_two_parts_are_the_model(name):
    layer, before, after = LAYERS[name]
    model = create(name).model
    parameters, modes = dict(model.named_parameters()), [module.training for module in model.modules()]
    frozen = freezing.freeze(model, layer, 64)
    assert frozen.obstacle == ""
    assert (parameters[before].requires_grad, parameters[after].requires_grad) == (False, True)
    assert [module.training for module in model.modules()] == modes
    images, rest = torch.rand(2, 3, 64, 64), freezing.rest_of(model.eval(), frozen)
    with torch.no_grad():
        assert torch.equal(rest(freezing.output_of(model, layer, images)), model(images))
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert own == {id(parameter) for parameter in rest.parameters()}
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_cannot_be_entered_is_frozen_all_the_same():
    model = create("timm/vit_tiny_patch16_224").model
    frozen = freezing.freeze(model, "blocks.3", 64)
    assert "VisionTransformer does" in frozen.obstacle
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {"pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.3.mlp.fc2.bias"} <= still
    assert not {name for name in still if name.startswith(("blocks.4", "norm", "head"))}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", "--freeze-until must name a module of the model, got 'layer9'; at the top: conv1, bn1"),
        ("layer2.0.conv1", "--freeze-until must name a layer that all goes through, got layer2.0.conv1"),
        ("fc", "--freeze-until must leave something to train, got fc"),
        ("layer2.0.relu", "--freeze-until must name a layer that runs once in a forward, got layer2.0.relu: 2"),
    ],
)
def test_layers_that_cannot_be_frozen_until(layer, message):
    with pytest.raises(ValueError, match=message):
        freezing.freeze(create("resnet18").model, layer, 64)


def test_the_explained_layer_must_come_after(capsys, tmp_path):
    for layer in ("stages", "stages.2"):
        flags = [*TINY, "--freeze-until", layer, "--target-layer", "stages.2", "--output", tmp_path / layer]
        assert "--freeze-until must come before stages.2, which Grad-CAM" in refused(capsys, train.main, *flags)
    assert "--features DIR must come with" in refused(capsys, train.main, "--features", tmp_path)


# ---- Training.


def test_what_is_frozen_stays_and_the_rest_moves():
    trainer = tiny_trainer("--freeze-until", "stages.0")
    before = {name: value.clone() for name, value in trainer.state.model.state_dict().items()}
    after = train_steps(trainer, 2)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in moved if name.startswith(("stem", "stages.0"))}
    assert {"stages.1.conv1.weight", "stages.1.norm1.running_mean", "head.bias"} <= moved
    assert any("not kept" in note and "--views N" in note for note in trainer.state.notes)


@pytest.mark.parametrize(
    "more", [(), ("--batched-views",), ("--ema", "0.5", "--teacher"), ("--target-layer", "stages.1")]
)
def test_features_are_trained_on_as_images_are(more, monkeypatch):
    """The same weights and the same measures, whether the frozen part runs once or in every step."""
    kept = tiny_trainer(*KEPT, *more)
    assert kept.state.keeps_features
    assert_weights = train_steps(kept, 10)  # of 8 steps a pass, so that there are two
    monkeypatch.setattr(freezing, "_obstacle", lambda *_: "it is forbidden")
    whole = tiny_trainer(*KEPT, *more)
    assert not whole.state.keeps_features
    for name, value in train_steps(whole, 10).items():
        torch.testing.assert_close(assert_weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
    measured = []
    for trainer in (kept, whole):
        how = {"seed": 7, "stream": "val", "source": trainer.evaluation_batches("val")}
        images = trainer.data.val, range(len(trainer.data.val))
        values = evaluation.per_image(trainer.state.evaluated, *images, trainer.data, trainer.device, **how)
        measured.append(measuring.summarise(values))
    assert measured[0] == pytest.approx(measured[1], abs=0.5)


def test_views_are_drawn_once_and_met_in_turn():
    trainer = tiny_trainer("--views", "2", "--batch-size", "32", "--flip", "0.5")
    ((views, _),) = trainer._streams(0, 1)
    first, second, third = (views.__getitems__([(done, 5)]) for done in range(3))
    assert_same(first._asdict(), third._asdict())
    assert not torch.equal(first.views["aug"], second.views["aug"])
    ((kept, _),) = tiny_trainer(*KEPT)._streams(0, 1)
    assert torch.equal(kept.__getitems__([(0, 5)]).views["view"], first.views["view"])


SMALL = ("--image-size", "32", "--epochs", "3", "--warmup", "0", "--batch-size", "4", "--model", "small_resnet")


def flags(root, output, *more) -> list:
    own = [*SMALL, "--no-pretrained", "--device", "cpu", "--no-progress", *KEPT[:4]]
    return [*data_sets.flags("cutouts", root), *own, "--output", str(output), *more]


def made_features(root, folder, *more) -> set[str]:
    """The files after a trainer has made its training batches and those of validation."""
    chosen = settings.parse([*flags(root, folder / "run"), "--features", str(folder / "features"), *map(str, more)])
    run = engine.Run(chosen.method, chosen.seed, folder)
    trainer = engine.Trainer(run, chosen, data.open_data(chosen), torch.device("cpu"), Ranks())
    next(iter(trainer.batches(0)))
    trainer.evaluation_batches("val")
    return {path.name for path in (folder / "features").iterdir()}


def test_features_in_files_are_shared_by_what_differs_in_the_loss_alone(tmp_path, capsys):
    root = data_sets.make_cutouts(tmp_path / "data")
    first = made_features(root, tmp_path, "--method", "cgc")
    assert sorted(name.partition("-")[0] for name in first) == ["train", "val"]
    assert "train: what stages.0 makes of 12 images" in capsys.readouterr().err
    assert made_features(root, tmp_path, "--cgc-weight", 2, "--epochs", 5, "--lr", 0.1) == first
    assert capsys.readouterr().err == ""
    many = made_features(root, tmp_path, "--crop-scale", 0.5)
    assert len(many) == 4
    assert len(made_features(root, tmp_path, "--seed", 1)) == 6
    for picture in (root / "photographs").iterdir():
        data_sets.save_image(picture, seed=99)
    assert len(made_features(root, tmp_path, "--method", "cgc")) == 8


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, capsys, monkeypatch):
    """On miniatures of cut-outs, from the command line: train, stop inside an epoch, go on, evaluate."""
    root = data_sets.make_cutouts(tmp_path / "data")
    more = ["--checkpoint-every", 2, "--ema", 0.9]
    assert run(train.main, *flags(root, tmp_path / "whole", *more)) == 0
    advance, steps = engine.Trainer.advance, []

    def stopping(self, *batch):
        if len(steps) == 6:  # an odd one, of the second pass
            raise KeyboardInterrupt
        steps.append(advance(self, *batch))

    monkeypatch.setattr(engine.Trainer, "advance", stopping)
    assert run(train.main, *flags(root, tmp_path / "stopped", *more)) == 130
    monkeypatch.setattr(engine.Trainer, "advance", advance)
    assert run(train.main, "--resume", "--output", tmp_path / "stopped", "--no-progress") == 0
    for name in ("last.pt", "test.pt"):
        whole, stopped = (storage.load(tmp_path / run / name) for run in ("whole", "stopped"))
        assert_same(whole, stopped)
    capsys.readouterr()
    assert run(evaluate.main, tmp_path / "stopped", "--output", tmp_path / "again", "--device", "cpu") == 0
    (again,) = json.loads((tmp_path / "again" / "summary.json").read_text()).values()
    (summary,) = json.loads((tmp_path / "whole" / "summary.json").read_text()).values()
    for measure in ("accuracy", "content_heatmap", "pointing_game"):
        assert again[measure] == pytest.approx(summary[measure], abs=1e-3)
