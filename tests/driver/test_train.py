"""python/train.py from the command line: every file it writes, resuming, stopping, wrong flags."""

import csv
import json
import shlex
import shutil
import signal
import sys

import pytest
import torch
import yaml
from driver import evaluation, schedules, settings, storage
from driver.checkpoints import weights
from driver.presets import PRESETS
from PIL import Image

from tests.driver.cases import (
    TINY,
    assert_same,
    drive,
    kill_inside_an_epoch,
    started,
    tiny_trainer,
    train_steps,
    wait_until,
)
from tests.support import ROOT
from tests.support.once import once

# All that a checkpoint has to hold: averaged weights, a teacher, parts of batches, steps inside an epoch.
RESUMED = ["--ema", "0.9", "--teacher", "--accumulate", "2", "--checkpoint-every", "1", "--batch-size", "16"]
COMPARED = ("baseline", "cgc", "cgc_consistent")
REPORT_FILES = {"config.yaml", "summary.json", "gallery.png", "curves.png"}
PRINTED = "printed.txt"
RUN_FILES = {"metrics.csv", "last.pt", "best.pt", "test.pt"}


def epochs_in(folder) -> int:
    """How many epochs stand in a run's CSV."""
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A tiny comparison over two seeds: its run folder and what it printed."""

    def make(folder):
        printed = drive("--compare", "--seed", 5, "--seeds", 2, "--epochs", 2, "--output", folder, *TINY)
        (folder / PRINTED).write_text(printed)

    folder = once(tmp_path_factory, "compared", make)
    return folder, (folder / PRINTED).read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run folder of four epochs trained without a break."""
    return once(tmp_path_factory, "straight", lambda folder: drive("--epochs", 4, "--output", folder, *TINY, *RESUMED))


def test_comparison_writes_every_file(comparison):
    folder, _ = comparison
    runs = {f"{method}-seed{seed}" for method in COMPARED for seed in (5, 6)}
    assert {path.name for path in folder.iterdir()} >= REPORT_FILES | runs
    for run in runs:
        names = {path.name for path in (folder / run).iterdir()}
        assert names >= RUN_FILES
        assert all(name.startswith("events.out.tfevents") for name in names - RUN_FILES)
        assert len(names - RUN_FILES) == 1


def test_summary_has_the_mean_and_spread_of_every_seed(comparison):
    summary = json.loads((comparison[0] / "summary.json").read_text())
    assert tuple(summary) == COMPARED
    for column in summary.values():
        assert [run["seed"] for run in column["runs"]] == [5, 6]
        for name in ("accuracy", "content_heatmap", "pointing_game", "sharpness_matched_consistency", "seconds"):
            first, second = (run[name] for run in column["runs"])
            assert column[name] == pytest.approx((first + second) / 2)
            assert column["spread"][name] == pytest.approx(abs(first - second) / 2**0.5)
            assert name == "seconds" or 0 <= column[name] <= 100


def trained_without_weight(method):
    """The parameters after an epoch in which the heatmap loss had weight 0."""
    return train_steps(tiny_trainer("--cgc-weight", "0", "--ramp", "0", method=method), 2)


def test_methods_differ_by_their_heatmap_loss_alone():
    """The same start, order, crops and cross-entropy: without the loss's weight they are one method."""
    assert_same(trained_without_weight("baseline"), trained_without_weight("cgc"))
    assert_same(trained_without_weight("baseline"), trained_without_weight("cgc_consistent"))


def test_csv_has_a_row_per_epoch(comparison):
    with (comparison[0] / "cgc-seed6" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_ce"]) > 0 and float(row["val_accuracy"]) >= 0 for row in rows)


def test_config_holds_the_settings(comparison):
    config = yaml.safe_load((comparison[0] / "config.yaml").read_text())
    assert config["compare"] is True
    assert (config["seed"], config["seeds"], config["epochs"], config["train_images"]) == (5, 2, 2, 64)


@pytest.mark.parametrize("name", ["gallery.png", "curves.png"])
def test_pictures_are_pictures(comparison, name):
    with Image.open(comparison[0] / name) as image:
        image.load()
        assert min(image.size) > 500
        assert len(image.convert("L").getcolors()) > 50


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "test.pt"])
def test_checkpoints_load_with_weights_only(comparison, name):
    state = torch.load(comparison[0] / "baseline-seed5" / name, weights_only=True)
    assert state.keys() >= ({"predicted", "heatmaps", "aug_heatmaps"} if name == "test.pt" else {"model", "optimizer"})


def test_checkpoint_restores_the_tested_model(straight, tmp_path):
    """The averaged weights are what was tested, and what the checkpoint says was evaluated."""
    trainer = tiny_trainer("--epochs", 4, *RESUMED, seed=0, folder=tmp_path / "new")
    trainer.state.load(straight / "last.pt")
    where = {"seed": 0, "faithful": 0}
    explained = evaluation.explain(trainer.state.averaged, trainer.data.test, trainer.data, trainer.device, **where)
    saved = storage.load(straight / "test.pt")
    for name, value in explained._asdict().items():
        torch.testing.assert_close(value, saved[name], rtol=1e-4, atol=1e-6)
    checkpoint = storage.load(straight / "last.pt")
    assert weights(checkpoint)["head.weight"].ne(checkpoint["model"]["head.weight"]).any()


def test_finished_runs_are_not_trained_again(comparison, tmp_path):
    folder, printed = shutil.copytree(comparison[0], tmp_path / "run"), comparison[1]
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/last.pt")}
    (folder / "summary.json").unlink()
    again = drive("--resume", "--output", folder)
    assert len(kept) == 6
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert (folder / "summary.json").exists()
    tables = [text.split("test split")[1].split("See ")[0] for text in (again, printed)]
    assert tables[0] == tables[1]


def test_single_run_fills_its_folder(straight):
    names = {path.name for path in straight.iterdir()}
    assert names >= REPORT_FILES | RUN_FILES
    summary = json.loads((straight / "summary.json").read_text())
    assert summary.keys() == {"cgc_consistent"}
    assert summary["cgc_consistent"]["sharpness_matched_content_heatmap"] is None
    assert summary["cgc_consistent"]["spread"]["accuracy"] is None


def test_run_killed_inside_an_epoch_resumes_bit_by_bit(straight, tmp_path):
    folder = tmp_path / "killed"
    with started("--epochs", 4, "--output", folder, *TINY, *RESUMED) as process:
        kill_inside_an_epoch(process, folder, 1)
        process.wait(60)
    state = storage.load(folder / "last.pt")
    assert 1 <= state["epoch"] < 4
    assert 0 < state["step"] <= 4  # 4: before the validation
    drive("--resume", "--output", folder, "--workers", 2)
    for name in ("last.pt", "best.pt", "test.pt"):
        assert_same(storage.load(folder / name), storage.load(straight / name), name)


def test_interrupt_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "a folder"
    with started("--epochs", 50, "--output", folder, *TINY) as process:
        wait_until(process, lambda: epochs_in(folder) >= 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    state = storage.load(folder / "last.pt")
    assert state["epoch"] == len(state["history"]) >= 1
    assert not (folder / "test.pt").exists()
    command = shlex.split(out.strip().splitlines()[-1])
    assert command == [sys.executable, str(ROOT / "python" / "train.py"), "--resume", "--output", str(folder)]


def test_comparison_can_be_given_more_seeds(tmp_path):
    folder = tmp_path / "run"
    settings.save(settings.parse(["--compare", "--output", str(folder)]))
    assert settings.parse(["--resume", "--output", str(folder), "--seeds", "3"]).all_seeds == range(3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 0", "--epochs: must be an integer >= 1, got '0'"),
        ("--epochs two", "--epochs: must be an integer >= 1, got 'two'"),
        ("--lr 0", "--lr: must be a number > 0, got '0'"),
        ("--lr nan", "--lr: must be a number > 0, got 'nan'"),
        ("--temperature -1", "--temperature: must be a number > 0, got '-1'"),
        ("--ramp 1.5", "--ramp: must be a number >= 0 and <= 1, got '1.5'"),
        ("--seed -1", "--seed: must be an integer >= 0, got '-1'"),
        ("--method magic", "--method: must be one of baseline, gradcam_l2, cgc"),
        ("--method cgc --compare", "--compare: not allowed with argument --method"),
        ("--batch-size 64 --train-images 63", "--batch-size must be at most --train-images 63, got 64"),
        ("--resume", "--resume must come with --output FOLDER"),
        ("--resume --output {new}", "must be a run folder to --resume, got {new}"),
        ("--output {used}", "must be a new or empty folder, got {used}; add --resume"),
        ("--output {file}", "--output must be a folder, got the file {file}"),
        ("--resume --output {used} --epochs 9", "--epochs must be 4 as in {used}/config.yaml to --resume, got 9"),
        ("--resume --output {used} --seeds 2", "--seeds must be 1 as in {used}/config.yaml to --resume, got 2"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
        ("--decay-epochs 30,20", "--decay-epochs: must be increasing integers >= 1 separated by commas, got '30,20'"),
        ("--data cub", "--data cub must come with --data-root DIR"),
        ("--preset cars", "--data cars must come with --data-root DIR"),
        ("--data unrel --data-root {new}", "--data must not be unrel to train"),
        ("--image-size 32", "--image-size must be 64 for the demo, got 32"),
        ("--teacher", "--teacher must come with --ema"),
        ("--ce-views 2", "--ce-views must be 1 or 3, got 2"),
        ("--unlabeled rest", "--unlabeled rest must come with a --fraction below 1"),
        ("--unlabeled x --target label", "--target must be prediction with --unlabeled"),
        ("--accumulate 3", "--accumulate must divide --batch-size 32, got 3"),
        ("--resume --output {used} --preset demo", "--preset must not come with --resume"),
        ("--config {new}", "--config must be a readable YAML file, got {new}"),
    ],
)
def test_wrong_flags_are_refused_by_name(flags, message, tmp_path, capsys):
    used = tmp_path / "used"
    used.mkdir()
    settings.save(settings.parse(["--epochs", "4", "--output", str(used)]))
    places = {"new": tmp_path / "new", "used": used, "file": used / "config.yaml"}
    with pytest.raises(SystemExit) as stop:
        settings.parse([flag.format(**places) for flag in flags.split()])
    assert stop.value.code == 2
    assert message.format(**places) in capsys.readouterr().err
    assert not places["new"].exists()


def test_help_documents_every_flag(capsys):
    with pytest.raises(SystemExit):
        settings.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in settings.Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text or name == "progress"
    assert text.count("(default:") >= 50


def test_schedule_warms_up_and_falls_to_zero():
    values = [schedules.cosine(step / 10, warmup=2, epochs=18) for step in range(1, 181)]
    assert values[9] == pytest.approx(0.5)
    assert max(values) == values[19] == pytest.approx(1)
    assert values[99] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert schedules.cosine(0.5, warmup=0, epochs=1) == pytest.approx(0.5)
    assert [schedules.cosine(x, warmup=2, epochs=1) for x in (0.25, 0.5, 1)] == pytest.approx([0.5, 1, 0])


def test_step_schedule_decays_after_its_epochs():
    def rate(epoch, warmup=0):
        return schedules.steps(epoch, warmup, 90, (30, 60), 0.1)

    assert [rate(epoch) for epoch in (0.5, 30, 30.01, 60, 60.01, 90)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [rate(epoch, 5) for epoch in (1, 2.5, 5)] == pytest.approx([0.2, 0.5, 1])


def test_ramp_rises_over_its_share():
    assert [schedules.ramp(x, 0.5) for x in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert schedules.ramp(0, 0) == 1


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with storage.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---- Presets and configuration files


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings(preset, tmp_path):
    place = [] if preset == "demo" else ["--data-root", str(tmp_path)]
    place += ["--photographs", str(tmp_path)] if preset == "cutouts" else []
    chosen = settings.parse(["--preset", preset, *place, "--output", str(tmp_path / "new")])
    assert {name: getattr(chosen, name) for name in PRESETS[preset]} == PRESETS[preset]


def test_the_data_implies_its_recipe_and_flags_override_it(tmp_path):
    where = ["--data-root", str(tmp_path), "--output", str(tmp_path / "new")]
    chosen = settings.parse(["--data", "imagenet", "--lr", "0.3", *where])
    assert (chosen.model, chosen.batch_size, chosen.epochs, chosen.lr) == ("resnet50", 256, 90, 0.3)
    assert (chosen.schedule, chosen.decay_epochs, chosen.cgc_weight, chosen.temperature) == ("step", (30, 60), 0.5, 0.5)
    assert settings.parse(["--data", "folder", *where]).data == "folder"


def test_a_run_folder_is_a_configuration(tmp_path):
    """What a run keeps, read by --config, is the same settings; flags are stronger."""
    flags = ["--epochs", "7", "--decay-epochs", "2,5", "--schedule", "step", "--ema", "0.99", "--no-channels-last"]
    first = settings.parse([*flags, "--output", str(tmp_path / "first")])
    settings.save(first)
    config = ["--config", str(tmp_path / "first" / "config.yaml"), "--output", str(tmp_path / "second")]
    assert settings.kept(settings.parse(config)) == settings.kept(first)
    assert settings.parse([*config, "--epochs", "9"]).epochs == 9
    assert settings.load(tmp_path / "first") == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0", "lr in {config} must be a number > 0, got '0'"),
        ("epoch: 3", "{config} must hold settings only, got 'epoch'; near it: epochs"),
        ("compile: perhaps", "compile in {config} must be true or false, got 'perhaps'"),
        ("- lr", "--config must be a YAML file of settings, name: value, got {config}"),
    ],
)
def test_wrong_configuration_is_refused_by_name(text, message, tmp_path, capsys):
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit):
        settings.parse(["--config", str(config), "--output", str(tmp_path / "new")])
    assert message.format(config=config) in capsys.readouterr().err
