"""What all commands share: the form of the output, and how a mistake is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from typing import Annotated, Any

import typer


class UserError(Exception):
    """Something in the question, the settings or the files is not as it must be; the message says what to do."""


class Output(StrEnum):
    """The form of what a command prints."""

    TEXT = "text"
    JSON = "json"


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


def complain(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"team-authz: {one_line(message)}", err=True)


def print_json(value: Any) -> None:
    """A JSON document on stdout, indented."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, aligned. The first column is coloured by what it says, if this is a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join([typer.style(first, fg=_COLOURS.get(row[0]), bold=True), *others]).rstrip())


def one_line(text: str) -> str:
    """The text without line breaks and control characters: a rule of others may have written it."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


_COLOURS = {
    "allow": "green", "ok": "green", "wrote": "green", "renewed": "green",
    "replaced": "green", "removed": "green", "started": "green",
    "deny": "red", "refused": "red", "wrong": "red",
}  # fmt: skip
