"""Lists people, names of the directory, tasks of teams, and resources of an installation.

What is asked is asked as the doors ask it, so that an answer is the one that Airflow gets.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from airflow_team_authz.decision_log.reading import Record
from airflow_team_authz.model import Resource, Subject
from airflow_team_authz.review import ACTIONS, Asked, Who, fits
from airflow_team_authz.review.kinds import holder
from airflow_team_authz.review.names import Sources

# What is told of each report, since these are nowhere in the database.
NOT_COVERED = (
    "pages of plugins, and routes that this version does not know, are asked about by TYPE/ID only",
    "an asset is asked about as the REST API asks; its lists also show assets that a readable Dag uses",
    "events that start Dags, and tasks that wait for certain people, are decided about each of them",
)
# What a mask hides of a subject.
_OF_SUBJECT = "/input/subject/"
# Whose a thing of these types is, Airflow's database says.
OWNED = ("connection", "dag", "pool", "team", "variable")
# Without an owner: what they are called is in Airflow's code.
_OWNERLESS = ("configuration",)


class Population(NamedTuple):
    """The subjects that may ask, and the missing ones."""

    whos: Sequence[Who]
    not_covered: Sequence[str]


def population(
    manager: Any,
    login: str,
    sources: Sources | None,
    team_ids: Iterable[str],
    seen: Callable[[], Iterable[Record]] = tuple,
) -> Population:
    """The people of a login manager, whoever holds a name of the directory, and a task of each team.

    ``seen``: records of decisions, the last of each subject. People of a login manager that lists none come from there.
    It may raise ``LookupError``.
    """
    missing: list[str] = []
    whos: list[Who] = []
    try:
        whos += [person(manager.subject(user)) for user in manager.everybody()]
    except LookupError as error:
        found, told = _seen(seen)
        whos += found
        missing += [f"people of {login}: {error}", *told]
    if sources is None:
        missing.append(
            "groups and claims of the directory: the policy's data cannot be read here, name it by --sources"
        )
    else:
        named = dict.fromkeys((table, name) for table, name, _ in sources.entries())
        whos += [holder(table, name) for table, name in named]
        patterns = [pattern for _, pattern in sources.patterns()]
        if patterns:
            missing.append(
                f"groups that patterns of the directory name, such as {patterns[0]}: known once somebody has them"
            )
    return Population([*whos, *tasks(team_ids)], missing)


def _seen(records: Callable[[], Iterable[Record]]) -> tuple[list[Who], Iterator[str]]:
    """The people of recorded decisions, each as the last decision saw them, and what is not known of them."""
    whos: list[Who] = []
    masked: Counter[str] = Counter()
    unread = 0
    try:
        for record in records():
            subject = record.get("input", {}).get("subject", {})
            if subject.get("type") != "user":
                continue
            hidden = [mask for mask in record.get("erased", ()) if str(mask).startswith(_OF_SUBJECT)]
            try:
                whos.append(person(msgspec.convert(subject, Subject, strict=True)))
            except msgspec.ValidationError:
                # A mask hides the id, or the line is another program's.
                unread += 1
                continue
            masked.update(hidden)
    except LookupError as error:
        return [], iter([f"people whom the decision log has seen: {error}"])
    told = [f"people whom the decision log has not seen, beside the {len(whos):,} whom it has"]
    told += [
        f"{mask.removeprefix(_OF_SUBJECT)} of {count:,} of these people, which masks of the decision log hide"
        for mask, count in masked.items()
    ]
    if unread:
        told.append(f"people of {unread:,} records, which do not say who it was")
    return sorted(whos, key=lambda who: who.name), iter(told)


def person(subject: Subject) -> Who:
    """Somebody whom the login manager knows."""
    return Who("person", f"user {subject.id}", subject)


def tasks(team_ids: Iterable[str]) -> Iterator[Who]:
    """A task of each team, and one without a team."""
    for team_id in (*team_ids, None):
        held = () if team_id is None else (team_id,)
        of = "without a team" if team_id is None else f"of team {team_id}"
        yield Who(
            "task", f"a task {of}", Subject("task", "any-dag.any-task", held, dag_id="any-dag", task_id="any-task")
        )


class Things:
    """Everything that can be asked about, by owner and action."""

    def __init__(self, existing: Iterable[Resource], views: Iterable[Resource]) -> None:
        named = list(existing)
        owners = {one.team_id for one in named} | {str(one.id) for one in named if one.type == "team"}
        self.team_ids = sorted(owner for owner in owners if owner is not None)
        everything: dict[Resource, None] = {}
        for kind in ACTIONS:
            type_, _, entity = kind.partition(".")
            about = [one for one in (*named, *views) if one.type == type_]
            if about or type_ in _OWNERLESS:
                of_teams = () if type_ in {*_OWNERLESS, "view", "platform_view", "team"} else self.team_ids
                about += [Resource(type_, owner) for owner in (None, *of_teams)]
            everything |= dict.fromkeys(msgspec.structs.replace(one, entity=entity or UNSET) for one in about)
        self._by_owner: dict[tuple[str | None, str], list[Resource]] = defaultdict(list)
        for resource in everything:
            part = "" if resource.entity is UNSET else f".{resource.entity}"
            for action in ACTIONS[resource.type + part]:
                if fits(action, resource) and not (action == "create" and resource.id is not UNSET):
                    self._by_owner[resource.team_id, action].append(resource)

    def questions(self, whos: Iterable[Who]) -> Iterator[Asked]:
        """Every question about these for each of them."""
        for who in whos:
            yield from (Asked(who, action, resources) for (_, action), resources in self._by_owner.items())
