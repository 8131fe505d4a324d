"""Evaluation views and their boxes; what is measured of a split, its parts, its classes; unreadable images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from driver import evaluation, evaluation_views, measuring, models
from driver.data import CorruptImage, Images, Record, open_data
from driver.evaluation_views import boxes_in_view
from driver.settings import Settings
from driver.views import original_view
from PIL import Image

from cgc_kernels.metrics import live
from tests.driver import data_sets
from tests.driver.cases import answers

CPU = torch.device("cpu")
SETTINGS = Settings(train_images=20, val_images=30, test_images=130)


@pytest.fixture(scope="module")
def data():
    return open_data(SETTINGS)


@pytest.fixture(scope="module")
def cam():
    torch.manual_seed(0)
    return models.grad_cam(models.create(SETTINGS, 10))


@pytest.fixture(scope="module")
def explained(cam, data):
    return evaluation.explain(cam, data.test, data, CPU, seed=0, faithful=120)


# ---- Boxes in the view.


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (333, 251), (40, 300)])
@pytest.mark.parametrize("side", [64, 224])
def test_boxes_follow_the_image(size, side):
    """A white box in a black image, and its frame in the view."""
    width, height = size
    box = (round(0.3 * width), round(0.35 * height), round(0.65 * width), round(0.7 * height))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    view = np.array(original_view(Image.fromarray(pixels), side))[..., 0] > 127
    (moved,) = boxes_in_view(torch.tensor([box], dtype=torch.float32), size, side).tolist()
    rows, columns = np.flatnonzero(view.any(1)), np.flatnonzero(view.any(0))
    expected = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert moved == pytest.approx(expected, abs=max(1, side / min(size)))


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (224, 224), (333, 251), (40, 300)])
@pytest.mark.parametrize("side", [64, 224])
def test_masks_follow_the_image(size, side):
    """A white disc in a black image: the mask is where the view is bright."""
    width, height = size
    across, down = np.arange(width) - 0.45 * width, np.arange(height) - 0.55 * height
    disc = across**2 + down[:, None] ** 2 < (0.3 * min(size)) ** 2
    view = np.array(original_view(Image.fromarray(disc).convert("RGB"), side))[..., 0] > 127
    mask = evaluation_views.mask_in_view(torch.from_numpy(disc), side).numpy()
    assert mask.shape == view.shape
    assert (mask & view).sum() >= 0.95 * (mask | view).sum()


def test_masks_come_with_the_batches(data):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[3:5, 8:20] = True

    class Masked:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return data.val[index]._replace(
                **({"mask": mask, "distractor": 3, "distractor_mask": ~mask} if index else {})
            )

    (batch,) = evaluation_views.batches(Masked(), [0, 1], data, seed=0, stream="val")
    assert torch.equal(batch.masks, torch.stack([torch.zeros_like(mask), mask]))
    assert torch.equal(batch.distractor_masks, torch.stack([torch.zeros_like(mask), ~mask]))
    assert batch.distractors.tolist() == [-1, 3]


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (333, 251)])
def test_resized_size_is_torchvisions(size):
    from torchvision.transforms import functional

    resized = functional.resize(Image.new("RGB", size), round(224 * 256 / 224))
    assert evaluation_views.resized_size(*size, 224) == resized.size


def test_boxes_outside_the_view_are_left_out():
    """The middle 224 of 512 x 256: the columns 144 to 368."""
    boxes = torch.tensor([[0, 0, 100, 256], [100, 16, 160, 240], [144, 16, 368, 240], [400, 0, 512, 9]]).float()
    moved = boxes_in_view(boxes, (512, 256), 224)
    assert moved.tolist() == [[0, 0, 16, 224], [0, 0, 224, 224]]
    assert boxes_in_view(torch.zeros(0, 4), (10, 10), 224).shape == (0, 4)


# ---- Measures of a split.


def test_explained_fits_together(explained, data):
    assert explained.heatmaps.shape == explained.aug_heatmaps.shape == explained.norms.shape == (130, 8, 8)
    assert explained.more_heatmaps.shape == (130, 3, 8, 8)
    assert explained.more_crops.shape == (130, 3, 5)
    assert explained.masks.shape == explained.distractor_masks.shape == (130, 0, 0)
    assert explained.groups.unique().numel() == 130  # each image its own
    assert torch.equal(explained.labels, data.test.labels)
    assert torch.equal(explained.boxes, data.test.split.boxes.float())
    assert explained.insertion.shape == explained.deletion.shape == (120, 9)
    assert explained.crop_flip.flip.dtype == torch.bool
    assert not explained.corrupt.any()


def test_parts_joined_are_the_whole(cam, data):
    """As two ranks measure a validation split."""
    whole = evaluation.per_image(cam, data.test, range(130), data, CPU, seed=0, stream="val")
    parts = [
        evaluation.per_image(cam, data.test, range(rank, 130, 2), data, CPU, seed=0, stream="val") for rank in (0, 1)
    ]
    for name, values in whole.items():
        joined = torch.empty_like(values)
        joined[0::2], joined[1::2] = parts[0][name], parts[1][name]
        torch.testing.assert_close(joined, values, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert evaluation.per_image(cam, data.test, [], data, CPU, seed=0, stream="val") == {}


def test_measures_of_the_saved_are_those_of_the_images(cam, data, explained):
    live = evaluation.per_image(cam, data.test, range(130), data, CPU, seed=0, stream="test")
    saved = measuring.measures(explained)
    for name, values in live.items():  # without masks there is nothing, or nothing but NaN
        expected = saved[name] if name in saved else torch.full_like(values, torch.nan)
        torch.testing.assert_close(expected, values, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_summary_by_hand():
    """Two images of class 0, one of class 1; one heatmap on its box, one beside it, one dead."""
    heat = torch.zeros(3, 8, 8)
    heat[0, 1, 1] = heat[1, 7, 7] = 1
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 4, 4]]).float()
    explained = answers(
        heat,
        predicted=torch.tensor([0, 5, 5]),
        ranks=torch.tensor([0, 3, 7]),
        labels=torch.tensor([0, 0, 1]),
        boxes=boxes,
        box_counts=torch.tensor([1, 1, 1]),
    )
    values = measuring.measures(explained)
    summary = measuring.summarise(values)
    assert summary == pytest.approx(
        {
            "accuracy": 100 / 3,
            "top5": 200 / 3,
            "content_heatmap": 50,
            "flat_content_heatmap": 100 * (4 + 4 + 16) / 3 / 64,
            "effective_area": 100 / 64,
            "pointing_game": 50,
            "consistency": 100,
            "twin_retrieval": 200 / 3,
            "dead_heatmaps": 100 / 3,
            "corrupt_images": 0,
        }
    )
    first, second = measuring.per_class(values, ["cat", "dog"])
    assert (first["class"], first["images"], first["accuracy"], first["content_heatmap"]) == ("cat", 2, 50, 50)
    assert (second["class"], second["images"], second["dead_heatmaps"]) == ("dog", 1, 100)
    assert "content_heatmap" not in second


def test_insertion_and_deletion_of_dead_heatmaps_are_not_scored(explained):
    dead = ~live(explained.heatmaps)
    values = measuring.measures(explained)
    assert dead.any()
    assert values["insertion"][dead].isnan().all()
    assert values["deletion"][120:].isnan().all()
    assert not values["deletion"][:120][~dead[:120]].isnan().any()


def test_model_is_left_in_eval_mode_and_without_gradients(cam, data):
    cam.train()
    evaluation.per_image(cam, data.val, range(4), data, CPU, seed=0, stream="val")
    assert not cam.model.training
    assert all(parameter.grad is None for parameter in cam.model.parameters())


# ---- Masks, and a second object


@pytest.fixture(scope="module")
def pasted(tmp_path_factory):
    """Objects with masks on photographs, with a distractor."""
    root = data_sets.make_cutouts(tmp_path_factory.mktemp("cutouts"))
    places = data_sets.places("cutouts", root)
    return open_data(Settings(**places, image_size=48, model="small_resnet", distractors=1))


@pytest.fixture(scope="module")
def pasted_cam(pasted):
    torch.manual_seed(0)
    return models.grad_cam(models.create(Settings(model="small_resnet", image_size=48), len(pasted.classes)))


def test_heatmaps_of_other_classes_and_of_none(pasted, pasted_cam):
    """Of the runner-up, of the distractor, and the channel norm: each as when asked for by itself."""
    explained = evaluation.explain(pasted_cam, pasted.test, pasted, CPU, seed=0)
    (batch,) = evaluation_views.batches(pasted.test, range(10), pasted, seed=0, stream="test", more=3)
    explainer = evaluation.as_explainer(pasted_cam)
    logits, (heatmaps,), norms = explainer((batch.original,), batch.labels)
    order = logits.argsort(1, descending=True)
    runner_up = torch.where(order[:, 0] == batch.labels, order[:, 1], order[:, 0])
    torch.testing.assert_close(explained.heatmaps, heatmaps)
    torch.testing.assert_close(explained.runner_up_heatmaps, explainer((batch.original,), runner_up)[1][0])
    torch.testing.assert_close(explained.distractor_heatmaps, explainer((batch.original,), batch.distractors)[1][0])
    torch.testing.assert_close(explained.norms, norms)
    for number in range(3):
        (more,) = explainer((batch.more[:, number],), batch.labels)[1]
        torch.testing.assert_close(explained.more_heatmaps[:, number], more)
    assert torch.equal(explained.more_crops, batch.more_crops)
    views = torch.cat([explained.crops[:, None], explained.more_crops], 1)
    assert all(len(own.unique(dim=0)) == 4 for own in views)  # no view twice


def test_masks_and_groups_are_those_of_the_images(pasted, pasted_cam):
    explained = evaluation.explain(pasted_cam, pasted.test, pasted, CPU, seed=0)
    samples = list(pasted.test)
    where = measuring.places_of(explained)
    assert torch.equal(where.mask, torch.stack([sample.mask for sample in samples]))
    assert torch.equal(where.other, torch.stack([sample.distractor_mask for sample in samples]))
    names = pasted.test.groups
    same = torch.tensor([[first == second for first in names] for second in names])
    assert torch.equal(explained.groups[:, None] == explained.groups, same)
    assert not same.all()
    part = explained.select(torch.tensor([2, 5, 6]))
    assert torch.equal(part.boxes, torch.cat([samples[index].boxes for index in (2, 5, 6)]))
    assert torch.equal(measuring.places_of(part).mask, where.mask[[2, 5, 6]])


def test_everything_is_measured_where_there_are_masks(pasted, pasted_cam):
    summary = measuring.summarise(measuring.measures(evaluation.explain(pasted_cam, pasted.test, pasted, CPU, seed=0)))
    assert set(measuring.MEANS) - summary.keys() == {"insertion", "deletion"}
    values = evaluation.per_image(pasted_cam, pasted.val, range(10), pasted, CPU, seed=0, stream="val")
    assert {"content_mask", "peak_in_mask"} <= measuring.summarise(values).keys()


# ---- Files.


@pytest.fixture
def birds(tmp_path):
    root = data_sets.make_cub(tmp_path)
    return replace(SETTINGS, data="cub", data_root=str(root), model="small_resnet", image_size=64)


def test_unreadable_images_are_named_skipped_and_counted(birds, capsys):
    opened = open_data(birds)
    broken = opened.test.records[1].path
    with open(broken, "w") as file:
        file.write("no image")
    cam = models.grad_cam(models.create(birds, 3))
    explained = evaluation.explain(cam, opened.test, opened, CPU, seed=0)
    assert explained.corrupt.tolist() == [False, True, False, False, False, False]
    summary = measuring.summarise(measuring.measures(explained))
    assert summary["corrupt_images"] == 1
    readable = opened._replace(test=opened.test.subset([0, 2, 3, 4, 5]))
    without = measuring.summarise(measuring.measures(evaluation.explain(cam, readable.test, readable, CPU, seed=0)))
    assert summary["accuracy"] == pytest.approx(without["accuracy"])
    assert summary["flat_content_heatmap"] == pytest.approx(without["flat_content_heatmap"])
    evaluation.explain(cam, opened.test, opened, CPU, seed=0)
    printed = capsys.readouterr().err
    assert printed.count("cannot read the image") == 1  # once, however often it is met
    assert broken in printed
    with pytest.raises(CorruptImage, match=r"Black_footed_Albatross_0006"):
        evaluation.explain(cam, opened.test, opened._replace(strict=True), CPU, seed=0)


def test_workers_change_nothing(birds):
    opened = open_data(birds)
    torch.manual_seed(0)
    cam = models.grad_cam(models.create(birds, 3))
    alone, helped = (evaluation.explain(cam, opened.test, opened, CPU, seed=0, workers=workers) for workers in (0, 2))
    for first, second in zip(alone[:-1], helped[:-1], strict=True):
        assert torch.equal(first, second)


def test_images_without_boxes_are_measured_without_them(tmp_path, birds):
    data_sets.save_image(tmp_path / "1.png", 1)
    opened = open_data(birds)._replace(test=Images([Record(str(tmp_path / "1.png"), 0)], ("a", "b", "c")))
    cam = models.grad_cam(models.create(birds, 3))
    summary = measuring.summarise(measuring.measures(evaluation.explain(cam, opened.test, opened, CPU, seed=0)))
    assert not {"content_heatmap", "flat_content_heatmap", "pointing_game"} & summary.keys()
    assert "accuracy" in summary
