"""Output that all commands share: its form, and messages about mistakes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from airflow_team_authz.escaping import escaped, one_line


class UserError(Exception):
    """Something in the question, the settings or the files is not as it must be; the message says what to do."""


def read_file(file: Path) -> bytes:
    """Its content."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


class Output(StrEnum):
    """The form of what a command prints."""

    TEXT = "text"
    JSON = "json"


class Report(StrEnum):
    """The form of a report."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class Table(StrEnum):
    """The form of a table; JSON is one row a line."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="Text for people, or JSON for programs.", show_choices=True)
]


@contextmanager
def talking_to_stderr() -> Iterator[None]:
    """Airflow logs to stdout, where only the answer belongs; it may have taken hold of it before."""
    real = sys.__stdout__
    if real is None:
        yield
        return
    real.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        real.flush()
        os.dup2(kept, 1)
        os.close(kept)


class Progress:
    """Tells on stderr how far a command is, once it takes longer than a second: in one line, if that is a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._next = self._began + 1
        self._shown = False

    def __call__(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if now < self._next:
            return
        alone = sys.stderr.isatty()
        self._next = now + (0.5 if alone else 10)
        self._shown = True
        _echo(
            f"{chr(13) if alone else ''}team-authz: {done:,} {self._what}, {now - self._began:.0f} s", True, not alone
        )

    def end(self) -> None:
        """End the line, so that the next text begins a new one."""
        if self._shown and sys.stderr.isatty():
            _echo("", err=True)


# All output of commands is printed in here, because rules, servers and files of others may have written a part of it.


def complain(message: str) -> None:
    """Print one line on stderr."""
    _echo(f"team-authz: {one_line(message)}", err=True)


def print_line(text: str = "", heading: str = "", keep: str = "") -> None:
    """Print one line on stdout, escaped but for ``keep``. The heading before it is bold on a terminal."""
    _echo((typer.style(escaped(heading), bold=True) if heading else "") + escaped(text, keep))


def as_code(text: str) -> str:
    """Text of others as code, which Markdown leaves alone."""
    return "`` " + text.replace("`", "'") + " ``"


def print_json(value: Any) -> None:
    """A JSON document on stdout, indented."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    _echo("".join(letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, aligned. The first column is coloured by what it says, if this is a terminal."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _echo("  ".join([typer.style(first, fg=_COLOURS.get(row[0]), bold=True), *others]).rstrip())


def _echo(text: str, err: bool = False, newline: bool = True) -> None:
    typer.echo(text, err=err, nl=newline)  # noqa: TID251 - this is what others use instead


_COLOURS = {
    "allow": "green", "ok": "green", "wrote": "green", "renewed": "green",
    "replaced": "green", "removed": "green", "started": "green",
    "deny": "red", "refused": "red", "wrong": "red",
}  # fmt: skip
