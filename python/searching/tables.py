"""Tables of what is finished."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from driver.bootstrap import paired

from .measures import TEMPERATURES

COLUMNS = ("accuracy", "box", "mask", "area", "pointing", "peak", "consistency", "likeness", "second dead")
COLUMNS += ("denser", "denser other")
CONTROLS = tuple(f"{name} {how}" for name in ("box", "mask", "peak") for how in ("power", "blur", "centred", "norm"))
EXPLAINED = ("box", "mask", "peak", "likeness")


def tables(rows: list[dict]) -> str:
    """Of every setting and split a table of measures, one of controls, one of log-probabilities explained."""
    written = []
    keys = ("split", "steps", "train_objects")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in keys) == key]
        few = f", {key[2]} objects a class" if key[2] else ""
        written.append(f"## {key[0]}, {key[1]} steps{few}")
        written.append(_table(own, COLUMNS, _gain))
        written.append(_table(own, CONTROLS))
        written += [_table(own, [f"{name} T={value:g}" for name in EXPLAINED]) for value in TEMPERATURES]
    return "\n\n".join(written)


def _table(
    rows: list[dict], columns: Sequence[str], last: Callable[[list[dict], list[dict]], str] | None = None
) -> str:
    """Mean and standard deviation over seeds, an arm a line."""
    head = ["arm", "seeds", *columns, *(["accuracy over ce, 95 %"] if last else [])]
    lines = [head, ["---"] * len(head)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        line = [arm, str(len(own)), *(_mean([row[name] for row in own]) for name in columns)]
        lines.append([*line, last(own, [row for row in rows if row["arm"] == "ce"])] if last else line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: list[float]) -> str:
    numbers = torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean():.1f}" + (f" ± {numbers.std():.1f}" if len(values) > 1 else "")


def _gain(rows: list[dict], baselines: list[dict]) -> str:
    """Difference of accuracy from the baseline, in points, and its interval by a bootstrap over objects."""
    gains: list[int] = []
    objects: list[str] = []
    for row, baseline in product(rows, baselines):
        if all(row[name] == baseline[name] for name in ("seed", "data_seed")):
            gains += [100 * (right - before) for right, before in zip(row["right"], baseline["right"], strict=True)]
            objects += row["objects"]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(objects))}
    found = paired(torch.tensor(gains), torch.tensor([numbers[name] for name in objects]))
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})" if found else "-"
