"""Whoever has no business with alpha cannot tell whether alpha has anything, and changes nothing of alpha's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.worlds import exceptions
from tests.worlds.attempts import Outcome, losses, lost_writes, reads, writes
from tests.worlds.catalogue import ALPHA, OWN
from tests.worlds.exceptions import Exemption, Table
from tests.worlds.site import PEOPLE, STRANGERS, Worlds

pytestmark = pytest.mark.timeout(900)

# Whom the quick form asks: each route with each kind of id. In the exhaustive form everybody asks everything.
_SOME = ("bob", "a task of beta")
_SOME_WHO_WRITE = ("bob", "a task of beta")
_WHO_MAY_READ = tuple(name for name, person in PEOPLE.items() if person.team and person.role in {"op", "admin"})


def _or_exhaustive(person: str, quick: Sequence[str]) -> Any:
    return person if person in quick else pytest.param(person, marks=pytest.mark.exhaustive)


def no_failures(worlds: Worlds) -> None:
    """No query of Airflow's own was refused, which both worlds would answer alike."""
    for world in worlds.airflows:
        assert "NotNarrowed" not in worlds.log(world)


def told(attempt: Callable[..., Outcome], worlds: Worlds, *arguments: Any) -> Outcome:
    """What came of an attempt, whose figures `pytest -rP` shows."""
    begun = time.monotonic()
    outcome = attempt(worlds, *arguments)
    seconds = time.monotonic() - begun
    print(
        f"{outcome.person}: {attempt.__name__}, {outcome.requests} requests to {outcome.routes} routes in {seconds:.0f}"
        f" s, {outcome.done} with success"
    )
    return outcome


def no_leaks(
    worlds: Worlds,
    table: Table,
    person: str,
    brief: bool,
    values: Sequence[str] = (OWN, ALPHA),
    naming: str | None = None,
) -> None:
    outcome = told(reads, worlds, person, brief, values, naming)
    assert outcome.requests > 250
    assert outcome.done > 10
    no_failures(worlds)
    assert table.leaks(outcome.differences, exceptions.READS, worlds.conceal) == []


def no_effects(worlds: Worlds, table: Table, person: str) -> None:
    outcome = told(writes, worlds, person)
    assert outcome.requests > 300
    no_failures(worlds)
    assert list(map(str, outcome.rows)) == []
    assert table.leaks(outcome.differences, exceptions.WRITES, worlds.conceal) == []


def nothing_lost(worlds: Worlds, person: str) -> None:
    outcome = told(losses, worlds, person)
    assert outcome.requests > 40
    assert exceptions.lost(outcome.differences) == []


def changes_not_lost(worlds: Worlds, person: str) -> None:
    outcome = told(lost_writes, worlds, person)
    no_failures(worlds)
    assert outcome.requests > 40
    assert exceptions.lost_writes(outcome.differences) == []


@pytest.mark.parametrize("person", [_or_exhaustive(person, _SOME) for person in (*_SOME, "nil", "a common task")])
def test_who_looks_cannot_tell(worlds: Worlds, table: Table, person: str) -> None:
    no_leaks(worlds, table, person, brief=True, values=(ALPHA,))


@pytest.mark.parametrize("person", _SOME_WHO_WRITE)
def test_who_writes_changes_nothing_of_alphas(worlds: Worlds, table: Table, person: str) -> None:
    no_effects(worlds, table, person)


@pytest.mark.parametrize("person", _WHO_MAY_READ)
def test_nobody_loses_what_is_their_teams_or_common(worlds: Worlds, person: str) -> None:
    nothing_lost(worlds, person)


@pytest.mark.parametrize("person", ["bea"])
def test_nobody_loses_a_change_of_what_is_their_teams(worlds: Worlds, person: str) -> None:
    changes_not_lost(worlds, person)


def test_with_concealed_refusals_no_exemption_is_left(concealing: Worlds, table: Table) -> None:
    no_leaks(concealing, table, "bob", brief=True, naming=ALPHA)


@pytest.mark.exhaustive
@pytest.mark.parametrize("person", STRANGERS)
def test_with_concealed_refusals_nobody_learns_or_changes_anything(
    concealing: Worlds, table: Table, person: str
) -> None:
    no_leaks(concealing, table, person, brief=True)
    no_effects(concealing, table, person)


def test_each_exemption_is_needed(worlds: Worlds, table: Table) -> None:  # noqa: ARG001 - after the tests before
    assert table.unneeded() == []


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("person", STRANGERS)
def test_everybody_asks_everything(each_worlds: Worlds, table: Table, person: str) -> None:
    no_leaks(each_worlds, table, person, brief=False)
    no_effects(each_worlds, table, person)
    if person in _WHO_MAY_READ:
        nothing_lost(each_worlds, person)
        changes_not_lost(each_worlds, person)


def test_an_exemption_that_nothing_needs_is_told() -> None:
    table = Table((Exemption("GET /nowhere", "because"),))
    assert table.leaks([], ()) == []
    assert table.unneeded() == ["because"]
