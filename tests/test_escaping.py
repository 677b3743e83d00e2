"""Text from outside makes no line of its own: in logs, in terminals and on the bundle server's page."""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from io import StringIO

import pytest

import airflow_team_authz
from airflow_team_authz.cli.support import console
from airflow_team_authz.escaping import escaped, logger, one_line
from airflow_team_authz.server.page import render

# By the names that Unicode has for them: control characters, line breaks, and what turns the direction of writing.
HOSTILE = {
    **{f"control {number:02x}": chr(number) for number in (*range(0x20), *range(0x7F, 0xA0))},
    **{f"U+{number:04X}": chr(number) for number in (0x2028, 0x2029, 0x061C, 0x200B, 0x200E, 0x200F, 0xFEFF)},
    **{f"U+{number:04X}": chr(number) for number in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xE0001)},
    "half a pair": "\ud800",
    "a forged line": "\n2026-01-01 INFO denied (team): nothing",
    "a colour": "\x1b[32mallow\x1b[0m",
}
ALL = "".join(HOSTILE.values())
PLAIN = 'größe 🚀 "quoted" \\ 100% {x} <b>'


def hostile(text: str) -> list[str]:
    """Characters that have no place in a line."""
    return [letter for letter in text if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_could_make_a_line_or_steer_a_terminal_is_written_out(text: str) -> None:
    for escape in (escaped, one_line):
        shown = escape(f"a{text}b")
        assert hostile(shown) == []
        assert shown.splitlines() == [shown]
        shown.encode()


def test_what_people_write_stays_as_it_is() -> None:
    assert escaped(PLAIN) == one_line(PLAIN) == PLAIN
    assert escaped("a\tb\n", keep="\t") == "a\tb\\n"
    assert one_line(" a\n  b\x1b ") == "a b\\x1b"


def loggers() -> Iterator[logging.Logger]:
    """All loggers of the package, once all of its modules are loaded."""
    for module in pkgutil.walk_packages(airflow_team_authz.__path__, "airflow_team_authz."):
        if ".migrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, module in sorted(sys.modules.items()):
        # Not whichever there are: tests make loggers of the package's name themselves, to set their levels.
        if name.startswith("airflow_team_authz.") and isinstance(found := getattr(module, "log", None), logging.Logger):
            yield found


def written(log: logging.Logger, tell: Callable[[], None]) -> list[str]:
    """The lines that a handler writes of what is told to a logger."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    was = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        tell()
    finally:
        log.setLevel(was)
        log.removeHandler(handler)
    return stream.getvalue().splitlines()


def test_every_logger_of_the_package_escapes_what_it_is_told() -> None:
    found = list(loggers())
    assert len(found) > 8
    for log in found:
        tellings: list[Callable[[], None]] = [
            lambda log=log: log.info("%s", ALL),  # type: ignore[misc]
            lambda log=log: log.warning("by %(name)s", {"name": ALL}),  # type: ignore[misc]
            lambda log=log: log.error("%s and %d%%", ValueError(ALL), 3),  # type: ignore[misc]
            lambda log=log: log.error(f"of {ALL} without arguments, 100%"),  # type: ignore[misc]
        ]
        for tell in tellings:
            (line,) = written(log, tell)
            assert "\\x1b[32mallow" in line, log.name
            assert hostile(line) == [], log.name


def test_a_traceback_stays_apart_from_lines_of_the_log() -> None:
    log = logger("airflow_team_authz.tried")

    def fail() -> None:
        try:
            raise ValueError(f"first{ALL}\nsecond")
        except ValueError:
            log.exception("it failed")

    first, *others = written(log, fail)
    assert first == "it failed"
    assert len(others) > 3
    assert all(line.startswith("  | ") and hostile(line) == [] for line in others)
    assert "ValueError: first" in "\n".join(others)


def test_commands_print_text_of_others_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_line(ALL, heading=ALL)
    console.print_columns([[ALL, "b"], ["a", ALL]])
    console.complain(ALL)
    told = capsys.readouterr()
    assert [len(text.split("\n")) for text in told] == [4, 2]
    assert hostile((told.out + told.err).replace("\n", "")) == []


def test_json_of_commands_is_text_for_terminals_and_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {ALL: [ALL, PLAIN]}
    console.print_json(value)
    told = capsys.readouterr().out
    assert hostile(told.replace("\n", "")) == []
    assert json.loads(told) == value
    assert "größe 🚀" in told


def test_the_servers_page_shows_text_of_others_as_text() -> None:
    page = render([("Clients", ["client"], [[f"<script>{ALL}"]])], "", alarm=False)
    assert hostile(page) == []
    assert "&lt;script&gt;" in page
