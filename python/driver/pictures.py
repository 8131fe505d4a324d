"""Where models look, drawn: overlays of heatmaps, gallery.png, and curves.png, how they got there."""

from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from cgc_kernels import overlay
from cgc_kernels.metrics import box_masks, content_heatmap, live, upsample

from . import evaluation_views, storage
from .controls import CONTROLS
from .data import Data
from .explained import Explained

COLOURS = {
    "baseline": "#6b7280",
    "gradcam_l2": "#059669",
    "cgc": "#d97706",
    "cgc_consistent": "#2563eb",
    "cgc_paper": "#be185d",
    "cgc_paper_consistent": "#7c3aed",
}
MORE_COLOURS = ("#0891b2", "#65a30d", "#dc2626", "#9333ea")
BOX, MUTED, INK = "#22d3ee", "#6b7280", "#111827"
MARKERS = ("o", "s", "^", "D", "v")  # of the controls
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "savefig.facecolor": "white",
}
PANELS = {
    "val_accuracy": "Accuracy, %",
    "val_content_heatmap": "Content Heatmap, %",
    "val_consistency": "Consistency, %",
    "val_effective_area": "Effective area, %",
    "val_pointing_game": "Pointing game, %",
    "train_ce": "Training cross-entropy",
}
BLOCKS = 2  # side by side in the gallery
GALLERY = 10  # images at most
TITLE = 17  # letters of a method's title in a line of the gallery


class Look(NamedTuple):
    """One image and where every method looks.

    Attributes:
        index: of the image in its split.
        image, aug_image: float [3, S, S] in [0, 1], the evaluation view and its augmented view.
        boxes: float [n, 4] in pixels of the view.
        heatmaps, aug_heatmaps: fine [S, S], one per method.
    """

    index: int
    image: Tensor
    aug_image: Tensor
    boxes: Tensor
    heatmaps: list[Tensor]
    aug_heatmaps: list[Tensor]


def looks(explained: list[Explained], data: Data, seed: int, most: int = GALLERY) -> list[Look]:
    """The first readable test image of each class, at most ``most`` classes evenly chosen, as every method sees it."""
    chosen = first_of_each_class(explained[0].labels, explained[0].corrupt)
    chosen = [chosen[number * len(chosen) // most] for number in range(most)] if len(chosen) > most else chosen
    plain = data._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    found = []
    for index in chosen:
        (batch,) = evaluation_views.batches(data.test, [index], plain, seed=seed, stream="test")
        views = [
            [upsample(maps[[index]], data.image_size)[0].nan_to_num(0, 0, 0) for maps in own]  # of a diverged model
            for own in ([one.heatmaps for one in explained], [one.aug_heatmaps for one in explained])
        ]
        found.append(Look(index, batch.original[0], batch.augmented[0].clamp(0, 1), batch.boxes, *views))
    return found


def first_of_each_class(labels: Tensor, corrupt: Tensor) -> list[int]:
    """Index of the first readable image of every class that occurs, in the order of the classes."""
    return [int(((labels == label) & ~corrupt).nonzero()[0]) for label in labels[~corrupt].unique()]


def gallery(path: Path, found: list[Look], titles: list[str]) -> None:
    """Draw, for each look, the image with its boxes and the heatmap of every method; ``titles`` are the methods'."""
    titles = ["image and box", *titles]
    rows, columns = -(-len(found) // BLOCKS), len(titles)
    with rc_context(STYLE):
        widths = (([1.0] * columns + [0.15]) * BLOCKS)[:-1]
        figure = Figure(figsize=(1.45 * sum(widths), 1.6 * rows + 0.7))
        grid = {"width_ratios": widths, "wspace": 0.04, "hspace": 0.16}
        axes = figure.subplots(rows, len(widths), gridspec_kw=grid, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for number, look in enumerate(found):
            block, row = divmod(number, rows)
            cells = axes[row, block * (columns + 1) :]
            _draw_row(cells, look)
            if row == 0:
                for cell, title in zip(cells, titles, strict=False):
                    cell.set_title(fill(title, TITLE), loc="center", fontsize=8.5, pad=17)
        note = "First test image of each class. Heatmaps of the labelled class, each scaled to its own maximum."
        figure.text(0.5, 0.085, note, ha="center", va="top", fontsize=8.5, color=MUTED)
        _save(figure, path)


def curves(path: Path, histories: dict[str, list[list[dict]]], titles: dict[str, str]) -> None:
    """Draw every epoch's measures: the mean over the seeds as a line, each seed as a thin one.

    histories: per method, one list of epochs per seed.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 6.6), layout="constrained")
        axes = figure.subplots(2, 3)
        for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
            for place, (method, own) in enumerate(histories.items()):
                values = torch.tensor([[number(epoch.get(name)) for epoch in history] for history in own])
                _draw_curve(axis, values, colour(method, place), titles[method])
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        note = "After every epoch, on the validation split; the cross-entropy on the training split."
        figure.supxlabel(note, fontsize=9, color=MUTED)
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=11)
        _save(figure, path)


def bars(path: Path, summary: dict[str, dict], measures: dict[str, str]) -> None:
    """Draw measures, by their titles, as a bar for every key with its spread, and a mark for each control known.

    summary: as :func:`report.summarise` returns it.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(measures), 4.2), layout="constrained")
        axes = figure.subplots(1, len(measures))
        for axis, (name, title) in zip(axes.flat, measures.items(), strict=True):
            for place, (key, column) in enumerate(summary.items()):
                how = {
                    "color": colour(key, place),
                    "label": column["title"],
                    "yerr": column["spread"][name],
                    "capsize": 3,
                }
                axis.bar(place, column[name], 0.7, **how)
                _draw_controls(axis, place, column, name)
            axis.set_title(title)
            axis.set_xticks([])
            axis.grid(axis="x", visible=False)
        found = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(found.values(), found, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        _save(figure, path)


def colour(method: str, number: int = 0) -> str:
    """A method's colour; ``number`` tells those without one of their own apart."""
    return COLOURS.get(method, MORE_COLOURS[number % len(MORE_COLOURS)])


def share_in_boxes(heat: Tensor, boxes: Tensor) -> str:
    """The caption of a fine heatmap [S, S]: the share of its mass inside the boxes."""
    if not live(heat[None]):
        return "dead"
    if not len(boxes):
        return ""
    masks = box_masks(boxes, heat.shape[-1], counts=torch.tensor([len(boxes)]))
    return f"{100 * content_heatmap(heat[None], masks).item():.0f} % in the box"


def number(value) -> float:
    """A cell of metrics.csv; NaN where it is empty."""
    return torch.nan if value in (None, "") else float(value)


def _draw_row(cells, look: Look) -> None:
    cells[0].imshow(look.image.permute(1, 2, 0).numpy(), interpolation="lanczos")
    _draw_boxes(cells[0], look.boxes)
    for cell, heat in zip(cells[1:], look.heatmaps, strict=False):
        cell.imshow(overlay(look.image, heat).permute(1, 2, 0).numpy(), interpolation="bilinear")
        _draw_boxes(cell, look.boxes)
        caption = share_in_boxes(heat, look.boxes)
        cell.text(0.5, 1.02, caption, transform=cell.transAxes, ha="center", va="bottom", fontsize=7.5, color=MUTED)


def _draw_boxes(axis, boxes: Tensor) -> None:
    for left, top, right, bottom in boxes.tolist():
        size = right - left, bottom - top
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor=BOX, linewidth=1.6))


def _draw_curve(axis, values: Tensor, shade: str, title: str) -> None:
    epochs = range(1, values.shape[1] + 1)
    if len(values) > 1:
        for seed in values:
            axis.plot(epochs, seed.numpy(), color=shade, linewidth=0.8, alpha=0.35)
    axis.plot(epochs, values.mean(0).numpy(), color=shade, linewidth=2.2, label=title)


def _draw_controls(axis, place: int, column: dict, name: str) -> None:
    for marker, (own, control) in zip(MARKERS, CONTROLS.items(), strict=True):
        value = column.get(f"{own}_{name}")
        if value is not None:
            style = {"marker": marker, "color": INK, "facecolor": "white", "s": 34, "zorder": 3}
            axis.scatter(place, value, label=f"of the baseline, {control.title}", **style)


def _save(figure, path: Path) -> None:
    with storage.replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, bbox_inches="tight", format="png")
