"""From the heatmaps of finished runs to summary.json and the table."""

import json
import math
import statistics
from pathlib import Path

from . import metrics, storage
from .data.demo import IMAGE_SIZE, Split
from .engine import Explained, Run, evaluation_crops
from .methods import METHODS

MEASURES = {
    "accuracy": "accuracy",
    "content_heatmap": "Content Heatmap (CH)",
    "flat_content_heatmap": "  CH of a flat heatmap",
    "sharpness_matched_content_heatmap": "  CH of the baseline, as sharp",
    "effective_area": "effective area",
    "pointing_game": "pointing game",
    "consistency": "consistency",
    "sharpness_matched_consistency": "  of the baseline, as sharp",
    "twin_retrieval": "twin retrieval",
    "dead_heatmaps": "dead heatmaps",
    "seconds": "seconds",
}


def measure(explained: Explained, baseline: Explained | None, split: Split, seed: int) -> dict[str, float | None]:
    """All measures of one run on the test split, in percent; None where nothing could be measured.

    The two controls are the Content Heatmap and the consistency of the same seed's baseline heatmaps, raised to the one
    power at which their mean effective area is this method's; None without a baseline.
    """
    crops = evaluation_crops(split, seed, "test")
    maps, aug_maps = _fine(explained)
    measured = {
        "accuracy": metrics.accuracy(explained.logits, split.labels),
        "content_heatmap": metrics.content_heatmap(maps, split.boxes),
        "flat_content_heatmap": metrics.flat_content_heatmap(split.boxes, IMAGE_SIZE),
        "sharpness_matched_content_heatmap": None,
        "effective_area": metrics.effective_area(maps),
        "pointing_game": metrics.pointing_game(maps, split.boxes, split.labels),
        "consistency": metrics.consistency(maps, aug_maps, crops),
        "sharpness_matched_consistency": None,
        "twin_retrieval": metrics.twin_retrieval(maps, aug_maps, crops),
        "dead_heatmaps": metrics.dead(explained.heatmaps),
    }
    if baseline is not None:
        originals, augmented = _fine(baseline)
        power = metrics.match_sharpness(originals, measured["effective_area"])
        originals, augmented = (metrics.sharpen(view, power) for view in (originals, augmented))
        measured["sharpness_matched_content_heatmap"] = metrics.content_heatmap(originals, split.boxes)
        measured["sharpness_matched_consistency"] = metrics.consistency(originals, augmented, crops)
    return {name: None if value is None or math.isnan(value) else value for name, value in measured.items()}


def measure_all(runs: list[Run], tests: dict[int, Split]) -> dict[str, list[dict]]:
    """The measures of every finished run, per method, in the order of the seeds. `tests`: the test split per seed."""
    explained = {(run.method, run.seed): Explained(**storage.load(run.results)) for run in runs}
    measured = {}
    for run in runs:
        own, baseline = explained[run.method, run.seed], explained.get(("baseline", run.seed))
        row = {"seed": run.seed, **measure(own, baseline, tests[run.seed], run.seed)}
        row["seconds"] = sum(epoch["seconds"] for epoch in storage.load(run.last)["history"])
        measured.setdefault(run.method, []).append(row)
    return measured


def write_summary(path: Path, measured: dict[str, list[dict]]) -> dict[str, dict]:
    """Write summary.json: per method the mean of each measure over the seeds, its spread, and every seed's own.

    The spread is the sample standard deviation, None for a single seed.
    """
    summary = {}
    for method, rows in measured.items():
        columns = {name: [row[name] for row in rows] for name in MEASURES}
        summary[method] = {name: _mean(values) for name, values in columns.items()}
        summary[method]["spread"] = {name: _spread(values) for name, values in columns.items()}
        summary[method]["runs"] = rows
    with storage.replacing(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def table(summary: dict[str, dict]) -> str:
    """The summary as aligned text: a row per measure, a column per method, mean and spread over the seeds."""
    seeds = len(next(iter(summary.values()))["runs"])
    head = [f"test split, %, {seeds} seed{'s' * (seeds > 1)}", *(METHODS[method].title for method in summary)]
    body = [[title, *(_cell(column, name) for column in summary.values())] for name, title in MEASURES.items()]
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = [_line(row, widths) for row in (head, *body)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _fine(explained: Explained):
    return (metrics.fine(view, IMAGE_SIZE) for view in (explained.heatmaps, explained.aug_heatmaps))


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


def _spread(values: list[float | None]) -> float | None:
    return None if None in values or len(values) < 2 else statistics.stdev(values)


def _cell(column: dict, name: str) -> str:
    mean, spread = column[name], column["spread"][name]
    if mean is None:
        return "-"
    digits = 0 if name == "seconds" else 1
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
