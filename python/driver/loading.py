"""Models for evaluate.py and explain.py: a run folder, a checkpoint, or a name of torchvision or timm."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from . import checkpoints, models, storage
from .data.imagenet import CATEGORIES
from .methods import METHODS
from .models import Classifier
from .settings import Settings, kept

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

    @property
    def outputs(self) -> int:
        """How many classes the model tells apart."""
        return self.classifier.model.get_submodule(self.classifier.head).weight.shape[0]


def load(source: str, flags, classes: int = 0) -> Loaded:
    """Build the model that ``source`` names.

    Args:
        source: a run folder (its last checkpoint), a checkpoint of train.py or anything else, or a model's name.
        flags: has model, pretrained, target_layer, image_size ("" or 0 where not given).
        classes: number of outputs of a network without weights; 0: the thousand of ImageNet.

    Raises:
        ValueError: the source is none of these, or a flag is missing; the message says which.
    """
    path = _checkpoint(source)
    if path is None:
        return _named(source, flags, classes)
    state = storage.load(path, "MODEL")
    return _trained(path, state, flags) if checkpoints.is_ours(state) else _foreign(path, state, flags)


def settings_of(source: str) -> Settings | None:
    """The settings of the training a source comes from, None for what is not one of train.py's checkpoints."""
    path = _checkpoint(source)
    state = storage.load(path, "MODEL") if path else {}
    return _training(path, state) if checkpoints.is_ours(state) else None


def _training(path: Path, state: dict) -> Settings:
    checkpoints.check_ours(state, path, "MODEL")
    if unknown := state["settings"].keys() ^ kept(Settings()).keys():
        names = ", ".join(sorted(unknown))
        raise ValueError(f"MODEL must have the settings of this version of train.py, got {path} with others: {names}")
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in state["settings"].items()}
    own = {"model": state["classifier"]["name"], "image_size": state["classifier"]["image_size"], "seed": state["seed"]}
    return replace(Settings(**saved), init="", **own)


def _named(name: str, flags, classes: int) -> Loaded:
    settings = _settings(flags, Settings(model=name, pretrained=flags.pretrained, image_size=224))
    try:
        if flags.pretrained:
            classes = models.published_classes(name)
        classifier = models.create(settings, classes or len(CATEGORIES))
    except ValueError as error:
        text = str(error)
        if not text.startswith("--model"):
            raise
        raise ValueError(f"MODEL must be a run folder, a checkpoint or a model's name, got {name!r}; {text}") from error
    if not flags.pretrained:
        classifier.notes.append(f"{name} has random weights: nothing was trained; --pretrained takes the library's")
    known = CATEGORIES if flags.pretrained and classes == len(CATEGORIES) else ()
    return _ready(name, classifier, known, settings, [])


def _trained(path: Path, state: dict, flags) -> Loaded:
    """One of train.py's checkpoints: it says itself what it is."""
    own = state["classifier"]
    settings = _settings(flags, replace(_training(path, state), target_layer=own["target_layer"]))
    classifier = models.create(replace(settings, pretrained=False), len(own["classes"]))  # whose normalisation stays
    checkpoints.load_whole(classifier.model, checkpoints.weights(state), path, "MODEL")
    title = METHODS[state["method"]].title if state["method"] in METHODS else path.stem
    return _ready(title, classifier, tuple(own["classes"]), settings, state["history"])


def _foreign(path: Path, state: dict, flags) -> Loaded:
    """Another's checkpoint of a known network: as many classes as its head has, which must be there, and all else."""
    if not flags.model:
        raise ValueError(f"--model must be given for {path}, which is not one of train.py's checkpoints")
    settings = _settings(flags, Settings(model=flags.model, image_size=224))
    classifier = models.create(settings, len(CATEGORIES))
    head = f"{classifier.head}.weight"
    shapes = checkpoints.fit(state, classifier.model, path, "MODEL").shapes
    if head not in shapes:
        raise ValueError(f"MODEL must be a whole classifier, got {path} without {head}: train it first, from --init")
    if shapes[head][0] != len(CATEGORIES):
        classifier = models.create(settings, shapes[head][0])
    fitting = checkpoints.fit(state, classifier.model, path, "MODEL")
    extra = {"not in the model": fitting.misfits.pop("not in the model")}
    if lacking := checkpoints.listed(fitting.misfits, path):
        raise ValueError(f"MODEL must hold all weights of {flags.model}, got {'; '.join(lacking)}")
    classifier.model.load_state_dict(fitting.weights, strict=False)
    notes = [fitting.note, *checkpoints.listed(extra, path), f"{path} does not say what its classes are called"]
    return _ready(path.stem, classifier._replace(notes=[note for note in notes if note]), (), settings, [])


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
