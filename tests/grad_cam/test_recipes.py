"""The recipes run, are those that docs/recipes.md shows, and are as short as it says; the conventions of libraries."""

import copy
import re
import runpy

import pytest
import timm
import torch

from cgc_kernels import CropFlip, GradCAM, cgc_loss, homography
from tests.support import ROOT
from tests.support.compare import assert_close

DOCS = ROOT / "docs"
RECIPES = sorted((DOCS / "recipes").glob("*.py"))
PAGE = (DOCS / "recipes.md").read_text()


def library(recipe):
    return recipe.stem.removeprefix("with_")


def added(recipe):
    return len(re.findall(r"# \+", recipe.read_text().split('"""', 2)[2]))


@pytest.mark.parametrize("recipe", RECIPES, ids=library)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_recipe_runs(recipe, monkeypatch, capsys):
    pytest.importorskip(library(recipe))
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    torch.manual_seed(0)
    runpy.run_path(str(recipe), run_name="__main__")


def test_the_page_shows_the_recipes():
    include = runpy.run_path(str(DOCS / "include.py"))
    assert include["included"](PAGE) == PAGE, "run `python docs/include.py`"
    for recipe in RECIPES:
        assert recipe.read_text() in PAGE


def test_the_page_counts_the_lines_that_are_added():
    counts = dict(re.findall(r"\| \[(\w+).*\| (\d+) \|", PAGE))
    assert {name.lower(): int(count) for name, count in counts.items()} == {library(r): added(r) for r in RECIPES}
    assert int(counts["Lightning"]) <= 6
    assert int(counts["torchvision"]) <= 8
    assert int(counts["timm"]) <= 10
    assert int(counts["transformers"]) <= 10


def test_the_last_block_under_checkpointing_gives_the_same_gradients():
    net, views = timm.create_model("resnet10t", num_classes=10).double(), torch.rand(2, 4, 3, 64, 64).double()
    transform, gradients = CropFlip.identity(4, 64), []
    for checkpointing in (False, True):
        model = copy.deepcopy(net)
        model.set_grad_checkpointing(checkpointing)
        out, out_aug = GradCAM(model, "layer4.0")(*views)
        loss = out.logits.logsumexp(1).sum() + cgc_loss(out.cam, out_aug.cam, transform)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close(checkpointed, plain, 1e-10)


# ---- What docs/recipes.md says of the matrices of other libraries

SIZE = HEIGHT, WIDTH = 60, 80


def coordinates():
    """An image whose values are the places of its pixels, float32 [2, H, W] as (x, y)."""
    y, x = torch.meshgrid(*(torch.arange(side).float() for side in SIZE), indexing="ij")
    return torch.stack((x, y))


def error(aug, matrix):
    """Pixels between where an augmented image of coordinates says that it comes from, and where the matrix does; in
    the middle, away from what is clamped or filled."""
    x, y = places = coordinates().double()
    source = torch.linalg.inv(matrix.double()) @ torch.cat((places, torch.ones(1, *SIZE))).flatten(1)
    source = (source[:2] / source[2]).reshape(2, *SIZE)
    near = (x - (WIDTH - 1) / 2).square() + (y - (HEIGHT - 1) / 2).square() < (0.3 * HEIGHT) ** 2
    for place, side in zip(source, (WIDTH, HEIGHT), strict=True):
        near &= (place > 4) & (place < side - 5)
    assert near.sum() > 100
    return (aug.double() - source).abs().amax(0)[near].max().item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("align_corners", [True, False])
def test_matrices_of_kornia(align_corners):
    K = pytest.importorskip("kornia.augmentation")
    torch.manual_seed(0)
    how = {"p": 1.0, "align_corners": align_corners}
    crop, affine = K.RandomResizedCrop(SIZE, scale=(0.4, 1.0)), K.RandomAffine(15, (0.1, 0.1), (0.8, 1.2), 5, **how)
    together = [crop, K.RandomHorizontalFlip(p=1.0), K.RandomRotation(20, **how), K.RandomPerspective(0.3, **how)]
    views = coordinates()[[0, 1, 1]].repeat(6, 1, 1, 1)
    for augment in (crop, affine, *together[1:], K.AugmentationSequential(*together, data_keys=["input"])):
        aug = augment(views)
        assert max(map(error, aug[:, :2], augment.transform_matrix)) < 1e-3


@pytest.mark.filterwarnings("ignore")
def test_key_points_of_albumentations(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    A = pytest.importorskip("albumentations")
    affine = A.Affine(rotate=(-20, 20), scale=(0.8, 1.2), shear=(-5, 5), p=1)
    steps = [A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.Rotate(20, p=1), affine, A.Perspective(p=1)]
    points = torch.cartesian_prod(torch.tensor([5.0, 40, 75]), torch.tensor([5.0, 30, 55]))
    image = coordinates()[[0, 1, 1]].permute(1, 2, 0).numpy()
    for seed, augmentation in enumerate([*([step] for step in steps), steps]):
        augment = A.Compose(augmentation, keypoint_params=A.KeypointParams("xy", remove_invisible=False), seed=seed)
        moved = augment(image=image, keypoints=points.numpy())
        matrix = homography(points, torch.from_numpy(moved["keypoints"]))
        assert error(torch.from_numpy(moved["image"])[..., :2].permute(2, 0, 1), matrix) < 1e-3
