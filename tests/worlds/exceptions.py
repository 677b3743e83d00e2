"""Where the worlds may be told apart, each with its reason; what nothing needs any more fails the tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from tests.worlds.catalogue import ALPHA
from tests.worlds.compare import Difference
from tests.worlds.site import MACHINES, PEOPLE

# Who may see what of a type: of these, `explain` tells whose a thing is.
_VIEWER = {"dag", "pool", "asset", "asset_alias", "backfill"}
_SEEN = {"vic": _VIEWER, "una": _VIEWER, "bob": _VIEWER | {"connection", "variable"}}
_SEEN["bea"] = _SEEN["bob"]
_ABOUT = re.compile(rf"may not \w+ (\w+) .*of team {ALPHA}")


def names_the_owner(difference: Difference) -> bool:
    """Whether it is only that a refusal says whose a thing is, to who may see something of that type."""
    if difference.call.route.method == "HEAD":
        return difference.statuses[1] == 403
    about = _ABOUT.search(difference.with_)
    if difference.person in MACHINES and " only reads" in difference.with_:
        # A guardrail refuses it whoever the owner is, and Airflow's own answer is about what is not there.
        return difference.statuses[1] == 403
    if difference.person not in PEOPLE:
        # A task may read what is its team's of each type.
        return difference.statuses[1] == 403 and about is not None
    return difference.statuses[1] == 403 and about is not None and about[1] in _SEEN.get(difference.person, set())


def _named_for_creation(difference: Difference) -> str:
    """Where a request names what it creates: a task does that in the path."""
    call = difference.call
    return call.path if call.route.template.startswith("/execution/variables/") else str(call.body)


class Exemption(NamedTuple):
    """What is exempt: requests to routes, with a condition on the difference, and why."""

    routes: str
    why: str
    holds: Callable[[Difference], bool] = lambda _: True
    explain_only: bool = False


READS = (
    Exemption(
        ".*", "With `refusals = explain` a refusal names the owner to those who may see something of that type.",
        names_the_owner, explain_only=True,
    ),
)  # fmt: skip
WRITES = (
    *READS,
    Exemption(
        r"(POST|PATCH|PUT) .*/(connections|variables|pools)(/.*)?",
        "An id is unique for all teams: one that is taken cannot be created.",
        lambda difference: f"{ALPHA}_" in _named_for_creation(difference),
    ),
    Exemption(
        r"PATCH .*/taskInstances",
        "Airflow's own refusals, one for each Dag of a bulk change, say that the Dag is there.",
        lambda difference: f"{ALPHA}_daily" in str(difference.call), explain_only=True,
    ),
)  # fmt: skip


class Table:
    """The exemptions of a run; keeps which of them were needed."""

    def __init__(self, exemptions: tuple[Exemption, ...] = tuple(dict.fromkeys((*READS, *WRITES)))) -> None:
        self._exemptions = exemptions
        self._needed: set[Exemption] = set()

    def leaks(self, differences: list[Difference], table: tuple[Exemption, ...], conceal: bool = False) -> list[str]:
        """What no exemption covers."""
        return [str(difference) for difference in differences if not self._exempt(difference, table, conceal)]

    def unneeded(self) -> list[str]:
        """Exemptions that nothing has needed so far."""
        return [exemption.why for exemption in self._exemptions if exemption not in self._needed]

    def _exempt(self, difference: Difference, table: tuple[Exemption, ...], conceal: bool) -> bool:
        for exemption in table:
            usable = not (conceal and exemption.explain_only)
            if usable and re.fullmatch(exemption.routes, str(difference.call.route)) and exemption.holds(difference):
                self._needed.add(exemption)
                return True
        return False


# What is about the person who asks or about the platform as a whole, and why that differs.
PERSONAL = {
    r"(GET|POST) /ui/auth/\w+": "Each has a name, a token and a menu of their own.",
    r"GET /ui/teams": "Each sees the teams that they are in.",
    r"GET /api/v2/eventLogs": "Rows about nothing of a team are the platform's.",
    r"GET /api/v2/config.*": "Airflow's settings name the worlds' directories.",
    r"GET /(ui|api/v2)/dags(/.*)?": "Favourites are each person's.",
}
_PERSONAL_PARTS = (".is_favorite", ".event_logs")


def lost_writes(differences: list[Difference]) -> list[str]:
    """What somebody should be able to change and is not. What does not exist any more is nobody's team's."""
    return [str(one) for one in differences if "were not found" not in one.without]


def lost(differences: list[Difference]) -> list[str]:
    """What somebody should see and does not."""
    return [str(one) for one in differences if not _personal(one)]


def _personal(difference: Difference) -> bool:
    route = str(difference.call.route)
    if not any(re.fullmatch(routes, route) for routes in PERSONAL):
        return False
    whole = "/ui/auth" in route or "/ui/teams" in route
    return whole or any(part in difference.where for part in _PERSONAL_PARTS)
