"""What a flag's text may be: converters that say what is wrong; and one way to declare a flag with its help."""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import field
from typing import NoReturn


def option(default, kind, group: str, text: str):
    """A field of the settings: its default, the converter of its text (or `bool`), its group in --help, its help."""
    return field(default=default, metadata={"kind": kind, "group": group, "help": text})


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's main and end with its status, in any terminal: what it cannot show is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a log or a pipe shows every line at once
    sys.exit(main())


def documented_parser(program: str, usage: str, text: str | None) -> argparse.ArgumentParser:
    """A parser whose --help shows a script's docstring: its first line before the flags, the rest behind them."""
    first, _, rest = (text or "").partition("\n\n")  # python -OO has no docstrings
    return argparse.ArgumentParser(
        prog=program,
        usage=f"{program} {usage}",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _named(metavar: str) -> Callable:
    def name(convert: Callable) -> Callable:
        convert.metavar = metavar
        return convert

    return name


def integer(low: int):
    """An integer not below `low`."""

    @_named("N")
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f"must be an integer >= {low}, got {text!r}")
        return value

    return convert


def number(low: float, high: float = math.inf, strict: bool = False):
    """A finite number from `low` to `high`, `low` itself excluded if `strict`."""
    bounds = f"{'>' if strict else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")

    @_named("X")
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high and not (strict and value == low)):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text!r}")
        return value

    return convert


def one_of(*choices: str):
    """One of a few words."""

    @_named("|".join(choices))
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {text!r}")
        return text

    return convert


def word(metavar: str):
    """Any text."""

    @_named(metavar)
    def convert(text: str) -> str:
        return text

    return convert


@_named("N,N,...")
def integers(text: str) -> tuple[int, ...]:
    """Increasing integers >= 1, separated by commas; may be empty."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (0,)
    if any(value < 1 for value in values) or list(values) != sorted(set(values)):
        raise argparse.ArgumentTypeError(f"must be increasing integers >= 1 separated by commas, got {text!r}")
    return values
