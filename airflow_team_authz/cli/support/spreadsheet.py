"""Cells that a spreadsheet program takes as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

# A cell that begins so is a formula to it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def harmless(cell: str) -> str:
    """The cell on one line, and no formula."""
    # A line break inside of a cell would be one of the terminal's too.
    line = " ".join(cell.splitlines())
    return f"'{line}" if line.startswith(_FORMULA) else line


def csv_line(cells: Iterable[str]) -> str:
    """A row of CSV, without a line break in it."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([harmless(cell) for cell in cells])
    return out.getvalue()
