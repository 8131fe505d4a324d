"""The command line: every flag, its check, and how --resume reads a run folder's settings back."""

import argparse
import math
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import torch
import yaml

from .methods import METHODS
from .storage import replacing

CONFIG = "config.yaml"
FREE_ON_RESUME = {"output", "resume", "device", "progress"}  # flags that leave the results as they are


@dataclass(frozen=True)
class Settings:
    """All that decides a training; the heatmap loss's weights were chosen on the validation split of seed 10."""

    method: str = "cgc_consistent"
    compare: bool = False
    seed: int = 0
    seeds: int = 1
    epochs: int = 18
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 2
    cgc_weight: float = 0.5
    consistency: float = 10.0
    temperature: float = 0.5
    ramp: float = 0.5
    train_images: int = 2000
    val_images: int = 500
    test_images: int = 3000
    device: str = "auto"
    progress: bool = True
    output: str = ""
    resume: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to train: all of them in a comparison."""
        return tuple(METHODS) if self.compare else (self.method,)

    @property
    def all_seeds(self) -> range:
        """The seeds to train with."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images per split."""
        return {"train": self.train_images, "val": self.val_images, "test": self.test_images}


def parse(arguments: list[str] | None = None) -> Settings:
    """Read the command line; exits with a message that names the flag if something is wrong.

    Example:
        >>> parse(["--epochs", "3"]).epochs
        3
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    try:
        return _resumed(given) if given.get("resume") else _fresh(given)
    except ValueError as error:
        parser.error(str(error))


def save(settings: Settings) -> None:
    """Write config.yaml into the run folder."""
    with replacing(Path(settings.output, CONFIG)) as path:
        path.write_text(yaml.safe_dump(_kept(settings), sort_keys=False))


def _fresh(given: dict) -> Settings:
    settings = Settings(**{"output": _default_output(given), **given})
    _check(settings)
    folder = Path(settings.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output must be a folder, got the file {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"--output must be a new or empty folder, got {folder}; add --resume to continue that training"
        )
    return settings


def _resumed(given: dict) -> Settings:
    if "output" not in given:
        raise ValueError("--resume must come with --output FOLDER, the run folder to continue")
    config = Path(given["output"], CONFIG)
    if not config.is_file():
        raise ValueError(f"--output must be a run folder to --resume, got {given['output']} without a {CONFIG}")
    saved = _load(config)
    free = FREE_ON_RESUME | ({"seeds"} if saved["compare"] else set())
    for name in given.keys() - free:
        if given[name] != saved[name]:
            raise ValueError(f"{_flag(name)} must be {saved[name]} as in {config} to --resume, got {given[name]}")
    settings = Settings(**{**saved, **given})
    if settings.seeds < saved["seeds"]:
        raise ValueError(f"--seeds must be at least {saved['seeds']} as in {config} to --resume, got {settings.seeds}")
    _check(settings)
    return settings


def _load(config: Path) -> dict:
    saved = yaml.safe_load(config.read_text())
    expected = _kept(Settings()).keys()
    if not isinstance(saved, dict) or saved.keys() != expected:
        raise ValueError(f"{config} must hold the settings {', '.join(expected)}; was it written by another version?")
    return saved


def _kept(settings: Settings) -> dict:
    return {name: value for name, value in asdict(settings).items() if name not in FREE_ON_RESUME}


def _default_output(given: dict) -> str:
    name = "compare" if given.get("compare") else given.get("method", Settings.method)
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}"


def _check(settings: Settings) -> None:
    if settings.batch_size > settings.train_images:
        raise ValueError(
            f"--batch-size must be at most --train-images {settings.train_images}, got {settings.batch_size}"
        )
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device must be cpu or auto where PyTorch finds no CUDA device, got cuda")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a classifier whose Grad-CAM heatmaps are consistent, on digits pasted on photographs.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to train").add_mutually_exclusive_group()
    what.add_argument("--method", choices=METHODS, help=_help("method", "; ".join(_describe_methods())))
    what.add_argument("--compare", action="store_true", help="train all methods, one after the other, and compare them")

    add = _adder(parser.add_argument_group("repetition"))
    add("seed", _integer(0), "first seed; it decides the data, the initial weights, the order and the crops")
    add("seeds", _integer(1), "how many seeds, counting up from --seed")

    add = _adder(parser.add_argument_group("loss: CE of three views + weight * (CGC + consistency * (1 - cosine))"))
    add("cgc_weight", _number(0), "weight of the heatmap loss beside the cross-entropy, lambda in the paper")
    add("consistency", _number(0), "weight of 1 - cosine inside the heatmap loss; used by cgc_consistent")
    add("temperature", _number(0, strict=True), "temperature of the contrast, tau in the paper")
    add("ramp", _number(0, 1), "share of the training over which the heatmap loss rises linearly from 0 to its weight")

    add = _adder(parser.add_argument_group("optimisation: AdamW, learning rate warmed up linearly, then cosine to 0"))
    add("epochs", _integer(1), "passes over the training images")
    add("warmup", _integer(0), "epochs of warm-up, at most half of all")
    add("batch_size", _integer(2), "images per step; the CGC loss contrasts the images of a batch")
    add("lr", _number(0, strict=True), "highest learning rate")
    add("weight_decay", _number(0), "decoupled weight decay")

    add = _adder(parser.add_argument_group("data: 64 x 64 images made at the start, in memory"))
    add("train_images", _integer(2), "images to train on")
    add("val_images", _integer(10), "images for the curves and the best checkpoint")
    add("test_images", _integer(10), "images for the final table, looked at once")

    run = parser.add_argument_group("run")
    run.add_argument("--output", metavar="FOLDER", help="run folder (default: runs/<date>-<time>-<method or compare>)")
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue the training in --output after its last finished epoch, with its settings; what is finished "
        "is not trained again; a comparison may be given more --seeds",
    )
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), help=_help("device", "auto takes CUDA if present"))
    run.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser


def _describe_methods() -> list[str]:
    return [f"{name}: {method.summary}" for name, method in METHODS.items()]


def _adder(group):
    def add(name, kind, text):
        group.add_argument(_flag(name), type=kind, metavar="N" if kind.whole else "X", help=_help(name, text))

    return add


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str, text: str) -> str:
    default = {field.name: field.default for field in fields(Settings)}[name]
    return f"{text} (default: {default})"


def _integer(low: int):
    """An argparse type: an integer not below `low`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f"must be an integer >= {low}, got {text!r}")
        return value

    convert.whole = True
    return convert


def _number(low: float, high: float = math.inf, strict: bool = False):
    """An argparse type: a finite number from `low` to `high`, `low` itself excluded if `strict`."""
    bounds = f"{'>' if strict else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high and not (strict and value == low)):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text!r}")
        return value

    convert.whole = False
    return convert
