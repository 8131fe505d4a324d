"""Checkpoints, ours and others': whose they are, for which classes, and which of their tensors a model can take."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from . import storage
from .divergence import not_finite
from .storage import CheckpointError

FORMAT = 1
IDENTITY = ("format", "settings", "method", "seed", "classifier")
AVERAGED = re.compile(r"(^|[_./])(ema|swa|averaged|teacher)([_./]|$)")  # how others name averaged weights
SHOWN = 5  # names of a long list that a note gives
CLASSIFIER = {"name": str, "classes": list, "image_size": int, "target_layer": str}
ENTRIES = {
    **dict.fromkeys(("settings", "classifier", "model", "optimizer", "scaler"), dict),
    "ema": (dict, type(None)),
    **dict.fromkeys(("seed", "epoch", "step"), int),
    **dict.fromkeys(("best", "seconds"), (int, float)),
    "method": str,
    "ranks": list,
    "history": list,
}
# What a run folder may be given anew: how far a comparison goes, and where files have been moved to.
FREE = {"seeds", "data_root", "boxes", "init"}


def is_ours(state: dict) -> bool:
    """Whether train.py wrote a checkpoint."""
    return isinstance(state.get("classifier"), dict)


def read_ours(path: Path, flag: str) -> dict:
    """A checkpoint of train.py; raises CheckpointError where it is none, or another version's, or not finite."""
    state = storage.load(path, flag)
    if not is_ours(state):
        raise CheckpointError(f"{flag} must be a checkpoint of train.py, got {path}, which is another's")
    check_ours(state, path, flag)
    return state


def check_ours(state: dict, path: Path, flag: str) -> None:
    """Raise CheckpointError where one of train.py's checkpoints is of another version or not finite."""
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{flag} must be of format {FORMAT}, got {path} of format {state.get('format')}")
    check_entries(state, ENTRIES, path, flag)
    check_entries(state["classifier"], CLASSIFIER, path, flag)
    check_finite({**state["model"], **(state["ema"] or {})}, path, flag)


def check_entries(state: dict, types: dict[str, type | tuple], path: Path, flag: str) -> None:
    """Raise CheckpointError where a file lacks an entry, or has one of another type."""
    if lacking := [name for name, kind in types.items() if not isinstance(state.get(name, ...), kind)]:
        raise CheckpointError(f"{flag} must be a whole one of train.py's, got {path} without {', '.join(lacking)}")


def check_finite(weights: dict[str, Tensor], path: Path, flag: str) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    if broken := not_finite(weights):
        raise CheckpointError(f"{flag} must hold finite weights, got {path} with NaN or an infinity in {broken}")


def weights(checkpoint: dict) -> dict[str, Tensor]:
    """The state_dict of the model that was evaluated: the averaged weights if there are any."""
    return checkpoint["model"] if checkpoint["ema"] is None else checkpoint["ema"]


def load_whole(model: nn.Module, state: dict[str, Tensor], path: Path, flag: str) -> None:
    """Give a model all its weights; raises CheckpointError where they are not exactly its own."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{flag} must fit {type(model).__name__}, got {path}: {error}") from error


# ---- Whose it is


def check_identity(saved: dict, expected: dict, path: Path, flag: str) -> None:
    """Raise CheckpointError where a file is not of the training that ``expected`` names.

    Both have the keys of :data:`IDENTITY`, or ``expected`` some of what is inside them, which is then compared alone.
    """
    theirs, ours = _flat(saved), _flat(expected)
    if theirs.get("format") != FORMAT:
        raise CheckpointError(f"{flag} must be of format {FORMAT}, got {path} of format {theirs.get('format')}")
    check_classes(theirs.pop("classes", ()), ours.pop("classes", ()), str(path), "--data-root")
    names = ours if "format" not in ours else {**ours, **theirs}
    for name in names:
        own, wanted = theirs.get(name), ours.get(name)
        if name not in FREE and own != wanted:
            raise CheckpointError(f"{flag} must be of this training, got {path} with {name} {own}, not {wanted}")


def _flat(identity: dict) -> dict:
    parts = {name: value for name, value in identity.items() if name in (*IDENTITY, "classes")}
    return {**parts.pop("settings", {}), **parts.pop("classifier", {}), **parts}


def check_classes(own: Sequence[str], data: Sequence[str], source: str, flag: str) -> None:
    """Raise CheckpointError, naming the first that differs, where a model's classes are not those of the data."""
    if difference := first_difference(own, data):
        count = "" if len(own) == len(data) else f" has {len(data)} classes, got {source} with {len(own)};"
        raise CheckpointError(f"{flag}{count or ' must have the classes of ' + source + ':'} {difference}")


def first_difference(own: Sequence[str], data: Sequence[str], where: str = "the model") -> str:
    """Where a model's class names differ from those of the data, in words; "" where they do not.

    Example:
        >>> first_difference(["cat", "dog"], ["cat", "fox"])
        "class 1 is 'dog' in the model, 'fox' in the data"
    """
    length = max(len(own), len(data))
    for number, (a, b) in enumerate(zip(_padded(own, length), _padded(data, length), strict=True)):
        if a != b:
            names = (f"'{name}'" if name is not None else "none" for name in (a, b))
            return f"class {number} is {next(names)} in {where}, {next(names)} in the data"
    return ""


def _padded(names: Sequence[str], length: int) -> list[str | None]:
    """Names composed alike, as one file system or another spells them; None beyond their end."""
    return [unicodedata.normalize("NFC", name) for name in names] + [None] * (length - len(names))


# ---- What of it fits a model


class Fitting(NamedTuple):
    """The tensors of a checkpoint under a model's own names.

    Attributes:
        weights: those that have the model's shape.
        misfits: the others, in words, by what is wrong with them: shapes, missing, unknown.
        shapes: of every tensor that has a name of the model's.
        note: which weights these are, where that has to be said.
    """

    weights: dict[str, Tensor]
    misfits: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]]
    note: str


def fit(state: dict, model: nn.Module, path: Path | str, flag: str) -> Fitting:
    """Find a model's weights in a checkpoint from anywhere; raises CheckpointError where none fit, or are not finite.

    Of all dictionaries of tensors in it, and of all prefixes of their names (``module.``, ``backbone.``,
    ``encoder_q.``), those are taken by which most of the model's tensors fit, averaged weights first where as many do.
    """
    state_dict = model.state_dict()
    own = {name: tuple(value.shape) for name, value in state_dict.items()}
    found = list(_collections(state))
    if not found:
        raise CheckpointError(f"{flag} must be a checkpoint with a state_dict, got none in {str(path)!r}")
    candidates = [(where, prefix, count) for where in found for prefix, count in _prefixes(where[1], own).items()]
    if not candidates:
        raise CheckpointError(f"{flag} must be weights of {type(model).__name__}, got none that fit in {str(path)!r}")
    (where, tensors), prefix, _ = max(candidates, key=lambda one: (one[2], _is_averaged(one[0][0], one[1])))
    named = {_stripped(name, prefix, own): value for name, value in tensors.items()}
    weights = {name: value for name, value in named.items() if name in own and tuple(value.shape) == own[name]}
    check_finite(weights, path, flag)
    misfits = {
        "of another shape": [
            f"{name} {list(value.shape)} for {list(own[name])}"
            for name, value in named.items()
            if name in own and name not in weights
        ],
        # Counters and indices, which old and averaged checkpoints lack, are right as they are.
        "left as initialised": [n for n, v in state_dict.items() if n not in named and v.is_floating_point()],
        "not in the model": [name for name in named if name not in own],
    }
    shapes = {name: tuple(value.shape) for name, value in named.items() if name in own}
    note = f"{path}: the averaged weights are taken, {where or prefix}" if _is_averaged(where, prefix) else ""
    return Fitting(weights, misfits, shapes, note)


def listed(misfits: dict[str, list[str]], path: Path | str) -> list[str]:
    """What does not fit, a sentence a kind."""
    return [f"{path}: {len(names)} {what}: {_shortened(names)}" for what, names in misfits.items() if names]


def _shortened(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _collections(state: dict, where: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary in a checkpoint that holds tensors by name, torch.compile's own prefix taken off."""
    tensors = {k.replace("_orig_mod.", ""): v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield where, tensors
    for name, inner in state.items():
        if isinstance(inner, dict) and isinstance(name, str):
            yield from _collections(inner, f"{where}.{name}" if where else name)


def _prefixes(tensors: dict[str, Tensor], own: dict[str, tuple[int, ...]]) -> Counter:
    """How many tensors fit by each prefix of their names; batch counters alone are no fit."""
    counts = Counter()
    for name, value in tensors.items():
        parts = name.split(".")
        for number in range(len(parts)):
            if value.is_floating_point() and own.get(".".join(parts[number:])) == tuple(value.shape):
                counts["".join(f"{part}." for part in parts[:number])] += 1
    return counts


def _stripped(name: str, prefix: str, own: dict) -> str:
    """The model's own name of a tensor: without the prefix, or where it has a shorter one, without that."""
    parts = prefix.split(".")[:-1]
    for number in range(len(parts), -1, -1):
        shorter = "".join(f"{part}." for part in parts[:number])
        if name.startswith(shorter) and name.removeprefix(shorter) in own:
            return name.removeprefix(shorter)
    return name


def _is_averaged(where: str, prefix: str) -> bool:
    return bool(AVERAGED.search(where) or AVERAGED.search(prefix))
