"""Models for evaluate.py and explain.py: a run folder, a checkpoint, or a name of torchvision or timm."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from . import models
from .data.imagenet import CATEGORIES
from .methods import METHODS
from .models import Classifier
from .settings import Settings

CHECKPOINT = "last.pt"


class Loaded(NamedTuple):
    """A model ready to be asked.

    Attributes:
        title: what it is called in tables and pictures.
        classifier: with its weights, in eval mode.
        classes: the names of its outputs; empty where they are not known.
        settings: of the training it comes from; defaults with its model where there was none.
        history: the epochs of its training; empty where that is unknown.
    """

    title: str
    classifier: Classifier
    classes: tuple[str, ...]
    settings: Settings
    history: list[dict]


def load(source: str, flags, classes: int = 0) -> Loaded:
    """Build the model that ``source`` names.

    Args:
        source: a run folder (its last checkpoint), a checkpoint of train.py or anything else, or a model's name.
        flags: has model, pretrained, target_layer, image_size ("" or 0 where not given).
        classes: number of outputs, for a source that does not know; 0: the thousand of ImageNet.

    Raises:
        ValueError: the source is none of these, or a flag is missing; the message says which.
    """
    path = _checkpoint(source)
    if path is None:
        return _named(source, flags, classes)
    state = _read(path)
    if "classifier" in state:
        return _trained(path, state, flags)
    if not flags.model:
        raise ValueError(f"--model must be given for {path}, which is not one of train.py's checkpoints")
    settings = _settings(flags, Settings(model=flags.model, init=str(path), image_size=224))
    classifier = models.create(settings, classes or len(CATEGORIES))
    return _ready(path.stem, classifier, (), settings, [])


def settings_of(source: str) -> Settings | None:
    """The settings of the training a source comes from, None for what is not one of train.py's checkpoints."""
    path = _checkpoint(source)
    state = _read(path) if path else {}
    return _training(state) if "classifier" in state else None


def _read(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"MODEL must be a checkpoint that holds tensors only, got {str(path)!r}: {error}") from error
    return state if isinstance(state, dict) else {}


def _training(state: dict) -> Settings:
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in state["settings"].items()}
    own = {"model": state["classifier"]["name"], "image_size": state["classifier"]["image_size"], "seed": state["seed"]}
    return replace(Settings(**saved), init="", pretrained=False, **own)


def _named(name: str, flags, classes: int) -> Loaded:
    settings = _settings(flags, Settings(model=name, pretrained=flags.pretrained, image_size=224))
    try:
        classifier = models.create(settings, classes or len(CATEGORIES))
    except ValueError as error:
        text = str(error)
        if not text.startswith("--model"):
            raise
        raise ValueError(f"MODEL must be a run folder, a checkpoint or a model's name, got {name!r}; {text}") from error
    known = CATEGORIES if not classes or classes == len(CATEGORIES) else ()
    return _ready(name, classifier, known, settings, [])


def _trained(path: Path, state: dict, flags) -> Loaded:
    """One of train.py's checkpoints: it says itself what it is."""
    own = state["classifier"]
    settings = _settings(flags, replace(_training(state), target_layer=own["target_layer"]))
    classifier = models.create(replace(settings, init=str(path)), len(own["classes"]))
    if classifier.notes:
        raise ValueError(f"MODEL {path} does not fit {own['name']}: {'; '.join(classifier.notes)}")
    title = METHODS[state["method"]].title if state["method"] in METHODS else path.stem
    return _ready(title, classifier, tuple(own["classes"]), settings, state["history"])


def _ready(
    title: str, classifier: Classifier, classes: Sequence[str], settings: Settings, history: list[dict]
) -> Loaded:
    classifier.model.eval()
    return Loaded(title, classifier, tuple(classes), settings, history)


def _settings(flags, settings: Settings) -> Settings:
    """The settings with the flags that were given."""
    given = {"image_size": flags.image_size, "target_layer": flags.target_layer}
    return replace(settings, **{name: value for name, value in given.items() if value})


def _checkpoint(source: str) -> Path | None:
    """The file that holds the weights, None where the source is a name."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        if path.suffix in (".pt", ".pth", ".tar") or len(path.parts) > 2:
            raise ValueError(
                f"MODEL must be a run folder, a checkpoint or a model's name, got {source!r}, which is not there"
            )
        return None
    if (path / CHECKPOINT).is_file():
        return path / CHECKPOINT
    inside = sorted(str(file.parent) for file in path.glob(f"*/{CHECKPOINT}"))
    more = f"; it holds the runs {', '.join(inside)}" if inside else ""
    raise ValueError(f"MODEL must be a run folder with a {CHECKPOINT}, got {source!r}{more}")
