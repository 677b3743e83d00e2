"""What ``can``, ``who-can``, ``matrix`` and AuthZEN's searches show is what the policy answers to single questions."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from airflow_team_authz.decision_log.record import Form
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.review import ACTIONS, Who, permissions
from airflow_team_authz.review.inventory import Things, tasks
from airflow_team_authz.review.kinds import holder
from airflow_team_authz.server import authzen
from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.authzen import Batch
from airflow_team_authz.server.database import connect, migrate
from airflow_team_authz.server.decisions import Decisions, Readable
from airflow_team_authz.server.evaluations import Asker, Seen
from airflow_team_authz.server.policies import Policies
from tests.properties.conftest import Opened
from tests.properties.words import GROUPS, NAMES, ROLE_SPELLINGS

TYPES = ("connection", "dag", "pool", "variable")


def test_what_is_shown_is_what_single_questions_are_answered(opened: Opened) -> None:
    random = Random(5)  # noqa: S311 - not for secrets
    teams = [None, *opened.teams[:2]]
    existing = [Resource(random.choice(TYPES), random.choice(teams), random.choice(NAMES)) for _ in range(4)]
    things = Things(existing, [Resource("view", id="docs")])
    whos = [
        *(Who("person", id_, Subject("user", id_, (team,), (role,))) for id_, team, role in _people(random, opened)),
        *(holder("groups", group) for group in GROUPS[:1]),
        *tasks(opened.teams[:1]),
    ]
    point = opened.engines.in_process
    shown = {(one.who.name, one.action, one.resource) for one in permissions(point, things.questions(whos))}
    asked = 0
    for who in whos:
        for one in things.questions([who]):
            for resource in one.resources:
                asked += 1
                (decision,) = point.decide(Evaluations(who.subject, one.action, [resource])).decisions
                assert ((who.name, one.action, resource) in shown) is decision.allow
    assert asked > len(shown) > 20


def test_searches_find_what_single_evaluations_allow(opened: Opened, tmp_path: Path) -> None:
    random = Random(7)  # noqa: S311 - not for secrets
    people = [Subject("user", id_, (team,), (role,)) for id_, team, role in _people(random, opened)]
    people += [who.subject for who in (holder("groups", GROUPS[0]), next(tasks(opened.teams[:1])))]
    owners = [None, *opened.teams]
    things = [Resource(random.choice(TYPES), random.choice(owners), name) for name in NAMES[:9] if name]
    engine = connect(f"sqlite:///{tmp_path}/server.db")
    migrate(engine)
    decisions, who = Decisions(engine, Form("none"), 90), Caller("p", "platform")
    events = [
        {
            "decision_id": f"{number}",
            "timestamp": "2026-11-27T04:19:09Z",
            "input": msgspec.to_builtins({"subject": random.choice(people), "action": "read", "resource": thing}),
        }
        for number, thing in enumerate(things)
    ]
    events += [events[0] | {"decision_id": f"of {number}", "input": events[0]["input"] | {
        "subject": msgspec.to_builtins(person)}} for number, person in enumerate(people)]  # fmt: skip
    assert decisions.take(who, json.dumps(events).encode(), "").dropped == 0
    asker = Asker(opened.engines.in_process, who)
    seen = Seen(decisions, Readable(Policies([])), asker, who)

    def allows(subject: dict[str, Any], action: str, resource: dict[str, Any]) -> bool:
        question = {"subject": subject, "action": {"name": action}, "resource": resource}
        return asker.decide(Batch([authzen.evaluation(question)]))["decision"] is True

    subjects = [authzen.as_subject(one, with_properties=True) for one in people]
    yes = no = 0
    for thing in things:
        about = authzen.as_resource(thing)
        for subject, action in product(subjects, ACTIONS[thing.type]):
            if action in {"list", "create"}:
                continue
            expected = allows(subject, action, about)
            sent = {"subject": subject, "action": {"name": action}, "resource": about}
            everything = authzen.page(sent)
            type_, question = authzen.subject_search(sent)
            assert (subject in asker.subjects(type_, question, everything, seen)["results"]) is expected
            assert (about in asker.resources(*authzen.resource_search(sent), everything, seen)["results"]) is expected
            found = asker.actions(*authzen.action_search(sent), everything)["results"]
            assert ({"name": action} in found) is expected
            yes, no = yes + expected, no + (not expected)
    assert yes > 5 < no


def _people(random: Random, opened: Opened) -> list[tuple[str, str, str]]:
    names = random.sample([name for name in NAMES if name], 2)
    return [(name, random.choice(opened.teams), random.choice(ROLE_SPELLINGS)) for name in names]
