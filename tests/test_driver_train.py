"""python/train.py from the command line: every file it writes, resuming, stopping, wrong flags."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from driver import engine, pictures, report, settings, storage
from driver.data.demo import make_splits
from driver.methods import METHODS
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
TINY = ["--train-images", "64", "--val-images", "20", "--test-images", "40", "--warmup", "1"]
MEASURES = {
    "accuracy",
    "content_heatmap",
    "flat_content_heatmap",
    "sharpness_matched_content_heatmap",
    "effective_area",
    "pointing_game",
    "consistency",
    "sharpness_matched_consistency",
    "twin_retrieval",
    "dead_heatmaps",
    "seconds",
}
REPORT_FILES = {"config.yaml", "summary.json", "gallery.png", "curves.png"}
RUN_FILES = {"metrics.csv", "last.pt", "best.pt", "test.pt"}


@contextmanager
def started(*flags):
    """The driver as a process of one thread, open to SIGINT even where this process was started to ignore it."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, ROOT / "python" / "train.py", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    signal.signal(signal.SIGINT, inherited)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def drive(*flags) -> str:
    """Run the driver to its end; returns what it printed."""
    with started(*flags) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def wait_for_epoch(process, folder, epoch):
    """Until that epoch stands in the run's CSV."""
    path, deadline = folder / "metrics.csv", time.monotonic() + 300
    while not (path.exists() and len(path.read_text().splitlines()) > epoch):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same(first, second):
    """Equal to the last bit however nested, except for the seconds it took."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds"}:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A tiny comparison over two seeds: its run folder and what it printed."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    return folder, drive("--compare", "--seed", 5, "--seeds", 2, "--epochs", 2, "--output", folder, *TINY)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run folder of four epochs trained without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    drive("--epochs", 4, "--output", folder, *TINY)
    return folder


def test_comparison_writes_every_file(comparison):
    folder, _ = comparison
    runs = {f"{method}-seed{seed}" for method in METHODS for seed in (5, 6)}
    assert {path.name for path in folder.iterdir()} == REPORT_FILES | runs
    for run in runs:
        names = {path.name for path in (folder / run).iterdir()}
        assert names >= RUN_FILES
        assert all(name.startswith("events.out.tfevents") for name in names - RUN_FILES)
        assert len(names - RUN_FILES) == 1


def test_summary_has_every_measure_of_every_method(comparison):
    summary = json.loads((comparison[0] / "summary.json").read_text())
    assert summary.keys() == METHODS.keys()
    for column in summary.values():
        assert column.keys() == MEASURES | {"spread", "runs"}
        assert [run["seed"] for run in column["runs"]] == [5, 6]
        for name in MEASURES:
            first, second = (run[name] for run in column["runs"])
            assert column[name] == pytest.approx((first + second) / 2)
            assert column["spread"][name] == pytest.approx(abs(first - second) / 2**0.5)
            assert name == "seconds" or 0 <= column[name] <= 100
    baseline = summary["baseline"]
    assert baseline["sharpness_matched_content_heatmap"] == pytest.approx(baseline["content_heatmap"], abs=1e-4)
    assert baseline["sharpness_matched_consistency"] == pytest.approx(baseline["consistency"], abs=1e-4)


def trained_without_weight(method):
    """The parameters after an epoch in which the heatmap loss had weight 0."""
    chosen = settings.Settings(train_images=64, cgc_weight=0.0, ramp=0.0)
    state = engine.State(engine.Run(method, 7, Path()), chosen, torch.device("cpu"))
    split = make_splits({"train": 64}, 7)["train"]
    with engine.GradCAM(state.model, engine.TARGET_LAYER) as cam, tqdm(disable=True) as progress:
        engine.train_epoch(cam, state, chosen, split, 1, torch.device("cpu"), progress)
    return state.model.state_dict()


def test_methods_differ_by_their_heatmap_loss_alone():
    """The same start, order, crops and cross-entropy: without the loss's weight they are one method."""
    assert_same(trained_without_weight("baseline"), trained_without_weight("cgc"))
    assert_same(trained_without_weight("baseline"), trained_without_weight("cgc_consistent"))


def test_table_is_aligned(comparison):
    lines = comparison[1].split("test split, %")[1].split("\n\n")[0].splitlines()
    rows = lines[2:]
    assert len(rows) == len(MEASURES)
    assert len({len(row) for row in rows}) == 1
    assert all(len(re.findall(r"\d ± \d", row)) == len(METHODS) for row in rows)


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
    assert state.keys() >= ({"logits", "heatmaps", "aug_heatmaps"} if name == "test.pt" else {"model", "optimizer"})


def test_checkpoint_restores_the_tested_model(comparison):
    folder = comparison[0] / "cgc_consistent-seed5"
    run = engine.Run("cgc_consistent", 5, folder)
    chosen = settings.Settings(train_images=64, epochs=2)
    state = engine.State(run, chosen, torch.device("cpu"))
    state.load(run.last)
    split = make_splits({"test": 40}, 5)["test"]
    with engine.GradCAM(state.model, engine.TARGET_LAYER) as cam:
        crops = engine.evaluation_crops(split, 5, "test")
        explained = engine.explain(cam, split, crops, torch.device("cpu"))
    saved = storage.load(run.results)
    for name, value in explained._asdict().items():
        torch.testing.assert_close(value, saved[name], rtol=1e-4, atol=1e-6)


def test_finished_runs_are_not_trained_again(comparison):
    folder, printed = comparison
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/last.pt")}
    (folder / "summary.json").unlink()
    again = drive("--resume", "--output", folder)
    assert len(kept) == 6
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert (folder / "summary.json").exists()
    assert again.split("test split")[1] == printed.split("test split")[1]


def test_single_run_fills_its_folder(straight):
    names = {path.name for path in straight.iterdir()}
    assert names >= REPORT_FILES | RUN_FILES
    summary = json.loads((straight / "summary.json").read_text())
    assert summary.keys() == {"cgc_consistent"}
    assert summary["cgc_consistent"]["sharpness_matched_content_heatmap"] is None
    assert summary["cgc_consistent"]["spread"]["accuracy"] is None


def test_killed_run_resumes_bit_by_bit(straight, tmp_path):
    folder = tmp_path / "killed"
    with started("--epochs", 4, "--output", folder, *TINY) as process:
        wait_for_epoch(process, folder, 3)
        process.kill()
    assert storage.load(folder / "last.pt")["epoch"] >= 2
    drive("--resume", "--output", folder)
    for name in ("last.pt", "best.pt", "test.pt"):
        assert_same(storage.load(folder / name), storage.load(straight / name))


def test_interrupt_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "a folder"
    with started("--epochs", 50, "--output", folder, *TINY) as process:
        wait_for_epoch(process, folder, 2)
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
        ("--method magic", "--method: invalid choice: 'magic'"),
        ("--method cgc --compare", "--compare: not allowed with argument --method"),
        ("--batch-size 64 --train-images 63", "--batch-size must be at most --train-images 63, got 64"),
        ("--resume", "--resume must come with --output FOLDER"),
        ("--resume --output {new}", "must be a run folder to --resume, got {new}"),
        ("--output {used}", "must be a new or empty folder, got {used}; add --resume"),
        ("--output {file}", "--output must be a folder, got the file {file}"),
        ("--resume --output {used} --epochs 9", "--epochs must be 4 as in {used}/config.yaml to --resume, got 9"),
        ("--resume --output {used} --seeds 2", "--seeds must be 1 as in {used}/config.yaml to --resume, got 2"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ],
)
def test_wrong_flags_are_refused_by_name(flags, message, tmp_path, straight, capsys):
    places = {"new": tmp_path / "new", "used": straight, "file": straight / "config.yaml"}
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
    assert text.count("(default:") >= 17


def test_schedule_warms_up_and_falls_to_zero():
    values = [engine.schedule(step / 10, warmup=2, epochs=18) for step in range(1, 181)]
    assert values[9] == pytest.approx(0.5)
    assert max(values) == values[19] == pytest.approx(1)
    assert values[99] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert engine.schedule(0.5, warmup=0, epochs=1) == pytest.approx(0.5)
    assert [engine.schedule(x, warmup=2, epochs=1) for x in (0.25, 0.5, 1)] == pytest.approx([0.5, 1, 0])


def test_ramp_rises_over_its_share():
    assert [engine.ramp(x, 0.5) for x in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert engine.ramp(0, 0) == 1


def test_gallery_takes_the_first_of_each_class():
    assert pictures.first_of_each_class(torch.tensor([3, 1, 3, 1, 0])) == [4, 1, 0]


def test_control_is_the_baseline_at_the_methods_sharpness():
    """Heatmaps that are the baseline's squared are matched exactly: nothing but sharpening scores nothing."""
    split = make_splits({"test": 30}, 0)["test"]
    generator = torch.Generator().manual_seed(0)
    maps, aug_maps = torch.rand(2, 30, 64, 64, generator=generator, dtype=torch.float64)
    logits = torch.zeros(30, 10)
    measured = report.measure(
        engine.Explained(logits, maps**2, aug_maps**2), engine.Explained(logits, maps, aug_maps), split, 0
    )
    assert measured["content_heatmap"] == pytest.approx(measured["sharpness_matched_content_heatmap"], abs=1e-6)
    assert measured["consistency"] == pytest.approx(measured["sharpness_matched_consistency"], abs=1e-6)


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
