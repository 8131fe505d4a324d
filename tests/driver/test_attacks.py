"""Files that are meant to do harm: nothing in them is executed, and nothing outside is read, written or asked for."""

import io
import os
import pickle
import socket
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import evaluate
import explain
import pytest
import torch
import train
from driver import storage
from driver.data import CorruptImage, DataError, pasting
from driver.data.images import FORMATS, read_image
from PIL import Image
from scipy.io import loadmat, savemat
from torch import nn

from tests.driver import data_sets
from tests.driver.cases import TINY, opened, refused, run, train_on
from tests.support import ROOT

MARK = "executed"  # a folder that an attack makes


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    """Nor is anybody asked for anything."""

    def connect(*_):
        pytest.fail("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(MARK).exists()


# ---- Checkpoints.


class Payload:
    """What pickle would run."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def test_the_payload_is_one():
    pickle.loads(pickle.dumps(Payload()))
    Path(MARK).rmdir()


def hidden(path: Path) -> None:
    """Behind tensors."""
    torch.save({"state_dict": {"head.weight": torch.zeros(2, 2)}, "args": Payload()}, path)


def old(path: Path) -> None:
    torch.save(Payload(), path, _use_new_zipfile_serialization=False)


def plain(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def called_otherwise(path: Path) -> None:
    """By a name of files that hold tensors alone."""
    plain(path)


def tarred(path: Path) -> None:
    """As PyTorch wrote before 0.1.10."""
    content = pickle.dumps(Payload())
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


def scripted(path: Path) -> None:
    """TorchScript, which is code."""
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("write", [hidden, old, plain, tarred, scripted, called_otherwise])
def test_no_checkpoint_is_executed(write, victim, tmp_path, capsys):
    """By none of the four ways that lead to one."""
    path = tmp_path / ("evil.safetensors" if write is called_otherwise else "evil.pt")
    write(path)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_bytes((victim / "config.yaml").read_bytes())
    (run_folder / "last.pt").write_bytes(path.read_bytes())
    data_sets.save_image(tmp_path / "a.png", 0)
    for main, *flags in (
        (train.main, "--init", path, "--output", tmp_path / "new", *TINY),
        (train.main, "--resume", "--output", run_folder),
        (
            evaluate.main,
            path,
            "--model",
            "small_resnet",
            "--data",
            "demo",
            "--test-images",
            10,
            "--output",
            tmp_path / "out",
        ),
        (explain.main, tmp_path / "a.png", "--checkpoint", path, "--model", "small_resnet"),
    ):
        assert "must be a checkpoint that holds tensors only, got" in refused(capsys, main, *flags), main.__module__


@pytest.mark.parametrize("model", ["timm/hf-hub:evil/model", "timm/local-dir:.", "timm/resnet18.hf-hub:evil/model"])
def test_a_checkpoint_names_no_model_elsewhere(victim, tmp_path, capsys, model):
    state = storage.load(victim / "last.pt")
    state["classifier"]["name"] = model
    storage.save(state, tmp_path / "evil.pt")
    said = refused(capsys, evaluate.main, tmp_path / "evil.pt", "--output", tmp_path / "out")
    assert f"--model: timm has no {model.removeprefix('timm/')!r}" in said


def test_names_of_classes_lead_to_no_other_folder(victim, tmp_path):
    state = storage.load(victim / "last.pt")
    state["classifier"]["classes"] = ["../../escaped", str(tmp_path / "escaped")]
    storage.save(state, tmp_path / "evil.pt")
    data_sets.save_image(tmp_path / "a.png", 0)
    inside = tmp_path / "in" / "out"
    before = set(tmp_path.rglob("*"))
    for number in ("0", "1"):
        flags = ["--checkpoint", tmp_path / "evil.pt", "--class", number, "--output", inside, "--device", "cpu"]
        assert run(explain.main, tmp_path / "a.png", *flags) == 0
    assert len(list(inside.glob("a-*.png"))) == 2
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set(inside.iterdir())


# ---- Settings.

EXECUTED = f"!!python/object/apply:os.mkdir [{MARK}]"
BOMB = ", ".join(["&a0 [1, 1]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])  # 9 ** 39


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"lr: {EXECUTED}", "must be a readable YAML file"),
        (f"{EXECUTED}: 1", "must be a readable YAML file"),
        ("[" * 2_000, "must be a readable YAML file"),
        ("decay_epochs: [&a [1, 1], *a]", "decay_epochs in {path} must be a value or a list of values"),
        ("compile: &a [*a]", "compile in {path} must be a value or a list of values"),
        (f"decay_epochs: [{BOMB}]", "decay_epochs in {path} must be a value or a list of values"),
    ],
    ids=["value", "key", "deep", "nested", "endless", "bomb"],
)
def test_settings_are_data(victim, tmp_path, capsys, text, message):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    for flags in (["--config", folder / "config.yaml", "--output", tmp_path / "new"], ["--resume", "--output", folder]):
        assert message.format(path=folder / "config.yaml") in refused(capsys, train.main, *flags)


# ---- Annotations.


@pytest.fixture
def secret(tmp_path):
    """An image beside the data set."""
    data_sets.save_image(tmp_path / "secret.png", 0)
    return tmp_path / "secret.png"


def rename_in(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def in_cub(root, name):
    folder = data_sets.make_cub(root) / "CUB_200_2011"
    first = (folder / "images.txt").read_text().splitlines()[0].split()[1]
    rename_in(folder / "images.txt", first, f"{name}.png")


def in_aircraft(root, name):
    folder = data_sets.make_aircraft(root) / "fgvc-aircraft-2013b" / "data"
    for path in folder.glob("images_*.txt"):
        rename_in(path, "0034309", name)


def in_cars(root, name):
    path = data_sets.make_cars(root) / "devkit" / "cars_train_annos.mat"
    rows = loadmat(path)["annotations"]
    rows["fname"][0, 0] = f"{name}.png"
    savemat(path, {"annotations": rows})


def in_unrel(root, name):
    path = data_sets.make_unrel(root) / "annotations.mat"
    rows = loadmat(path, simplify_cells=True)["annotations"]
    rows[0]["filename"] = f"{name}.png"
    cell = data_sets._cell(list(rows))
    savemat(path, {"annotations": cell})


LISTS = {"cub": in_cub, "aircraft": in_aircraft, "cars": in_cars, "unrel": in_unrel}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_lists_name_no_image_outside(name, absolute, tmp_path, secret):
    stem = str(secret.with_suffix("")) if absolute else "../../../../secret"
    LISTS[name](tmp_path / "data", stem)
    with pytest.raises(DataError, match=r"a file below .* is expected, got '.*secret"):
        opened(tmp_path / "data", name)


def test_boxes_of_an_image_outside_name_none(tmp_path, secret):
    root = data_sets.make_folder(tmp_path / "data")
    with (root / "boxes.csv").open("a") as file:
        file.write(f"../secret.png,0,0,9,9\n{secret},0,0,9,9\n")
    assert "2 images named there are not here" in str(opened(root, boxes=str(root / "boxes.csv")).notes)


DOCTYPES = {
    "a file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    "an address": '<!DOCTYPE a SYSTEM "http://localhost:9/evil.dtd">',
    "a parameter": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>',
    "a bomb": '<!DOCTYPE a [<!ENTITY x "9"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>',
}


@pytest.mark.parametrize("kind", DOCTYPES)
def test_annotations_declare_nothing(kind, tmp_path):
    root = data_sets.make_imagenet(tmp_path / "data")
    for path in root.rglob("*.xml"):
        text = path.read_text().replace(f"<width>{data_sets.WIDTH}<", "<width>&x;<")
        path.write_text(f'<?xml version="1.0"?>{DOCTYPES[kind]}{text}')
    with pytest.raises(CorruptImage, match="must not declare a document type"):
        opened(root, "imagenet").val[0]


# ---- Images.


@pytest.mark.parametrize("read", [read_image, lambda path: pasting._cut_out(path, 8)], ids=["image", "cut-out"])
def test_an_image_is_not_a_program(tmp_path, monkeypatch, read):
    """PostScript, for which Pillow calls Ghostscript, whatever the file is called."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\nmkdir {tmp_path / MARK}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    Path("a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(CorruptImage, match=r"a\.jpg"):
        read("a.jpg")


def test_pictures_are_opened_in_one_place():
    """Which knows the formats that are no programs; demo.py opens its own library's."""
    folder = ROOT / "python" / "driver"
    found = {path.name for path in folder.rglob("*.py") if "Image.open(" in path.read_text()}
    assert found == {"images.py", "demo.py"}


@pytest.mark.parametrize("name", [*FORMATS, "MPO"])  # which is a JPEG of several
def test_images_of_every_other_kind_are_read(name):
    Image.new("RGB", (8, 6), "red").save("a.bin", name)
    assert read_image("a.bin").size == (8, 6)


# ---- The page.

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """The run folder of a training whose data set has names that are meant to be read as HTML."""
    place = tmp_path_factory.mktemp("place")
    root = data_sets.make_folder(place / '"><svg onload=alert(2)>')
    for path in root.glob("*/cat"):
        path.rename(path.with_name(EVIL))
    for path in root.glob("*/dog"):
        path.rename(path.with_name("' onfocus='alert(3)"))
    assert train_on(root, place / "run") == 0
    return place / "run"


class Page(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def seen(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def assert_harmless(path: Path) -> None:
    """Its one script is ours, nothing listens to an event, nothing is asked for."""
    page = seen(path)
    assert page.tags.count("script") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for name, value in page.attributes if name in ("src", "href"))


def test_names_are_no_html(victim):
    text = (victim / "report.html").read_text()
    assert_harmless(victim / "report.html")
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert EVIL not in text


def test_a_name_of_a_checkpoint_is_no_html(victim, tmp_path):
    """Nor is its own text for a method that is unknown here."""
    state = storage.load(victim / "last.pt")
    state["method"] = "</title><script>alert(4)</script>"
    storage.save(state, tmp_path / f"{EVIL}.pt")
    flags = ["--output", tmp_path / "out", "--explainer", "ours", "--device", "cpu"]
    assert run(evaluate.main, tmp_path / f"{EVIL}.pt", *flags) == 0
    assert_harmless(tmp_path / "out" / "report.html")
