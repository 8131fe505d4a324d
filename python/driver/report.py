"""From the heatmaps of finished runs to summary.json, the table, the pictures and the HTML report."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from . import bootstrap, checkpoints, controls, html, measuring, pictures, storage
from .controls import CONTROLS
from .data import Data, open_data
from .explained import Explained
from .storage import CheckpointError


def _controlled(measure: str, title: str, **flat: str) -> dict[str, str]:
    """A measure and its controls, which are indented."""
    own = {name: control.title for name, control in CONTROLS.items() if measure in control.measures}
    return {measure: title, **flat, **{f"{name}_{measure}": f"  of the baseline, {own[name]}" for name in own}}


MEASURES = {
    "accuracy": "accuracy",
    "accuracy_difference": "  less the baseline's, 95 %",
    "top5": "accuracy, top 5",
    **_controlled("content_heatmap", "Content Heatmap (CH)", flat_content_heatmap="  of a flat heatmap"),
    **_controlled("content_mask", "CH, by mask", flat_content_mask="  of a flat heatmap"),
    "effective_area": "effective area",
    **_controlled("pointing_game", "pointing game"),
    **_controlled("peak_in_mask", "peak in mask"),
    **_controlled("consistency", "consistency"),
    "twin_retrieval": "twin retrieval",
    **_controlled("likeness", "likeness to the runner-up's heatmap"),
    "denser": "two objects: denser on the label's",
    "denser_other": "two objects: denser on the other's, by its heatmap",
    "insertion": "insertion AUC",
    "deletion": "deletion AUC",
    "dead_heatmaps": "dead heatmaps",
    "corrupt_images": "unreadable images (number)",
    "seconds": "seconds",
}
WHOLE = ("corrupt_images", "seconds")
BASELINE = "baseline"
RESULTS = "the results, which --resume makes anew once they are deleted,"


class Entry(NamedTuple):
    """One model's answers on the test split of one seed.

    Attributes:
        key: what it is compared by, a method or a checkpoint.
        title: in tables and pictures.
        seed: of the run.
        explained: the answers.
        history: one dict per epoch of its training; empty where that is unknown.
    """

    key: str
    title: str
    seed: int
    explained: Explained
    history: list[dict]


def finish(folder: Path, runs: list, settings) -> dict[str, dict]:
    """Measure the finished runs of a training, write all that a run folder shows, print the table.

    Writes summary.json, gallery.png, curves.png and report.html into ``folder``; returns the summary. Raises
    CheckpointError where a file is not what the run wrote, or the data have other classes or images now.
    """
    data = open_data(settings, training=False)
    entries = [_entry(run, settings, data) for run in runs]
    summary = write(folder, entries, data, settings.seed, BASELINE, _kept(settings))
    print(f"\n{table(summary)}\n\nSee {folder / 'report.html'}.")
    return summary


def _entry(run, settings, data: Data) -> Entry:
    """What a finished run left, as it belongs to these settings and data."""
    last, flag = checkpoints.read_ours(run.last, "the last checkpoint"), RESULTS
    answers = storage.load(run.results, flag)
    identity = answers.pop("identity", {})
    for expected in (last, {"method": run.method, "seed": run.seed, "classes": data.classes}):
        checkpoints.check_identity(identity, expected, run.results, flag)
    types = {name: int if name == "image_size" else Tensor for name in Explained._fields}
    checkpoints.check_entries(answers, types, run.results, flag)
    explained = Explained(**{name: answers[name] for name in types})
    if run.seed == settings.seed and len(explained.labels) != len(data.test):
        raise CheckpointError(
            f"{flag} must be of the {len(data.test)} test images, got {run.results} of {len(explained.labels)}"
        )
    return Entry(run.name or run.method, run.title, run.seed, explained, last["history"])


def write(folder: Path, entries: list[Entry], data: Data, seed: int, baseline: str, settings: dict) -> dict[str, dict]:
    """Write summary.json, gallery.png, curves.png (if there are histories) and report.html; returns the summary.

    The pictures show the entries of ``seed``, whose test split ``data.test`` is. ``baseline``: the key of the entries
    whose heatmaps, made as sharp as another's, are its control.
    """
    summary = summarise(entries, baseline, data.classes)
    with storage.replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    own = [entry for entry in entries if entry.seed == seed]
    found = pictures.looks([entry.explained for entry in own], data, seed)
    pictures.gallery(folder / "gallery.png", found, [entry.title for entry in own])
    histories: dict[str, list[list[dict]]] = {}
    for entry in entries:
        if entry.history:
            histories.setdefault(entry.key, []).append(entry.history)
    titles = {entry.key: entry.title for entry in entries}
    if histories:
        pictures.curves(folder / "curves.png", histories, titles)
    html.write(folder / "report.html", summary, entries, found, data, settings, MEASURES, rows(summary))
    return summary


def summarise(entries: list[Entry], baseline: str, classes) -> dict[str, dict]:
    """Per key the mean of each measure over the seeds in percent, its spread, every seed's own, and the classes'.

    The spread is the sample standard deviation, None for a single seed; of accuracy_difference the ends of its
    interval. A measure that nothing is known of is None. ``baseline`` is the key whose heatmaps give the controls; ""
    gives none.
    """
    answers = {(entry.key, entry.seed): entry.explained for entry in entries}
    measured, by_class = {}, {}
    for entry in entries:
        values = measuring.measures(entry.explained)
        row = {"seed": entry.seed, **dict.fromkeys(MEASURES), **measuring.summarise(values)}
        control = answers.get((baseline, entry.seed))
        if control is not None:
            row |= controls.of_baseline(control, entry.explained)
        if entry.history:
            row["seconds"] = sum(epoch["seconds"] for epoch in entry.history)
        measured.setdefault(entry.key, []).append(row)
        by_class.setdefault(entry.key, []).append(measuring.per_class(values, classes))
    summary = {}
    for key, rows in measured.items():
        columns = {name: [row[name] for row in rows] for name in MEASURES}
        summary[key] = {"title": next(entry.title for entry in entries if entry.key == key)}
        summary[key] |= {name: _mean(values) for name, values in columns.items()}
        summary[key]["spread"] = {name: _spread(values) for name, values in columns.items()}
        summary[key]["runs"] = rows
        summary[key]["classes"] = _mean_classes(by_class[key], classes)
        pairs = [(answers[key, row["seed"]], answers.get((baseline, row["seed"]))) for row in rows]
        difference = bootstrap.accuracy_difference(pair for pair in pairs if key != baseline and pair[1])
        if difference:
            summary[key]["accuracy_difference"], *summary[key]["spread"]["accuracy_difference"] = difference
    return summary


def table(summary: dict[str, dict]) -> str:
    """The summary as aligned text: a row per known measure, a column per key, mean and spread over the seeds."""
    seeds = len(next(iter(summary.values()))["runs"])
    head = [f"test split, %, {seeds} seed{'s' * (seeds > 1)}", *(column["title"] for column in summary.values())]
    body = rows(summary)
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = [_line(row, widths) for row in (head, *body)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def rows(summary: dict[str, dict]) -> list[list[str]]:
    """A title and one cell per key for every measure known of any, unreadable images only where there are some."""

    def known(name: str) -> bool:
        values = [column[name] for column in summary.values()]
        return any(values) if name == "corrupt_images" else any(value is not None for value in values)

    return [
        [title, *(cell(column, name) for column in summary.values())] for name, title in MEASURES.items() if known(name)
    ]


def cell(column: dict, name: str) -> str:
    """Mean and spread of one measure as text."""
    mean, spread = column[name], column["spread"][name]
    if mean is None:
        return "-"
    if name == "accuracy_difference":
        return f"{mean:+.1f} [{spread[0]:+.1f}, {spread[1]:+.1f}]"
    digits = 0 if name in WHOLE else 1
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _kept(settings) -> dict:
    left_out = ("output", "resume", "check", "progress")
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


def _mean_classes(seeds: list[list[dict]], classes) -> list[dict]:
    """The per-class rows averaged over the seeds that have the class."""
    rows: dict[str, list[dict]] = {}
    for own in seeds:
        for row in own:
            rows.setdefault(row["class"], []).append(row)
    means = []
    for name in (name for name in classes if name in rows):
        keys = [key for key in rows[name][0] if key != "class" and all(key in row for row in rows[name])]
        means.append({"class": name, **{key: statistics.fmean(row[key] for row in rows[name]) for key in keys}})
    return means


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


def _spread(values: list[float | None]) -> float | None:
    return None if None in values or len(values) < 2 else statistics.stdev(values)


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
