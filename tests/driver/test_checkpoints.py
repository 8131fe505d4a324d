"""Checkpoints that meet other data, other trainings, other versions and other people's scripts."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import evaluate
import explain
import pytest
import torch
import train
from driver import checkpoints, loading, models, storage
from driver.storage import CheckpointError
from PIL import Image

from tests.driver import data_sets
from tests.driver.cases import TINY, refused, run, train_on


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of cats and dogs, and a run of it."""
    place = tmp_path_factory.mktemp("trained")
    root = data_sets.make_folder(place / "data")
    assert train_on(root, place / "run") == 0
    return root, place / "run"


@pytest.fixture
def copied(trained, tmp_path):
    """The same to be spoilt: the data stay where the settings say, and come back."""
    root, folder = trained
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)
    shutil.copytree(folder, tmp_path / "run")
    yield root, tmp_path / "run"
    shutil.rmtree(root)
    shutil.copytree(kept, root)


def rename(root, old="dog", new="fox"):
    for path in root.glob(f"*/{old}"):
        path.rename(path.with_name(new))


def change(path: Path, **changes) -> None:
    """Write a checkpoint with other entries, those inside others after two underscores."""
    state = storage.load(path)
    for name, value in changes.items():
        *outer, last = name.split("__")  # of a name like settings__lr
        inner = state
        for part in outer:
            inner = inner[part]
        inner[last] = value
    storage.save(state, path)


def unfinished(folder: Path) -> Path:
    """The run before its test images were looked at."""
    (folder / "test.pt").unlink()
    return folder


# ---- Classes by name.

DIFFERENCE = "class 1 is 'dog' in the model, 'fox' in the data"


def test_evaluate_compares_names(trained, tmp_path, capsys):
    other = data_sets.make_folder(tmp_path / "data")
    rename(other)
    flags = ["--data", "folder", "--data-root", other, "--output", tmp_path / "out"]
    assert DIFFERENCE in refused(capsys, evaluate.main, trained[1], *flags)
    rename(other, "fox", "dog")
    assert run(evaluate.main, trained[1], *flags, "--device", "cpu") == 0


def test_resume_compares_names(copied, capsys):
    root, folder = copied
    rename(root)
    before = (folder / "last.pt").read_bytes()
    assert DIFFERENCE in refused(capsys, train.main, "--resume", "--output", unfinished(folder))
    assert (folder / "last.pt").read_bytes() == before


def test_the_report_of_a_finished_run_compares_names(copied, capsys):
    root, folder = copied
    rename(root)
    assert DIFFERENCE in refused(capsys, train.main, "--resume", "--output", folder)


def test_the_report_of_a_finished_run_counts_the_test_images(copied, capsys):
    root, folder = copied
    data_sets.save_image(root / "val" / "cat" / "more.png", 99)
    message = refused(capsys, train.main, "--resume", "--output", folder)
    assert "must be of the 5 test images, got" in message
    assert str(folder / "test.pt") in message


def test_init_from_other_classes_takes_all_but_the_head(trained, tmp_path, capsys):
    other = data_sets.make_folder(tmp_path / "data")
    assert train_on(other, tmp_path / "same", "--init", trained[1] / "last.pt", "--lr", "1e-30") == 0
    assert "left as initialised" not in "".join(capsys.readouterr())
    rename(other)
    assert train_on(other, tmp_path / "other", "--init", trained[1] / "last.pt", "--lr", "1e-30") == 0
    assert DIFFERENCE in "".join(capsys.readouterr())
    source, same, new = (
        storage.load(path / "last.pt")["model"] for path in (trained[1], tmp_path / "same", tmp_path / "other")
    )
    assert torch.equal(same["head.weight"], source["head.weight"])
    assert not torch.equal(new["head.weight"], source["head.weight"])
    assert torch.equal(new["stem.0.weight"], source["stem.0.weight"])


def test_names_composed_otherwise_are_the_same():
    assert checkpoints.first_difference(["caf\u00e9"], ["cafe\u0301"]) == ""
    assert "class 2 is 'c' in the model, none in the data" in checkpoints.first_difference("abc", "ab")
    with pytest.raises(CheckpointError, match="--data x has 2 classes, got run with 3; class 2 is 'c' in the model"):
        checkpoints.check_classes("abc", "ab", "run", "--data x")


def test_pretrained_weights_keep_their_head(tmp_path, capsys, monkeypatch):
    """They are for ImageNet: a new head for other data would be asked untrained."""
    build = models._build
    monkeypatch.setattr(models, "_build", lambda name, classes, _, size: build(name, classes, False, size))
    flags = ["--pretrained", "--data", "folder", "--data-root", data_sets.make_folder(tmp_path / "data")]
    assert "has 2 classes, got resnet18 with 1000" in refused(capsys, evaluate.main, "resnet18", *flags)


def test_a_pretrained_run_is_asked_with_the_normalisation_that_it_was_trained_with(tmp_path, monkeypatch):
    """timm's weights have theirs, which need not be ImageNet's; the run's own are then loaded, not published ones."""
    build = models._build
    monkeypatch.setattr(models, "_build", lambda name, classes, _, size: build(name, classes, False, size))
    root, folder = data_sets.make_folder(tmp_path / "data"), tmp_path / "run"
    assert train_on(root, folder, "--model", "timm/test_resnet", "--pretrained", "--image-size", "64") == 0
    monkeypatch.setattr(models, "_build", build)
    loaded = loading.load(str(folder), SimpleNamespace(model="", image_size=0, target_layer=""))
    assert models.normalisation(loaded.settings.model, loaded.settings.pretrained)[0] == (0.5,) * 3


# ---- Whose it is.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "with seed 1, not 0"),
        ({"method": "baseline"}, "with method baseline, not cgc"),
        ({"settings__lr": 1.0}, "with lr 1.0, not 0.1"),
        ({"settings__ema": 0.5}, "with ema 0.5, not 0.0"),
        ({"classifier__target_layer": "stem"}, "with target_layer stem, not stages"),
        ({"classifier__name": "resnet18"}, "with name resnet18, not small_resnet"),
        ({"format": 0}, "must be of format 1, got"),
        ({"classifier__classes": ["cat", "fox"]}, "class 1 is 'fox' in the model, 'dog' in the data"),
    ],
)
def test_resume_looks_whose_checkpoint_it_loads(copied, changes, message, capsys):
    _, folder = copied
    change(folder / "last.pt", **changes)
    refused(capsys, train.main, "--resume", "--output", folder)  # its results are of another training
    said = refused(capsys, train.main, "--resume", "--output", unfinished(folder))
    assert message in said
    assert str(folder / "last.pt") in said


def test_resume_looks_whose_results_it_reports(copied, capsys):
    _, folder = copied
    change(folder / "test.pt", identity__seed=1)
    assert "with seed 1, not 0" in refused(capsys, train.main, "--resume", "--output", folder)
    shutil.copy(folder / "last.pt", folder / "test.pt")
    assert "must be of format 1" in refused(capsys, train.main, "--resume", "--output", folder)


def test_results_must_be_whole(copied, capsys):
    _, folder = copied
    change(folder / "test.pt", ranks=None)
    said = refused(capsys, train.main, "--resume", "--output", folder)
    assert f"got {folder / 'test.pt'} without ranks" in said


def test_nothing_is_evaluated_twice(trained, tmp_path, capsys):
    for more in ([trained[1]], ["--explainer", "ours", "--explainer", "ours"]):
        said = refused(capsys, evaluate.main, trained[1], *more, "--output", tmp_path / "out")
        assert "must name each one once" in said


def test_files_that_moved_are_the_same_training(copied):
    """The place of the data decides nothing, their classes do."""
    root, folder = copied
    moved = root.rename(root.with_name("moved"))
    try:
        config = (folder / "config.yaml").read_text().replace(str(root), str(moved))
        (folder / "config.yaml").write_text(config)
        assert run(train.main, "--resume", "--output", unfinished(folder)) == 0
    finally:
        moved.rename(root)


DAMAGE = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "flipped": lambda whole: whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :],
    "html": lambda whole: b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("name", ["last.pt", "test.pt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(copied, name, damage, capsys):
    _, folder = copied
    path = folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert str(path) in refused(capsys, train.main, "--resume", "--output", folder)
    if name == "last.pt":
        assert str(path) in refused(capsys, train.main, "--resume", "--output", unfinished(folder))
        assert str(path) in refused(capsys, evaluate.main, folder, "--output", folder / "out")
        assert str(path) in refused(capsys, explain.main, "a.jpg", "--checkpoint", folder)
        assert str(path) in refused(capsys, train.main, "--init", path, "--output", folder / "new", *TINY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "must be of format 1, got"),
        ({"settings__magic": 1}, "with others: magic"),
        ({"classifier": {"name": "small_resnet"}}, "without classes, image_size, target_layer"),
        ({"model": None}, "without model"),
        ({"optimizer": None, "ranks": 1}, "without optimizer, ranks"),
        ({"classifier__image_size": "x"}, "without image_size"),
        ({"model": {"x": torch.zeros(1)}}, "must fit SmallResNet"),
        ({"model__head.bias": torch.full((2,), torch.nan)}, "with NaN or an infinity in head.bias"),
    ],
)
def test_other_versions_and_weights_are_refused_by_name(copied, changes, message, capsys):
    _, folder = copied
    path = folder / "last.pt"
    change(path, **changes)
    for main, *flags in (
        (evaluate.main, folder, "--output", folder / "out"),
        (explain.main, "a", "--checkpoint", path),
    ):
        said = refused(capsys, main, *flags)
        assert message in said
        assert str(path) in said
    assert str(path) in refused(capsys, train.main, "--resume", "--output", unfinished(folder))


def test_pictures_of_one_name_do_not_overwrite_each_other(trained, tmp_path, monkeypatch):
    """Nor an image that was asked about, whatever the predicted class makes of their names."""
    monkeypatch.chdir(tmp_path)
    images = [Path("a/1.png"), Path("b/1.png"), Path("b/1.JPG"), Path("1-cat.png"), Path("A/1.png"), Path("1.png")]
    for number, path in enumerate(images):
        data_sets.save_image(path, number)
    before = Path("1-cat.png").read_bytes()
    flags = ["--checkpoint", trained[1], "--class", "cat", "--size", "32", "--device", "cpu", "--output", "."]
    assert run(explain.main, *images, *flags) == 0
    assert Path("1-cat.png").read_bytes() == before
    made = set(Path(".").glob("*.png")) - {Path("1-cat.png"), Path("1.png")}
    assert len(made) == len(images)
    assert len({str(path).lower() for path in made}) == len(images)
    assert len({Image.open(path).tobytes() for path in made}) > 3
