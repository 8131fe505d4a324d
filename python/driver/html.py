"""report.html: one file that opens anywhere, offline, with its pictures and charts inside."""

import base64
import io
import statistics
from pathlib import Path

import jinja2
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cgc_kernels import __version__, overlay

from . import charts, pictures, storage
from .controls import CONTROLS
from .data import Data
from .pictures import Look

TEMPLATE = "report.html.j2"
SMALLEST = 192  # pixels of a picture in the page; smaller views are enlarged
GLANCE = ("accuracy", "content_heatmap", "content_mask", "pointing_game", "peak_in_mask", "consistency")
CLASS_COLUMNS = ("accuracy", "content_heatmap", "pointing_game")
MORE_COLUMNS = ("effective_area", "consistency")  # where there are no boxes


def write(
    path: Path,
    summary: dict,
    entries: list,
    found: list[Look],
    data: Data,
    settings: dict,
    labels: dict,
    rows: list[list[str]],
) -> None:
    """Write the page.

    Args:
        path: the file.
        summary: what report.summarise returns.
        entries: all that was measured, report.Entry.
        found: the pictures, with one heatmap per key of the summary.
        data: the data set.
        settings: what is listed at the end, by name.
        labels: the titles of the measures by name.
        rows: the table, a title and one cell per key each; the titles of controls are indented.
    """
    page = _template().render(
        version=__version__,
        data=data,
        seeds=sorted({entry.seed for entry in entries}),
        methods=_methods(summary),
        glance=_glance(summary, labels),
        controls=[control.title for control in CONTROLS.values()],
        looks=[_look(look, data) for look in found],
        rows=rows,
        curves=_curves(summary, entries),
        faithfulness=_faithfulness(summary, entries),
        class_table=_class_table(summary, labels),
        settings=settings,
    )
    with storage.replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _template() -> jinja2.Template:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(TEMPLATE)


def _methods(summary: dict) -> list[dict[str, str]]:
    return [
        {"title": column["title"], "colour": pictures.colour(key, number)}
        for number, (key, column) in enumerate(summary.items())
    ]


def picture(pixels: Tensor) -> str:
    """float [3, H, W] in [0, 1] as the address of a JPEG inside the page."""
    shorter = min(pixels.shape[1:])
    if shorter < SMALLEST:
        scale = SMALLEST / shorter
        pixels = interpolate(pixels[None], scale_factor=scale, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _look(look: Look, data: Data) -> dict:
    side = data.image_size
    name = data.classes[data.test.records[look.index].label]
    pairs = zip(look.heatmaps, look.aug_heatmaps, strict=True)
    return {
        "title": name,
        "image": picture(look.image),
        "aug_image": picture(look.aug_image),
        "boxes": [[100 * value / side for value in box] for box in look.boxes.tolist()],
        "maps": [
            {
                "image": picture(overlay(look.image, heat)),
                "aug_image": picture(overlay(look.aug_image, aug_heat)),
                "caption": pictures.share_in_boxes(heat, look.boxes),
                "aug_caption": "" if aug_heat.any() else "dead",
            }
            for heat, aug_heat in pairs
        ],
    }


def _glance(summary: dict, labels: dict) -> list[dict]:
    """The headline measures as charts, with their controls."""
    found = []
    for name in GLANCE:
        rows = [
            (
                column["title"],
                column[name],
                [run[name] for run in column["runs"] if run[name] is not None],
                [
                    (control.title, column[f"{own}_{name}"])
                    for own, control in CONTROLS.items()
                    if column.get(f"{own}_{name}") is not None
                ],
            )
            for column in summary.values()
        ]
        if any(row[1] is not None for row in rows):
            found.append({"title": labels[name], "chart": charts.dot_chart(rows)})
    return found


def _curves(summary: dict, entries: list) -> list[dict]:
    """Training curves of the entries that have a history."""
    with_history = [entry for entry in entries if entry.history]
    found = []
    for name, title in pictures.PANELS.items() if with_history else ():
        series = []
        for number, key in enumerate(summary):
            histories = [entry.history for entry in with_history if entry.key == key]
            lines = [[pictures.number(row.get(name)) for row in history] for history in histories]
            if lines:
                series.append(charts.Series(number, summary[key]["title"], _mean_line(lines), lines))
        epochs = range(1, max(len(line) for one in series for line in one.seeds) + 1)
        chart = charts.line_chart(series, epochs, "epoch", digits=1)
        if chart:
            found.append({"title": title, "chart": chart})
    return found


def _faithfulness(summary: dict, entries: list) -> list[dict]:
    """Insertion and deletion curves, the mean over the images, of the entries that have them."""
    found = []
    for name in ("insertion", "deletion"):
        series = []
        for number, key in enumerate(summary):
            lines = [
                (100 * getattr(entry.explained, name).mean(0)).tolist()
                for entry in entries
                if entry.key == key and len(getattr(entry.explained, name))
            ]
            if lines:
                series.append(charts.Series(number, summary[key]["title"], _mean_line(lines), lines))
        if series:
            steps = len(series[0].mean) - 1
            x = [100 * step / steps for step in range(steps + 1)]
            chart = charts.line_chart(series, x, "% of the pixels", digits=1)
            found.append({"title": f"{name.capitalize()}: probability of the predicted class, %", "chart": chart})
    return found


def _class_table(summary: dict, labels: dict) -> dict:
    """A row per class, and per measure a column for every method."""
    first = next(iter(summary.values()))["classes"]
    names = [name for name in CLASS_COLUMNS if any(name in row for row in first)]
    names += [name for name in MORE_COLUMNS if len(names) == 1]
    by_class = [{row["class"]: row for row in column["classes"]} for column in summary.values()]
    rows = [
        {
            "class": row["class"],
            "images": round(row["images"]),
            "cells": [[own.get(row["class"], {}).get(name) for own in by_class] for name in names],
        }
        for row in first
    ]
    return {"titles": [labels[name] for name in names], "rows": rows}


def _mean_line(lines: list[list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*lines, strict=False)]
