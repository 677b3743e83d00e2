"""Cells that a spreadsheet program takes as text."""

from __future__ import annotations

# A cell that begins so is a formula to it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def harmless(cell: str) -> str:
    """The cell on one line, and no formula."""
    # A line break inside of a cell would be one of the terminal's too.
    line = " ".join(cell.splitlines())
    return f"'{line}" if line.startswith(_FORMULA) else line
