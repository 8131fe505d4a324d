"""The report's charts as inline SVG, coloured by the page: class ``m0`` has the first method's colour, and so on."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 10, 26
BARS, VALUES, ROW = 240, 46, 32  # dot chart: width, of which for the numbers, height of a row


class Series(NamedTuple):
    """Lines of one method: its number, for the colour; the mean over its seeds and each seed's own, y values."""

    number: int
    title: str
    mean: list[float]
    seeds: list[list[float]]


def line_chart(series: Sequence[Series], x: Sequence[float], x_title: str, digits: int = 0) -> Markup:
    """Means as lines, seeds as faint ones; the axis takes in all values, gaps (NaN) are left out."""
    values = [value for one in series for line in (one.mean, *one.seeds) for value in line if math.isfinite(value)]
    if not values:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    left, right = x[0], x[-1] if len(x) > 1 else x[0] + 1

    def place(horizontal: float, vertical: float) -> tuple[float, float]:
        across = LEFT + (horizontal - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - vertical) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(left, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_text(tick)}</text>')
    for tick in dict.fromkeys((x[0], x[len(x) // 2], x[-1])):
        at, _ = place(tick, low)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{_text(tick)}</text>')
    for one in series:
        if len(one.seeds) > 1:
            parts += [f'<path class="seed m{one.number}" d="{_path(x, line, place)}"/>' for line in one.seeds]
        last = next((value for value in reversed(one.mean) if math.isfinite(value)), math.nan)
        name = f"{one.title}: {last:.{digits}f} at the end"
        parts.append(
            f'<path class="line m{one.number}" d="{_path(x, one.mean, place)}"><title>{escape(name)}</title></path>'
        )
        if len(x) == 1 and math.isfinite(last):
            at, y = place(x[0], last)
            parts.append(f'<circle class="dot m{one.number}" cx="{at:.1f}" cy="{y:.1f}" r="3"/>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT}" text-anchor="end">{escape(x_title)}</text>')
    return _svg(WIDTH, HEIGHT, parts)


def dot_chart(rows: Sequence[tuple[str, float | None, list[float], list[tuple[str, float]]]]) -> Markup:
    """A row per method: a bar to the mean, a dot per seed, and a tick at every control.

    rows: (title, mean, seeds, (title, value) of every control), in percent.
    """
    known = [value for _, mean, seeds, _ in rows for value in (mean, *seeds) if value is not None]
    known += [value for *_, controls in rows for _, value in controls]
    if not known:
        return Markup("")
    high = nice_ticks(0, max(known))[-1]
    scale = (BARS - VALUES) / high
    parts = []
    for number, (title, mean, seeds, controls) in enumerate(rows):
        y = number * ROW
        parts.append(f'<text class="name" x="0" y="{y + 11}">{escape(title)}</text>')
        if mean is None:
            continue
        parts.append(f'<rect class="track" x="0" y="{y + 16}" width="{BARS - VALUES}" height="7" rx="3.5"/>')
        parts.append(f'<rect class="bar m{number}" x="0" y="{y + 16}" width="{mean * scale:.1f}" height="7" rx="3.5"/>')
        parts += [
            f'<circle class="seed-dot" cx="{seed * scale:.1f}" cy="{y + 19.5}" r="2"/>'
            for seed in seeds
            if len(seeds) > 1
        ]
        for name, value in controls:
            shape, label = f"M{value * scale:.1f} {y + 12.5}v14", escape(f"{name}: {value:.1f}")
            parts.append(f'<path class="control" d="{shape}"><title>{label}</title></path>')
        parts.append(f'<text class="value" x="{BARS}" y="{y + 24}" text-anchor="end">{mean:.1f}</text>')
    return _svg(BARS, len(rows) * ROW, parts)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, evenly spaced, that take in low and high.

    Example:
        >>> nice_ticks(3, 97)
        [0.0, 25.0, 50.0, 75.0, 100.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 2.5, 5, 10, 20, 25):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        if last - first <= most:
            break
    return [round(number * step, 10) for number in range(first, last + 1)]


def _path(x: Sequence[float], line: Sequence[float], place) -> str:
    """An SVG path that breaks where a value is missing, and ends with the line, which may be shorter than ``x``."""
    words, open_ = [], False
    for horizontal, vertical in zip(x, line, strict=False):
        if not math.isfinite(vertical):
            open_ = False
            continue
        across, down = place(horizontal, vertical)
        words.append(f"{'L' if open_ else 'M'}{across:.1f} {down:.1f}")
        open_ = True
    return "".join(words)


def _text(value: float) -> str:
    return f"{value:g}"


def _svg(width: int, height: int, parts: list[str]) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">{body}</svg>')
