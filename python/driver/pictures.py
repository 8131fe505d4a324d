"""gallery.png, where the models look, and curves.png, how they got there."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from torch import Tensor

from . import metrics, storage
from .data.demo import CLASSES, IMAGE_SIZE, LUMINANCE, Split
from .engine import Explained, Run
from .methods import METHODS

COLOURS = {"baseline": "#6b7280", "cgc": "#d97706", "cgc_consistent": "#2563eb"}
HEAT = matplotlib.colormaps["inferno"]
BOX, MUTED = "#22d3ee", "#6b7280"
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
    "val_content_heatmap": "Content Heatmap, % of the mass in the box",
    "val_consistency": "Consistency, cosine to the augmented view, %",
    "val_effective_area": "Effective area, % of the image",
    "val_pointing_game": "Pointing game, %",
    "train_ce": "Training cross-entropy, sum of three views",
}
BLOCKS = 2  # side by side in the gallery


def gallery(path: Path, runs: list[Run], test: Split) -> None:
    """Draw, for the first test image of each class, the image with its box and the heatmap of every run.

    Args:
        path: the PNG to write.
        runs: finished runs of one seed, one per method.
        test: that seed's test split.
    """
    chosen = first_of_each_class(test.labels)
    maps = [metrics.fine(Explained(**storage.load(run.results)).heatmaps[chosen], IMAGE_SIZE) for run in runs]
    titles = ["image and box", *(METHODS[run.method].title for run in runs)]
    rows = -(-len(chosen) // BLOCKS)
    columns = len(titles)
    with plt.rc_context(STYLE):
        widths = (([1.0] * columns + [0.15]) * BLOCKS)[:-1]
        figure, axes = plt.subplots(
            rows,
            len(widths),
            figsize=(1.45 * sum(widths), 1.6 * rows + 0.7),
            gridspec_kw={"width_ratios": widths, "wspace": 0.04, "hspace": 0.16},
            squeeze=False,
        )
        for axis in axes.flat:
            axis.axis("off")
        for number, index in enumerate(chosen):
            block, row = divmod(number, rows)
            cells = axes[row, block * (columns + 1) :]
            _draw_row(cells, test.images[index], test.boxes[index], [heat[number] for heat in maps])
            if row == 0:
                for cell, title in zip(cells, titles, strict=False):
                    cell.set_title(title, loc="center", fontsize=8.5, pad=17)
        note = "First test image of each class. Heatmaps of the labelled class, each scaled to its own maximum."
        figure.text(0.5, 0.085, note, ha="center", va="top", fontsize=8.5, color=MUTED)
        _save(figure, path)


def first_of_each_class(labels: Tensor) -> list[int]:
    """Index of the first image of every class that occurs, in the order of the classes."""
    return [int((labels == label).nonzero()[0]) for label in range(len(CLASSES)) if (labels == label).any()]


def curves(path: Path, runs: list[Run]) -> None:
    """Draw every epoch's validation measures: the mean over the seeds as a line, each seed as a thin one."""
    histories: dict[str, list[list[dict]]] = {}
    for run in runs:
        histories.setdefault(run.method, []).append(storage.load(run.last)["history"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13, 6.6), layout="constrained")
        for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
            for method, own in histories.items():
                values = torch.tensor([[epoch[name] for epoch in history] for history in own])
                _draw_curve(axis, values, method)
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        note = "After every epoch, on the validation split; the cross-entropy on the training split."
        figure.supxlabel(note, fontsize=9, color=MUTED)
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=11)
        _save(figure, path)


def _draw_row(cells, image: Tensor, box: Tensor, heatmaps: list[Tensor]) -> None:
    cells[0].imshow(image.permute(1, 2, 0), interpolation="lanczos")
    _draw_box(cells[0], box, BOX)
    for cell, heat in zip(cells[1:], heatmaps, strict=False):
        cell.imshow(_overlay(image, heat), interpolation="bilinear")
        _draw_box(cell, box, BOX)
        share = metrics.content_heatmap(heat[None], box[None])
        caption = f"{share:.0f} % in the box" if heat.any() else "dead"
        cell.text(0.5, 1.02, caption, transform=cell.transAxes, ha="center", va="bottom", fontsize=7.5, color=MUTED)


def _overlay(image: Tensor, heat: Tensor) -> Tensor:
    """The heatmap's colours over the grey image, the more opaque the hotter. Returns [S, S, 3]."""
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    grey = (LUMINANCE @ image.flatten(1)).reshape(*heat.shape, 1).expand(-1, -1, 3)
    colour = torch.from_numpy(HEAT(heat.numpy())[..., :3]).float()
    return torch.lerp(0.9 * grey, colour, 0.85 * heat[..., None].sqrt())


def _draw_box(axis, box: Tensor, colour: str) -> None:
    left, top, right, bottom = box.tolist()
    axis.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6)
    )


def _draw_curve(axis, values: Tensor, method: str) -> None:
    epochs = range(1, values.shape[1] + 1)
    if len(values) > 1:
        for seed in values:
            axis.plot(epochs, seed, color=COLOURS[method], linewidth=0.8, alpha=0.35)
    axis.plot(epochs, values.mean(0), color=COLOURS[method], linewidth=2.2, label=METHODS[method].title)


def _save(figure, path: Path) -> None:
    with storage.replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, bbox_inches="tight", format="png")
    plt.close(figure)
