"""What the demonstration prints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo.play import SceneResult
from demo.play_running import Seen
from demo.scenes import SCENES
from demo.site import USERS, Site

_WIDTH = 120
_COLUMNS = {"who": 3, "request": 33, "expected": 27, "actual": 13, "the policy's reason": 31, "": 4}


def console() -> Console:
    """The terminal; what is piped into a file is laid out for 120 columns."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_WIDTH)


class Show:
    """Prints to one console."""

    def __init__(self, out: Console) -> None:
        self._out = out

    @contextmanager
    def progress(self, words: str) -> Iterator[None]:
        """One line for something that takes a while, with its seconds at the end."""
        self._out.print(f"{words} … ", end="")
        start = time.monotonic()
        try:
            yield
        except BaseException:
            self._out.print("[red]failed[/]")
            raise
        self._out.print(f"[dim]{time.monotonic() - start:.0f} s[/]")

    def told(self, site: Site) -> None:
        """The settings that make this Airflow ask the policy."""
        self._out.print("\nWhat this Airflow was told, apart from its users and Dags:\n")
        for section, values in site.told.items():
            self._out.print(f"  [bold]{escape(f'[{section}]')}[/]", highlight=False)
            for key, value in values.items():
                self._out.print(f"  {key} = {escape(value)}", highlight=False, soft_wrap=True)
        self._out.print("\nRequests are under /api/v2 unless they begin with a slash.\n")

    def scenes(self, outcomes: Iterable[SceneResult]) -> list[SceneResult]:
        """Print the outcomes scene by scene as they come, in one layout; returns them."""
        shown: list[SceneResult] = []
        self._out.print(_steps(header=True))
        for number, group in groupby(outcomes, key=lambda outcome: outcome.scene):
            self._out.print(f"\n[bold]{number:>2}  {escape(SCENES[number - 1].words)}[/]", highlight=False)
            steps = _steps(header=False)
            for outcome in group:
                shown.append(outcome)
                _add(steps, outcome)
            self._out.print(steps)
        return shown

    def running(self, seen: Iterable[Seen], import_errors: Mapping[tuple[str, str], str]) -> list[Seen]:
        """Print what tasks, events and Dag files came to, and who sees it; returns the scenes."""
        shown = list(seen)
        self._out.print("\n[bold]Tasks, asset events, names and what they leave[/], and what Airflow alone would do\n")
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name, width in {"scene": 62, "expected": 9, "actual": 9, "alone": 9, "": 4}.items():
            table.add_column(name, width=width, overflow="fold")
        for scene in shown:
            words = [escape(scene.words), *(_yes(value) for value in (scene.expected, scene.done, scene.alone))]
            table.add_row(*words, "[green]OK[/]" if scene.ok else "[bold red]FAIL[/]")
        self._out.print(table)
        self._out.print("\n[bold]Dag files that were not imported[/], as the platform's admin sees them\n")
        for (bundle, file), error in sorted(import_errors.items()):
            # Of a stack trace the end.
            told = error.strip().splitlines()[-1]
            self._out.print(f"  {bundle}/{file}: {escape(told)}", highlight=False, soft_wrap=True)
        return shown

    def verdict(self, outcomes: list[SceneResult], seen: list[Seen], seconds: float) -> bool:
        """The last line; whether all is as expected."""
        failed = sum(not outcome.ok for outcome in (*outcomes, *seen))
        summary = f"\n{len(SCENES) + len(seen)} scenes, {len(outcomes)} requests: "
        summary += f"[bold red]{failed} not as expected[/]" if failed else "[green]all as expected[/]"
        self._out.print(f"{summary}, {seconds:.0f} s in all")
        return not failed

    def invitation(self, site: Site) -> None:
        """Where the UI is, and how to get in."""
        self._out.print(f"\nAirflow runs at [bold]{site.airflow.url}[/] until Ctrl-C. Log in as one of\n")
        for user in USERS:
            self._out.print(f"  {user.name}  {site.passwords[user.name]}  {user.who}", highlight=False)
        self._out.print(f"\nThe policy is in {site.policy}: edit a file, and see what changes.", soft_wrap=True)


def _yes(value: bool) -> str:
    return "done" if value else "refused"


def _steps(header: bool) -> Table:
    """The layout: the same widths for every scene, so that they line up."""
    table = Table(box=None, show_header=header, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", width=3)
    for name, width in _COLUMNS.items():
        table.add_column(name, width=width, overflow="fold")
    return table


def _add(table: Table, outcome: SceneResult) -> None:
    step = outcome.step
    verdict = "[green]OK[/]" if outcome.ok else "[bold red]FAIL[/]"
    request = f"{step.method} {escape(step.path)}"
    expected = _answer(step.status, step.shows)
    table.add_row("", step.who, request, expected, _actual(outcome), escape(outcome.reason), verdict)


def _answer(status: int, shows: frozenset[str] | None) -> str:
    return str(status) if shows is None else f"{status}: {escape(', '.join(sorted(shows)))}"


def _actual(outcome: SceneResult) -> str:
    step = outcome.step
    if step.edit is not None:
        return f"{outcome.status} in {outcome.seconds:.1f} s"
    if step.shows is None:
        return str(outcome.status)
    if outcome.shows == step.shows:
        return f"{outcome.status}: the same"
    return _answer(outcome.status, outcome.shows)
