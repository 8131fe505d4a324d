"""python/experiments.py: what it trains, that it goes on where it was stopped, and the table it writes."""

import re
from pathlib import Path

import experiments
import pytest
import train
from driver import settings

from tests.driver.cases import TINY

FLAGS = ["--", *TINY, "--epochs", "1"]


@pytest.fixture
def commands(monkeypatch):
    """The runs start in this process; their commands, without interpreter and script."""
    seen = []

    def run(command, check, env):
        assert check
        assert Path(command[1]).name == "train.py"
        seen.append(command[2:])
        assert train.main(command[2:]) == 0

    monkeypatch.setattr(experiments.subprocess, "run", run)
    return seen


def main(folder, *arguments):
    return experiments.main(["--output", str(folder), "--seeds", "1", *arguments])


def test_it_trains_what_is_missing_and_writes_the_table(commands, tmp_path, capsys):
    assert main(tmp_path, "--only", "backgrounds", *FLAGS) == 0
    assert len(commands) == 3
    assert all(command[command.index("--backgrounds") + 1] == "class" for command in commands)
    table = (tmp_path / "results.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "seeds" not in line]
    assert [row.split("|")[1].strip() for row in rows] == ["cross-entropy", "CGC", "CGC + consistency"]
    assert len({row.count("|") for row in rows}) == 1
    assert "3 of 3 runs" in table
    assert "--backgrounds class --method ... --seed ..." in table
    said = capsys.readouterr().out
    assert table in said
    assert "backgrounds: cross-entropy, seed 0 (1 of 3)\n" in said
    assert re.search(r"^backgrounds: CGC \+ consistency, seed 0 \(3 of 3, 0\d:\d\d left\)$", said, re.M)
    assert main(tmp_path, "--only", "backgrounds", *FLAGS) == 0
    assert len(commands) == 3


def test_stopped_it_says_how_to_go_on_and_does(tmp_path, monkeypatch, capsys):
    """Finished runs stay, a run that has its settings is resumed, the others start."""
    commands = []

    def run(command, check, env):
        folder = Path(command[command.index("--output") + 1])
        commands.append((folder.name, command[2]))
        settings.save(settings.Settings(output=str(folder)))
        if len(commands) == 2:
            raise KeyboardInterrupt
        (folder / "test.pt").touch()

    monkeypatch.setattr(experiments.subprocess, "run", run)
    monkeypatch.setattr(experiments, "write_table", lambda *_: "")
    assert main(tmp_path, "--only", "distractors") == 130
    assert "To go on:" in capsys.readouterr().out
    assert main(tmp_path, "--only", "distractors") == 0
    first, second, third = (f"{method}-seed0" for method in ("baseline", "cgc", "cgc_consistent"))
    assert commands == [(first, "--method"), (second, "--method"), (second, "--resume"), (third, "--method")]


def test_the_unlabeled_images_share_the_baseline_of_the_labelled_ones():
    runs = experiments.planned("unlabeled", experiments.EXPERIMENTS["unlabeled"], Path("out"), 3)
    assert len(runs) == 15
    assert {run.folder.parts[1] for run in runs if run.method == "baseline"} == {"fraction"}
    assert {run.folder.parts[1] for run in runs if run.method != "baseline"} == {"unlabeled"}


def test_a_seed_counts_once_all_its_methods_are_finished(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(experiments.report, "finish", lambda _, runs, __: shown.extend(runs) or {})
    for run in experiments.planned("distractors", experiments.EXPERIMENTS["distractors"], tmp_path, 2)[:-1]:
        run.folder.mkdir(parents=True)
        settings.save(settings.Settings(output=str(run.folder)))
        run.results.touch()
    assert "3 of 6 runs" in experiments.write_table(tmp_path, 2)
    assert {run.seed for run in shown} == {0}
