"""What everybody tries in both worlds, and what is left of alpha's after that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from tests.worlds.build import FIRST_NUMBERS, GONE, NUMBERS_APART
from tests.worlds.catalogue import ALPHA, OWN, Call
from tests.worlds.compare import Answer, Comparison, Difference, difference
from tests.worlds.routes import Route, tasks_routes, users_routes
from tests.worlds.rows import Changed, Rows, added, changed, in_the_name_of, only_in
from tests.worlds.site import PEOPLE, TASKS, WITH, WITHOUT, Worlds


class Outcome(NamedTuple):
    """How much was asked, what tells the worlds apart, and what has become of alpha's rows."""

    person: str
    routes: int
    requests: int
    done: int
    differences: list[Difference]
    rows: list[Changed]


def routes_for(person: str, every_version: bool) -> tuple[Route, ...]:
    """People ask the REST API and the UI's, everybody else the Execution API.

    Tasks may ask each of its versions, by default the newest; what is part of Airflow speaks no other.
    """
    if person in PEOPLE:
        return users_routes()
    newest = max(str(route.version) for route in tasks_routes())
    whole = every_version and person in TASKS
    return tuple(route for route in tasks_routes() if whole or route.version == newest)


def reads(
    worlds: Worlds, person: str, brief: bool, values: Sequence[str] = (OWN, ALPHA), naming: str | None = None
) -> Outcome:
    """All that only look (see ``Catalogue.reads``), or those of them that name what is somebody's."""
    catalogue = worlds.catalogue()
    calls = catalogue.reads(routes_for(person, not brief), brief, values)
    calls = [call for call in calls if naming is None or catalogue.names(call, naming)]
    # Some that only look leave audit rows all the same: they come when nobody looks at these any more.
    plain = [call for call in calls if call.route.method == "GET"]
    rest = [call for call in calls if call.route.method != "GET"]
    try:
        with Comparison(worlds, person) as comparison:
            differences = comparison.read(plain) + comparison.read(rest)
            return Outcome(person, _routes(calls), len(calls), comparison.done(), differences, [])
    finally:
        worlds.restore()


def writes(worlds: Worlds, person: str, only: str = "") -> Outcome:
    """All that change something; the worlds are as they were in the beginning when it ends."""
    calls = [call for call in worlds.catalogue().writes(routes_for(person, False)) if only in str(call.route)]
    before = worlds.rows(WITH)
    of_alpha = only_in(before, worlds.rows(WITHOUT))
    try:
        with Comparison(worlds, person, keep_alive=False) as comparison:
            differences = comparison.write(calls)
        now = worlds.rows(WITH)
    finally:
        worlds.restore()
    return Outcome(
        person,
        _routes(calls),
        len(calls),
        comparison.done(),
        differences,
        [*changed(of_alpha, now), *_planted(before, now)],
    )


def losses(worlds: Worlds, person: str) -> Outcome:
    """What somebody does not see of the own team's things, or of the common ones, that the platform's admin would.

    Of people of beta each answer must be what the admin gets in the world where there is nothing of alpha's beside. In
    no world is alpha alone: its people must get an answer about each of its things that the admin gets one about.
    """
    of_alpha = PEOPLE[person].team == "alpha"
    calls, expected = _shown_to_the_admin(worlds, of_alpha)
    with Comparison(worlds, person) as comparison:
        seen = comparison.answers(WITH, calls)
    found = [
        difference(person, *row)
        for row in zip(calls, expected, seen, strict=True)
        if row[1].status < 300 and not (of_alpha and row[2].status < 300)
    ]
    told = [call for call, answer in zip(calls, expected, strict=True) if answer.status < 300]
    return Outcome(person, _routes(told), len(told), len(told), [one for one in found if one], [])


@cache
def _shown_to_the_admin(worlds: Worlds, of_alpha: bool) -> tuple[list[Call], list[Answer]]:
    """What looks at a team's own things and common ones, with the answers: the same for everybody of the team."""
    calls = worlds.catalogue().own_reads(users_routes(), ALPHA if of_alpha else OWN)
    calls = [call for call in calls if f"/{ALPHA}_" in call.path] if of_alpha else calls
    with Comparison(worlds, "pat") as admin:
        return calls, admin.answers(WITH if of_alpha else WITHOUT, calls)


def lost_writes(worlds: Worlds, person: str) -> Outcome:
    """What somebody cannot change of the own team's things, and the platform's admin can, in the world without alpha's.

    The answers' texts may differ: they tell who has changed something.
    """
    calls = worlds.catalogue().own_writes(users_routes())
    try:
        with Comparison(worlds, "pat", keep_alive=False) as admin, Comparison(worlds, person, keep_alive=False) as own:
            expected, seen = worlds.both(
                lambda world, _: [
                    one for call in calls for one in (admin if world == WITHOUT else own).answers(world, [call])
                ]
            ).values()
    finally:
        worlds.restore()
    done = [row for row in zip(calls, expected, seen, strict=True) if row[1].status < 300]
    found = [difference(person, call, one, two) for call, one, two in done if two.status >= 300]
    return Outcome(
        person, _routes([call for call, *_ in done]), len(done), len(done), [one for one in found if one], []
    )


def write_by_write(worlds: Worlds, person: str, only: str) -> Iterator[tuple[Call, list[Changed]]]:
    """Which request does what to alpha's rows: slow, for finding out."""
    calls = [call for call in worlds.catalogue().writes(routes_for(person, False)) if only in str(call.route)]
    of_alpha = only_in(worlds.rows(WITH), worlds.rows(WITHOUT))
    before = worlds.rows(WITH)
    try:
        with Comparison(worlds, person) as comparison:
            for call in calls:
                comparison.answers(WITH, [call])
                now = worlds.rows(WITH)
                if found := [
                    *changed({t: {k: r for k, r in before[t].items() if k in of_alpha[t]} for t in of_alpha}, now),
                    *_planted(before, now),
                ]:
                    yield call, found
                before = now
    finally:
        worlds.restore()


def _routes(calls: Sequence[Call]) -> int:
    return len({str(call.route) for call in calls})


def _planted(before: Rows, now: Rows) -> list[Changed]:
    """New rows about what is alpha's.

    An audit row about a Dag that is gone is what it is for an id that nobody has: about what its person has tried.
    """
    numbers = range(FIRST_NUMBERS[ALPHA], FIRST_NUMBERS[GONE] + NUMBERS_APART)
    return [
        row
        for row in added(before, now)
        if row.after
        and in_the_name_of(ALPHA, numbers, row.after)
        and not (row.table == "log" and in_the_name_of(GONE, range(0), row.after))
    ]
