"""python/search.py: terms and measures on maps with known answers, and that all of it runs, and goes on."""

import math
from types import SimpleNamespace

import pytest
import search
import torch
from driver import models
from searching import measures, sizes, terms, views
from searching.maps import explained, of_class, seen_through
from searching.measures import Seen
from searching.terms import ARMS, Step
from searching.views import Views
from torch import nn

from cgc_kernels import CropFlip, GradCAM, gradcam, metrics
from tests.driver import data_sets


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def split_of(masks: torch.Tensor, **more) -> Views:
    """Images whose objects cover these masks [N, FINE, FINE]."""
    count = len(masks)
    known = {
        "frozen": None,
        "crops": None,
        "labels": torch.zeros(count, dtype=torch.int64),
        "others": torch.ones(count, dtype=torch.int64),
        "masks": masks,
        "other_masks": ~masks,
        "boxes": torch.tensor([[0.0, 0.0, sizes.SIZE / 2, sizes.SIZE]]).expand(count, 4),
        "objects": [f"{number}" for number in range(count)],
    }
    return Views(**{**known, **more})


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """A coarse map that is alight on the left, one on the right."""
    left = (torch.arange(8) < 4).float().expand(8, 8)
    return left, 1 - left


def step_of(maps: torch.Tensor, logits: torch.Tensor) -> Step:
    crops = CropFlip.identity(len(maps), sizes.SIZE)
    head = nn.Conv2d(6, maps.shape[1], 1)
    frozen = rand(len(maps), 6, *maps.shape[2:])
    return Step([maps] * 3, logits, [crops] * 2, logits.argmax(1), frozen, lambda images: (None, head(images), None))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_what_is_explained_is_grad_cam_of_the_tempered_log_probability(temperature):
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double()
    images, labels = rand(2, 3, 6, 6).double(), torch.tensor([1, 3])
    with GradCAM(model, "0") as cam:
        maps = []
        for label in range(4):
            (out,) = cam(images, target=torch.full((2,), label))
            maps.append((out.cam.features * out.cam.gradients[:, :, None, None]).sum(1))
    features = model[0](images).detach().requires_grad_()
    logits = model[1:](features)
    scores = temperature * (logits / temperature).log_softmax(1)[torch.arange(2), labels]
    (gradients,) = torch.autograd.grad(scores.sum(), features)
    ours = of_class(explained(torch.stack(maps, 1), logits, temperature), labels)
    torch.testing.assert_close(ours, gradcam(features.detach(), gradients))


def test_what_is_explained_knows_nothing_of_what_all_classes_share():
    maps, logits, common = rand(2, 4, 7, 7), rand(2, 4), rand(2, 1, 7, 7, seed=1)
    for temperature in measures.TEMPERATURES:
        torch.testing.assert_close(
            explained(maps + common, logits + common.sum((2, 3)), temperature), explained(maps, logits, temperature)
        )
    assert explained(maps, logits, math.inf).sum(1).abs().max() < 1e-5


def test_maps_seen_through_crops():
    ramp = torch.arange(8.0).expand(1, 2, 8, 8)
    half = CropFlip(*(torch.tensor([edge]) for edge in (0, 0, sizes.SIZE, sizes.SIZE // 2)), torch.tensor([True]))
    seen = seen_through(ramp, half)
    assert torch.equal(seen_through(ramp, CropFlip.identity(1, sizes.SIZE)), ramp)
    torch.testing.assert_close(seen[0, 0, 0, 1:-1], torch.linspace(3.25, -0.25, 8)[1:-1])


@pytest.mark.parametrize("name", [name for name in ARMS if name != "ce"])
def test_every_term_is_finite_and_moves_the_maps(name):
    maps = (rand(6, 4, 7, 7) + 0.5).requires_grad_()
    step = step_of(maps, rand(6, 4, seed=1))
    step.crops = [CropFlip.from_rows(torch.tensor([[8, 16, 120, 150, flip]] * 6)) for flip in (0, 1)]
    loss = ARMS[name]()(step)
    loss.backward()
    assert loss.ndim == 0
    assert loss.isfinite()
    assert maps.grad.isfinite().all()
    assert maps.grad.any()


def test_the_terms_between_classes():
    left, right = halves()
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    apart, alike = (step_of(torch.stack([left, other, right])[None], logits) for other in (right, left))
    assert terms.rivals_apart(3)(apart) == pytest.approx(0)
    assert terms.rivals_apart(3)(alike) == pytest.approx(3)
    assert terms.all_apart(10)(alike) == pytest.approx(5)  # one of the two others
    assert torch.equal(terms.over_second(apart, apart.maps[0])[0], left)
    assert not terms.over_second(alike, alike.maps[0]).any()
    assert torch.equal(terms.over_places(apart, apart.maps[0])[0], left)


def test_equivariant_maps_cost_nothing():
    step = step_of(rand(6, 4, 7, 7), rand(6, 4, seed=1))  # every view is the original
    for name in ("icel-positive", "seam-30", "attention"):
        assert ARMS[name]()(step).item() == pytest.approx(0, abs=1e-5)


def test_measures_on_maps_with_known_answers():
    left, right = halves()
    masks = torch.zeros(2, sizes.FINE, sizes.FINE, dtype=torch.bool)
    masks[:, :, : sizes.FINE // 2] = True
    maps = torch.stack([torch.stack([left, right]), torch.stack([left, left])])
    seen = Seen(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), maps, maps, torch.ones(2, 8, 8))
    split = split_of(masks)
    assert measures.two_objects(seen, split) == {"denser": 100, "denser other": 50}
    found = measures.likeness(maps, split.labels, split.others)
    assert found["second dead"] == 0
    assert 50 < found["likeness"] < 56  # bilinear heatmaps overlap where their halves meet
    placed = measures.placed(metrics.upsample(maps[:, 0], sizes.FINE), split)
    assert placed["peak"] == placed["pointing"] == 100
    assert placed["mask"] == placed["box"] > 90


def test_a_control_has_the_area_it_is_asked_for():
    masks = torch.zeros(3, sizes.FINE, sizes.FINE, dtype=torch.bool)
    masks[:, 10:30, 10:30] = True
    maps = rand(3, 2, 7, 7).abs()
    baseline = Seen(rand(3, 2), maps, maps, maps[:, 0])
    split = split_of(masks)
    assert measures.at_area(maps[:, 0], split, 30.0)["area"] == pytest.approx(30, abs=0.01)
    controls = measures.controls(baseline, split, 30.0)
    assert controls["peak power"] == controls["peak norm"]  # of the same maps


def test_of_few_objects_takes_all_images_of_some():
    masks = torch.zeros(8, sizes.FINE, sizes.FINE, dtype=torch.bool)
    labels = torch.tensor([0, 1] * 4)
    rows = torch.arange(8)
    split = split_of(masks, frozen=rows, crops=rows, labels=labels, objects=[*"abcdabcd"])
    assert views.of_few_objects(split, 0, 0) is split
    few = views.of_few_objects(split, 1, 0)
    assert len(set(few.objects)) == 2
    assert sorted(few.labels.tolist()) == [0, 0, 1, 1]
    assert few.frozen.tolist() == [row for row in range(8) if split.objects[row] in few.objects]


def test_it_trains_measures_and_goes_on(monkeypatch, tmp_path, capsys):
    root = data_sets.make_cutouts(tmp_path / "data")
    create = models.create

    def untrained(wanted, classes):
        return create(SimpleNamespace(**{**vars(wanted), "pretrained": False}), classes)

    monkeypatch.setattr(models, "create", untrained)
    monkeypatch.setattr(sizes, "SIZE", 64)
    monkeypatch.setattr(sizes, "FINE", 16)
    monkeypatch.setattr(sizes, "IMAGES", {"train": 36, "val": 6, "test": 6})
    places = ["--data-root", f"{root}/objects", "--photographs", f"{root}/photographs", "--output", f"{tmp_path}/out"]
    how = [*places, "--seeds", "0", "--steps", "2"]
    search.main([*how, "--arms", "attention"])
    assert "ce, seed 0, val" in capsys.readouterr().out
    search.main([*how, "--arms", "attention", "--test"])
    again = capsys.readouterr().out
    assert "ce, seed 0, val:" not in again
    assert "attention, seed 0, test:" in again
    assert [line for line in again.splitlines() if line.startswith("## ")] == ["## val, 2 steps", "## test, 2 steps"]
    search.main([*places, "--table"])
    assert capsys.readouterr().out.strip() == again[again.index("## ") :].strip()
