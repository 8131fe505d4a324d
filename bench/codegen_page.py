"""What `make codegen` writes: whole tables into build/codegen, and the rows of docs/codegen.md between its markers."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from . import sass

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "codegen.md"
TABLES = ROOT / "build" / "codegen"
ARCHITECTURE = 90  # of the page; the whole tables have all


class Row(NamedTuple):
    """A kernel on the page."""

    kernel: str
    case: str
    registers: int  # a thread
    spilled: int  # bytes a thread
    occupancy: float
    code: sass.Facts


COLUMNS = {
    "kernel": lambda row: f"`{row.kernel}`",
    "case": lambda row: row.case,
    "registers": lambda row: row.registers,
    "spilled bytes": lambda row: row.spilled,
    "occupancy": lambda row: f"{row.occupancy:.0%}",
    "16-byte loads in flight": lambda row: row.code.in_flight,
    "barriers": lambda row: row.code.barriers,
    "tensor-core instructions": lambda row: row.code.tensor,
}


def section(compiler: str, rows: Iterable[Row]) -> str:
    """What stands between two markers: who made the code, and a table."""
    rule = ["---", "---", *["---:"] * (len(COLUMNS) - 2)]
    lines = [COLUMNS, rule, *([str(cell(row)) for cell in COLUMNS.values()] for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"Made by {compiler} for sm_{ARCHITECTURE}:\n\n{table}"


def compiler(text: str) -> str:
    """Who made the code that a section shows."""
    return re.match(r"Made by (.+) for sm_", text)[1]


def shown(name: str, page: Path = PAGE) -> str:
    """The section of that name, as it stands on the page."""
    return _marked(name).search(page.read_text())[2]


def write(name: str, table: str, text: str, page: Path = PAGE, tables: Path = TABLES) -> None:
    """A whole table into its file, a section onto the page."""
    tables.mkdir(parents=True, exist_ok=True)
    (tables / f"{name}.md").write_text(table)
    page.write_text(_marked(name).sub(lambda found: f"{found[1]}{text}{found[3]}", page.read_text()))


def _marked(name: str) -> re.Pattern:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->\n)", re.DOTALL)
