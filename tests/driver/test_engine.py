"""Steps of the training driver: every method and option, the views that they see, the state that they leave."""

import copy
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from driver import engine, settings
from driver.data import CorruptImage, DataError, open_data
from driver.methods import METHODS
from driver.ranks import Ranks
from driver.views import Batch, Steps, TrainViews, loader
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.transforms import functional

from cgc_kernels import CropFlip, GradCAM, cgc_loss
from tests.driver.cases import TINY, assert_same, first_gradients, no_bar, tiny_trainer, train_steps
from tests.support.compare import assert_close

FROZEN = ["--batch-size", "16", "--freeze-batchnorm"]


def batch_of(trainer):
    return next(iter(trainer.batches(0)))[0].on(trainer.device, trainer.data, channels_last=False)


# ---- The step


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_loss_written_out(method):
    """Cross-entropy of three views plus the weighted heatmap loss of two, for the class predicted on the original."""
    trainer = tiny_trainer(*FROZEN, method=method)
    model, chosen = copy.deepcopy(trainer.state.model), METHODS[method]
    batch = batch_of(trainer)
    trainer.train_mode()
    figures = trainer.step.backward(batch, None, weight=0.5)
    cam = GradCAM(model.train(), "stages")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = [batch.views[name] for name in ("view", "aug", "extra")]
    views = [cam(image, target=model(images[0]).argmax(1))[0] for image in images]
    loss = ce = sum(cross_entropy(out.logits, batch.labels) for out in views)
    if chosen.objective:
        how = {"objective": chosen.objective, "consistency": 10.0 if chosen.consistent else 0.0}
        term = cgc_loss(views[0].cam, views[1].cam, batch.crops, image_size=64, **how)
        loss = ce + 0.5 * term
        assert_close(figures[1], term.detach(), 1e-5, what="heatmap loss")
    assert_close(figures[0], ce.detach(), 1e-5, what="cross-entropy")
    assert figures[2] == (views[0].logits.argmax(1) == batch.labels).float().mean()
    loss.backward()
    for (name, ours), expected in zip(trainer.state.model.named_parameters(), model.parameters(), strict=True):
        assert_close(ours.grad, expected.grad, 1e-3, floor=1e-2, what=name)


def test_consistency_alone_weighs_what_it_does_beside_the_contrast():
    chosen = settings.Settings(cgc_weight=0.5, consistency=8.0)
    weights = {name: METHODS[name].weight(chosen) for name in ("cgc_consistent", "consistency")}
    assert weights == {"cgc_consistent": 0.5, "consistency": 4.0}


def test_parts_of_a_batch_add_up():
    """Without negatives, which parts do not share, the gradients of two halves are those of the whole."""
    flags = [*FROZEN, "--temperature", "1e9"]
    whole, parts = first_gradients(*flags), first_gradients(*flags, "--accumulate", "2")
    for name, gradient in whole.items():
        assert_close(parts[name], gradient, 1e-6, floor=1e-3, what=name)


@pytest.mark.parametrize("target", ["prediction", "label"])
def test_one_batch_of_all_views_gives_the_same_gradients(target):
    """With BatchNorm frozen; otherwise its statistics mix, as the help says."""
    flags = [*FROZEN, "--target", target]
    apart, together = first_gradients(*flags), first_gradients(*flags, "--batched-views")
    for name, gradient in apart.items():
        assert_close(together[name], gradient, 1e-9, floor=1e-3, what=name)
    mixed, unmixed = first_gradients("--batched-views"), first_gradients()
    assert any(not torch.allclose(mixed[name], unmixed[name], rtol=1e-3) for name in mixed)


def test_the_target_is_the_label_where_asked_for():
    by_prediction, by_label = first_gradients(*FROZEN), first_gradients(*FROZEN, "--target", "label")
    assert any(not torch.allclose(by_label[name], by_prediction[name]) for name in by_label)


@pytest.mark.parametrize(
    "flags",
    [
        ["--amp", "bf16"],
        ["--amp", "fp16", "--clip", "1"],
        ["--ema", "0.9", "--teacher"],
        ["--no-channels-last", "--batched-views"],
        ["--optimizer", "sgd", "--head-lr", "0.1", "--clip", "0.5"],
        ["--fraction", "0.5", "--unlabeled", "rest", "--ce-views", "1"],
        ["--accumulate", "2", "--freeze-batchnorm"],
    ],
    ids=" ".join,
)
def test_every_option_trains(flags):
    trainer = tiny_trainer("--batch-size", "16", "--ramp", "0", *flags)
    before = {name: value.clone() for name, value in trainer.state.model.named_parameters()}
    after = train_steps(trainer, 2)
    assert all(value.isfinite().all() for value in after.values())
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    assert trainer.state.sums.isfinite().all()
    assert (trainer.state.sums > 0)[:2].all()


def test_a_vision_transformer_trains():
    """Its Grad-CAM is by autograd: a double backward, for which GradCAM unfuses the last attention."""
    trainer = tiny_trainer("--model", "timm/vit_tiny_patch16_224", "--batch-size", "4", "--ramp", "0")
    assert not trainer.state.cam.closed_form
    assert all(value.isfinite().all() for value in train_steps(trainer, 1).values())
    assert trainer.state.sums[1] > 0


@pytest.mark.slow
# Dynamo looks at every input of a graph, and hides the warning, but not from those that make it an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("flags", [FROZEN, ["--target-layer", "stages.1"]], ids=["closed form", "autograd"])
def test_compiled_steps_as_eager(flags):
    """By autograd with BatchNorm in train mode, before the target layer and behind it."""
    eager, compiled = (first_gradients(*flags, "--no-channels-last", *more) for more in ([], ["--compile"]))
    for name, gradient in eager.items():
        assert_close(compiled[name], gradient, 1e-8, floor=1e-3, what=name)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("flags", [[], ["--amp", "bf16"], ["--ema", "0.9", "--teacher"], ["--method", "cgc_paper"]])
def test_a_step_never_waits_for_the_gpu(flags):
    chosen = settings.parse([*TINY, "--device", "cuda", "--output", "unused", *flags])
    run = engine.Run(chosen.method, 0, Path("unused"))
    trainer = engine.Trainer(run, chosen, open_data(chosen), torch.device("cuda"), Ranks())
    trainer.train_mode()
    batches = iter(trainer.batches(0))
    trainer.advance(*next(batches), 0)
    try:
        torch.cuda.set_sync_debug_mode("error")
        trainer.advance(*next(batches), 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- Unlabeled images


def with_another_aug(batch):
    return batch._replace(views={**batch.views, "aug": batch.views["aug"].flip(0)})


def test_unlabeled_images_are_for_the_heatmap_loss_alone():
    flags = [*FROZEN, "--fraction", "0.5", "--unlabeled", "rest"]
    trainer = tiny_trainer(*flags)
    (labelled, free) = next(iter(trainer.batches(0)))
    assert (free.labels == -1).all()
    assert (labelled.labels >= 0).all()
    trainer.train_mode()
    whole = trainer.step.backward(labelled, free, 0.5)
    other = trainer.step.backward(labelled, with_another_aug(free), 0.5)
    assert whole[0] == other[0]
    assert whole[1] != other[1]
    assert trainer.step.backward(with_another_aug(labelled), free, 0.5)[1] == whole[1]


def test_the_baseline_does_not_read_unlabeled_images():
    trainer = tiny_trainer("--fraction", "0.5", "--unlabeled", "rest", method="baseline")
    assert next(iter(trainer.batches(0)))[1] is None


# ---- Weights and checkpoints


def test_averaged_weights_are_the_running_mean_of_the_weights():
    trainer = tiny_trainer("--ema", "0.75", "--ramp", "0")
    own = [copy.deepcopy(trainer.state.model.state_dict())]
    own += [copy.deepcopy(train_steps(trainer, 1, first)) for first in range(2)]
    for name, value in trainer.state.averaged.model.state_dict().items():
        first, second, third = (weights[name] for weights in own)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third if value.is_floating_point() else third
        torch.testing.assert_close(value, expected)


def test_checkpoint_restores_every_random_state(tmp_path):
    trainer = tiny_trainer("--amp", "fp16", "--ema", "0.9")
    train_steps(trainer, 1)
    trainer.state.save(tmp_path / "state.pt")

    def draw():
        return torch.rand(3), torch.from_numpy(np.random.rand(3)), random.random()

    expected = draw()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["format"] == 1
    assert state["settings"]["ema"] == 0.9
    assert state["classifier"]["name"] == "small_resnet"
    trainer.state.load(tmp_path / "state.pt")
    assert_same(draw(), expected)
    assert trainer.state.scaler.state_dict() == state["scaler"]


def test_another_number_of_processes_goes_on_and_says_so(tmp_path):
    trainer = tiny_trainer()
    trainer.state.save(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["ranks"] *= 2
    torch.save(state, tmp_path / "state.pt")
    trainer.state.load(tmp_path / "state.pt")
    assert "was written by 2 processes, now there are 1" in trainer.state.notes[-1]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    trainer = tiny_trainer("--epochs", "1", "--lr", "1e30", "--optimizer", "sgd", folder=tmp_path)
    with pytest.raises(RuntimeError, match="the loss of epoch 1 must be finite"):
        engine.train(trainer, no_bar())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fraction", "0.1"], "--batch-size must be at most the 1. training images"),
        (["--fraction", "0.9", "--unlabeled", "rest"], "--unlabeled must give at least --batch-size images"),
        (["--sync-batchnorm"], "--sync-batchnorm must run on CUDA"),
        (["--model", "nonsense"], "--model must be"),
    ],
)
def test_what_only_the_data_or_the_model_can_refuse(flags, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer("--batch-size", "32", *flags)


def test_what_batchnorm_leaves_of_grad_cam_by_autograd():
    """SyncBatchNorm has no second derivative."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.SyncBatchNorm(3))
    several = settings.parse(["--sync-batchnorm"])
    with pytest.raises(ValueError, match="--sync-batchnorm has no second derivative"):
        engine.check_twice(several, model, world=2)
    engine.check_twice(several, model, world=1)  # then it is BatchNorm
    engine.check_twice(several, model[:1], world=2)


# ---- Views


class Photographs:
    """Noise of several sizes; the second image is unreadable."""

    def __init__(self, broken=(1,)):
        self.broken = broken
        rng = np.random.default_rng(0)
        sizes = [(80, 120), (64, 64), (200, 90), (70, 70)]
        self.images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise CorruptImage(f"image{index}.jpg", "it is noise")
        return self.images[index], index


def wanted(**changes):
    return replace(settings.Settings(), image_size=32, crop_scale=0.08, flip=0.5, **changes)


def test_photographs_become_three_views_and_the_crop_is_the_second():
    images = Photographs(broken=())
    batch = TrainViews(images, wanted(), "train").__getitems__([(0, index) for index in range(4)])
    assert batch.views.keys() == {"view", "aug", "extra"}
    for tensor in batch.views.values():
        assert (tensor.dtype, tensor.shape) == (torch.uint8, (4, 3, 32, 32))
    batch.crops.check(32)
    for index in range(4):
        view = functional.to_pil_image(batch.views["view"][index])
        top, left, height, width, flip = (field[index].item() for field in batch.crops)
        aug = functional.resized_crop(view, top, left, height, width, [32, 32])
        expected = functional.pil_to_tensor(functional.hflip(aug) if flip else aug)
        assert torch.equal(batch.views["aug"][index], expected)
    assert batch.labels.tolist() == [0, 1, 2, 3]


def test_views_depend_on_the_seed_the_pass_and_the_image_alone():
    images = Photographs(broken=())
    views = TrainViews(images, wanted(), "train")
    together, alone = views.__getitems__([(3, 0), (3, 2)]), views.__getitems__([(3, 2)])
    assert_same({name: images[1:] for name, images in together.views.items()}, alone.views)
    for other in (views.__getitems__([(4, 2)]), TrainViews(images, wanted(seed=1), "train").__getitems__([(3, 2)])):
        assert not torch.equal(other.views["aug"], alone.views["aug"])


def test_workers_change_nothing():
    images = Photographs()

    def run(workers):
        steps = Steps(4, 2, 0, "order", 1, 5)
        return list(loader(TrainViews(images, wanted(), "train"), steps, workers, pin=False))

    assert_same(run(0), run(2))


def test_an_unreadable_image_is_replaced_by_the_next_and_named():
    views = TrainViews(Photographs(), wanted(), "train")
    batch = views.__getitems__([(0, 0), (0, 1)])
    assert batch.labels.tolist() == [0, 2]
    assert all(field.is_contiguous() for field in batch.crops)  # a strided one is not copied from pinned memory
    assert len(batch.skipped) == 1
    assert "image1.jpg" in batch.skipped[0]
    with pytest.raises(CorruptImage, match=r"image1\.jpg"):
        TrainViews(Photographs(), wanted(strict=True), "train").__getitems__([(0, 1)])
    with pytest.raises(DataError, match="must hold an image that can be read"):
        TrainViews(Photographs(range(4)), wanted(), "train").__getitems__([(0, 1)])


def test_batches_are_normalised_on_the_device():
    crops = CropFlip.identity(2, 4)
    images = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    batch = Batch({"view": images}, crops, torch.zeros(2, dtype=torch.int64), [])
    data = type("Data", (), {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0)})
    placed = batch.on(torch.device("cpu"), data, channels_last=True)
    assert placed.views["view"][0, :, 0, 0].tolist() == [1.0, 3.0, 1.0]
    assert placed.views["view"].is_contiguous(memory_format=torch.channels_last)
