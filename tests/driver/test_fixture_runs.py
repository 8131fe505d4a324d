"""For every data set, from the command line: train an epoch, evaluate, report, explain, on miniatures of it.

All in this process: starting Python and importing PyTorch takes longer than these runs.
"""

import json

import evaluate
import explain
import pytest
import torch
import train
from PIL import Image

from tests.driver import data_sets

# Widths of a real network, images of a toy.
SMALL = (
    *("--model", "resnet18", "--no-pretrained", "--freeze-until", "", "--image-size", "64", "--epochs", "1"),
    *("--warmup", "0", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--no-progress"),
)
WITH_BOXES = ("imagenet", "cub", "aircraft", "cars", "folder", "cutouts", "demo")


def run(main, *words) -> int:
    return main([str(word) for word in words])


def trained(name, root, output, *more):
    """The summary of a run of one epoch."""
    assert run(train.main, *data_sets.flags(name, root), "--output", output, *SMALL, *more) == 0
    for file in ("summary.json", "report.html", "gallery.png", "curves.png", "last.pt", "metrics.csv"):
        assert (output / file).is_file(), file
    return json.loads((output / "summary.json").read_text())


@pytest.mark.parametrize("name", data_sets.MAKERS)
def test_train_evaluate_report(name, tmp_path, capsys):
    root, output = data_sets.MAKERS[name](tmp_path / "data"), tmp_path / "run"
    (summary,) = trained(name, root, output).values()
    assert (summary["content_heatmap"] is not None) == (name in WITH_BOXES)
    assert 0 <= summary["accuracy"] <= 100
    again = tmp_path / "again"
    assert run(evaluate.main, output, "--output", again, "--device", "cpu") == 0
    (repeated,) = json.loads((again / "summary.json").read_text()).values()
    for measure in ("accuracy", "top5", "content_heatmap", "consistency", "pointing_game"):
        if summary[measure] is not None:  # float32 maps, whose views come in batches of another size
            assert repeated[measure] == pytest.approx(summary[measure], rel=1e-5, abs=1e-4)
    assert "accuracy" in capsys.readouterr().out


def test_a_part_of_the_labels_and_the_rest_without(tmp_path):
    root = data_sets.make_imagenet(tmp_path / "data", train=16)
    more = ["--fraction", "0.5", "--unlabeled", "rest", "--method", "cgc", "--faithfulness", "2"]
    trained("imagenet", root, tmp_path / "run", *more)
    saved = torch.load(tmp_path / "run" / "test.pt", weights_only=True)
    assert saved["insertion"].shape == saved["deletion"].shape == (2, 9)


def test_an_unreadable_image_is_counted_or_fatal(tmp_path, capsys):
    root = data_sets.make_cub(tmp_path / "data")
    broken = sorted(root.rglob("*_0001_*.jpg")) + sorted(root.rglob("*_0005_*.jpg"))
    assert len(broken) == 2
    for path in broken:
        path.write_bytes(b"no image")
    (summary,) = trained("cub", root, tmp_path / "run").values()
    assert summary["corrupt_images"] == 1
    printed = "".join(capsys.readouterr())
    assert all(str(path) in printed for path in broken)
    with pytest.raises((SystemExit, OSError)):
        trained("cub", root, tmp_path / "strict", "--strict")


def test_unrel_asks_a_classifier_of_imagenet(tmp_path, capsys):
    root = data_sets.make_unrel(tmp_path / "data")
    flags = ["--data", "unrel", "--data-root", root, "--image-size", "64", "--device", "cpu"]
    torch.manual_seed(0)
    assert run(evaluate.main, "resnet18", *flags, "--output", tmp_path / "out") == 0
    (summary,) = json.loads((tmp_path / "out" / "summary.json").read_text()).values()
    assert {row["class"] for row in summary["classes"]} == {"dog", "bike"}
    assert summary["content_heatmap"] > 0
    with pytest.raises(SystemExit):
        run(train.main, *flags, "--output", tmp_path / "run")
    assert "unrel" in capsys.readouterr().err


def test_two_models_and_two_explainers_side_by_side(tmp_path):
    root = data_sets.make_cub(tmp_path / "data")
    state = trained("cub", root, tmp_path / "run") and torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    swav = tmp_path / "others.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state["model"].items()}}, swav)
    flags = ["--explainer", "ours", "--explainer", "LayerCAM", "--model", "resnet18", "--images", "4"]
    out = tmp_path / "out"
    assert run(evaluate.main, tmp_path / "run", swav, *flags, "--output", out, "--device", "cpu") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [column["title"] for column in summary.values()] == [
        "CGC, ours",
        "CGC, LayerCAM",
        "others, ours",
        "others, LayerCAM",
    ]
    first, _, third, _ = summary.values()
    assert first["accuracy"] == third["accuracy"]
    assert first["content_heatmap"] == pytest.approx(third["content_heatmap"], abs=1e-4)
    assert sum(row["images"] for row in first["classes"]) == 4


def test_explain_writes_overlays(tmp_path, capsys):
    root = data_sets.make_cub(tmp_path / "data")
    trained("cub", root, tmp_path / "run")
    capsys.readouterr()
    images = sorted((root / "CUB_200_2011" / "images").rglob("*.jpg"))[:2]
    flags = ["--checkpoint", tmp_path / "run", "--output", tmp_path / "out", "--device", "cpu", "--size", "96"]
    assert run(explain.main, *images, *flags, "--class", "Laysan Albatross") == 0
    assert capsys.readouterr().out.count("explained Laysan Albatross") == 2
    for path in images:
        with Image.open(tmp_path / "out" / f"{path.stem}-Laysan_Albatross.png") as overlay:
            assert overlay.size == (96, 96)
    assert run(explain.main, images[0], tmp_path / "nothing.jpg", *flags, "--explainer", "HiResCAM") == 1
    out, err = capsys.readouterr()
    assert "predicted" in out
    assert "nothing.jpg" in err


# ---- What is wrong is named.


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    flags = "--epochs 1 --train-images 32 --val-images 10 --test-images 20 --warmup 0 --device cpu --no-progress"
    assert run(train.main, "--output", folder, *flags.split()) == 0
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("resnet18", "--data must be given for a model that is not one of train.py's"),
        ("resnet18 --data cub", "--data cub must come with --data-root FOLDER"),
        (
            "resnet19 --data demo --test-images 10",
            "MODEL must be a run folder, a checkpoint or a model's name, got 'resnet19'; --model",
        ),
        ("nowhere/run/last.pt", "a checkpoint or a model's name, got 'nowhere/run/last.pt', which is not there"),
        ("{run} --explainer magic", "--explainer must be one of ours, "),
        ("{run} --output {run}", "--output must be a new or empty folder, got {run}"),
        ("{run} --images 0", "--images: must be an integer >= 1, got '0'"),
        ("{run} --data cub --data-root {cub}", "--data cub has 3 classes, got {run} with 10"),
        ("{run} --data unrel --data-root {unrel}", "--data unrel needs a classifier of the 1000 classes of ImageNet"),
        ("{other} --data demo --test-images 10", "--model must be given for {other}"),
        ("{parent}", "MODEL must be a run folder with a last.pt, got '{parent}'; it holds the runs {run}"),
        ("{run} --image 3", "unrecognized arguments: --image 3"),
    ],
)
def test_evaluate_names_what_is_wrong(flags, message, demo_run, tmp_path, capsys):
    places = {
        "run": demo_run,
        "parent": demo_run.parent,
        "cub": tmp_path / "cub",
        "unrel": tmp_path / "unrel",
        "other": tmp_path / "other.pt",
    }
    data_sets.make_cub(places["cub"])
    data_sets.make_unrel(places["unrel"])
    torch.save({"state_dict": {"x": torch.zeros(1)}}, places["other"])
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, *[flag.format(**places) for flag in flags.split()])
    assert stop.value.code == 2
    assert message.format(**places) in capsys.readouterr().err


def test_explain_names_what_is_wrong(demo_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(explain.main, "a.jpg", "--checkpoint", demo_run, "--class", "eleven")
    assert "--class must be a class's name or its number below 10, got 'eleven'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(explain.main, "a.jpg")
    assert "--checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("main", [evaluate.main, explain.main])
def test_help_documents_every_flag(main, capsys):
    with pytest.raises(SystemExit) as stop:
        run(main, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    parser = (evaluate if main is evaluate.main else explain).make_parser()
    for action in parser._actions:
        assert action.help, action
        for option in action.option_strings:
            assert option in text
