"""What mutants of any language have in common: edits, identity, siblings of a name, sampling."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

# Words that name two sides of one thing: exchanged within an identifier, they give its sibling.
OPPOSITES = """
    x y, row column, row col, rows columns, rows cols, height width, h w, h2 w2, low high, lower upper, start stop,
    begin end, first last, top left, left right, original augmented, features gradients, rows keys, row key, i j, m n
"""
PAIRS = [pair.split() for pair in OPPOSITES.replace("\n", " ").split(",")]


class Edit(NamedTuple):
    """source[start:stop] becomes text."""

    kind: str
    start: int
    stop: int
    text: str


class Mutant(NamedTuple):
    """One edit of one function. original and mutated: the lines it touches, white space collapsed."""

    file: str
    line: int
    function: str
    kind: str
    original: str
    mutated: str
    edit: Edit

    @property
    def identity(self) -> tuple[str, ...]:
        """What stays the same when lines are added elsewhere in the file."""
        return self.file, self.function, self.kind, self.original, self.mutated

    def apply(self, source: str) -> str:
        return source[: self.edit.start] + self.edit.text + source[self.edit.stop :]


def to_mutant(file: str, function: str, source: str, edit: Edit) -> Mutant:
    first = source.rfind("\n", 0, edit.start) + 1
    last = source.find("\n", edit.stop)
    last = len(source) if last < 0 else last
    mutated = source[first : edit.start] + edit.text + source[edit.stop : last]
    line = source.count("\n", 0, edit.start) + 1
    return Mutant(file, line, function, edit.kind, collapse(source[first:last]), collapse(mutated), edit)


def collapse(text: str) -> str:
    return " ".join(text.split())


def siblings(name: str) -> list[str]:
    """Names that differ in one word by its opposite, as `low_share` and `high_share`, or by `aug_`."""
    words = re.findall(r"[A-Za-z0-9]+|_+", name)
    found = [name[4:]] if name.startswith("aug_") else [f"aug_{name}"]
    for pair in PAIRS:
        for word, other in (pair, pair[::-1]):
            for same, opposite in ((word, other), (word.upper(), other.upper())):
                found += ["".join([*words[:i], opposite, *words[i + 1 :]]) for i, w in enumerate(words) if w == same]
    return found


def strides_like(name: str, names: Iterable[str]) -> list[str]:
    """Other strides among the names."""
    return sorted({n for n in names if "stride" in n.lower() and n != name}) if "stride" in name.lower() else []


def other_integers(value: int) -> list[int]:
    """What an integer becomes: its neighbours, but nothing below zero."""
    return [n for n in (value - 1, value + 1) if n >= 0]


def other_floats(value: float) -> list[float]:
    """What a floating-point number becomes."""
    return {0.0: [1.0], 0.5: [0.25, 0.0], 1.0: [0.0, 2.0]}.get(value, [2 * value])


def sample(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """All of them in an order by seed: kinds take turns, and within a kind the files, so that none dominates."""
    generator = random.Random(seed)
    by_kind: dict[str, dict[str, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for mutant in sorted(set(mutants), key=lambda m: (m.identity, m.line, m.edit)):
        by_kind[mutant.kind][mutant.file].append(mutant)
    queues = []
    for files in by_kind.values():
        for group in files.values():
            generator.shuffle(group)
        groups = list(files.values())
        generator.shuffle(groups)
        queues.append(_take_turns(groups))
    generator.shuffle(queues)
    return _take_turns(queues)


def _take_turns(queues: list[list[Mutant]]) -> list[Mutant]:
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
