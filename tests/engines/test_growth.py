"""Thousands of teams, groups, roles and claims of one person, and of directory entries: right on both engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import (
    Evaluations,
    PlatformTooLongError,
    PolicyBrokenError,
    Resource,
    Subject,
    TooLongError,
)
from tests.conftest import Engines, errors, opened, write

MINE = 2_000
ENTRIES = 10_000
# Patterns of teams of their own.
OWN = 100
Policy = Callable[[dict[str, str]], Path]
OP = [{"team_id": "<team>", "role": "op"}]


def named(prefix: str, count: int = ENTRIES // 4) -> dict[str, list[dict[str, str]]]:
    return {f"{prefix}{number}": [{"team_id": f"team{number}", "role": "op"}] for number in range(count)}


def names(text: str, count: int = MINE) -> tuple[str, ...]:
    return tuple(text.replace("N", f"team{number}") for number in range(count))


DIRECTORY = {
    "groups": named("group") | {"everything": [entry for (entry,) in named("", MINE).values()]},
    "roles": named("role"),
    "claims": {"department": named("claim")},
    "group_patterns": {"airflow-<team>-<role>": [{"team_id": "<team>", "role": "<role>"}]}
    | {f"own{number}/<role>": [{"team_id": f"team{number}", "role": "<role>"}] for number in range(OWN)},
    "role_patterns": {f"<team>.{number}": OP for number in range(ENTRIES // 8)},
}
# Who asks, and in how many teams (from team0 on) that makes somebody an op.
PEOPLE: dict[str, tuple[Subject, int]] = {
    "teams of the login": (Subject("user", "ann", names("N"), ("op",)), MINE),
    "groups by name": (Subject("user", "ann", groups=tuple(DIRECTORY["groups"])[:MINE]), MINE),
    "one group for all": (Subject("user", "ann", groups=("everything",)), MINE),
    "groups by a pattern": (Subject("user", "ann", groups=names("airflow-N-op")), MINE),
    "groups by own patterns": (Subject("user", "ann", groups=tuple(f"own{n}/op" for n in range(OWN))), OWN),
    "roles by name": (Subject("user", "ann", roles=tuple(DIRECTORY["roles"])[:MINE]), MINE),
    "roles by patterns": (Subject("user", "ann", roles=names("N.7")), MINE),
    "claims": (Subject("user", "ann", claims={"department": tuple(DIRECTORY["claims"]["department"])[:MINE]}), MINE),
    "nothing": (Subject("user", "ann", ("other",), roles=names("x-N"), groups=names("y-N")), 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def engines(open_engines: Callable[[Path], Engines], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    rule = 'package teams.team1\n\nallow contains "in" if "team7" in data.airflow.authz.standing.team_ids\n'
    files = {"airflow/directory/data.json": json.dumps(DIRECTORY), "teams/team1/team1.rego": rule}
    return open_engines(write(tmp_path_factory.mktemp("growth"), files))


@pytest.mark.parametrize(("engine", "who"), [
    *(("in_process", who) for who in PEOPLE),
    ("server", "groups by a pattern"),
    *(pytest.param("server", who, marks=pytest.mark.exhaustive) for who in PEOPLE if who != "groups by a pattern"),
])  # fmt: skip
def test_a_person_of_thousands_of_teams_is_answered_right(engine: str, who: str, engines: Engines) -> None:
    subject, teams = PEOPLE[who]
    point: DecisionPoint = getattr(engines, engine)
    asked = [f"team{number}" for number in (0, 1, 7, 19, 1_199, 1_999, 2_000, 2_400)]
    right = [number < teams for number in (0, 1, 7, 19, 1_199, 1_999, 2_000, 2_400)]
    for team_id, allowed in list(zip(asked, right, strict=True))[1::4]:
        (decision,) = point.decide(Evaluations(subject, "update", [Resource("pool", team_id, "p")])).decisions
        assert decision.allow is allowed
    resources = [Resource("pool", team_id, name) for team_id in asked for name in ("p", "q")]
    assert point.allowed(Evaluations(subject, "update", resources)) == [
        resource for resource, allowed in zip(resources, [yes for yes in right for _ in "pq"], strict=True) if allowed
    ]
    common = point.allowed(Evaluations(subject, "read", [Resource("connection", None, "c")]))
    assert len(common) == (teams > 0)


ENDLESS = " ".join(f"some {name} in data.teams.alpha.digits;" for name in "abcdefgh")
BLAMED = {
    "a team's": ("teams/alpha/slow.rego", "package teams.alpha\n", TooLongError, "the policy for what team alpha owns"),
    "the site's": ("airflow/site/slow.rego", "package airflow.site\n", PlatformTooLongError, "the platform's rules"),
}


@pytest.mark.parametrize("whose", BLAMED)
def test_an_exhausted_allowance_blames_whose_rule_it_was(
    whose: str, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    file, package, error, blamed = BLAMED[whose]
    rule = f'{package}\ndeny contains "no" if count([1 | {ENDLESS} true]) == 0\n'
    data = {"teams/alpha/data.json": json.dumps({"digits": list(range(10))})}
    one = Evaluations(Subject("user", "ann", ("alpha",), ("op",)), "read", [Resource("dag", "alpha", "d")])
    several = Evaluations(one.subject, "read", [Resource("dag", team_id, "d") for team_id in ("alpha", "beta", None)])
    with opened(policy({file: rule, **data})) as point:
        with pytest.raises(PolicyBrokenError) as failed:
            point.decide(one)
        assert type(failed.value) is error
        assert [message for message in errors(caplog) if f"from {blamed} (" in message]
        if error is PlatformTooLongError:
            with pytest.raises(PlatformTooLongError):
                point.allowed(several)
            assert not [message for message in errors(caplog) if "lists leave out" in message]
        else:
            assert [resource.team_id for resource in point.allowed(several)] == [None]


def test_a_claim_named_as_the_resources_takes_no_allowance_away(engines: Engines) -> None:
    claims = {"resources": names("N"), "department": tuple(DIRECTORY["claims"]["department"])[:MINE]}
    subject = Subject("user", "ann", claims=claims)
    (decision,) = engines.in_process.decide(Evaluations(subject, "update", [Resource("pool", "team7", "p")])).decisions
    assert decision.allow is True
