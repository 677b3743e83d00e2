"""Rules out of recorded differences end all that rules can end, and change no other answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from airflow_team_authz.model import Decision, Evaluations, Resource, Subject
from airflow_team_authz.review import Asked, Who
from airflow_team_authz.review.changes import Difference, Seen
from airflow_team_authz.review.proposal import FOLDER, propose, still_different
from tests.conftest import Engines, write
from tests.properties.conftest import Opened
from tests.properties.words import ACTIONS, ENTITIES, GROUPS, NAMES, ROLE_SPELLINGS, TYPES

RECORDED, OTHERS = 200, 400


def a_question(random: Random, teams: tuple[str, ...]) -> tuple[Subject, str, Resource]:
    groups, roles, team_ids = (
        tuple(random.sample(names, random.choice((0, 0, 1, 2)))) for names in (GROUPS, ROLE_SPELLINGS, teams)
    )
    subject = Subject("user", random.choice(NAMES) or "x", team_ids, roles, groups)
    type_ = random.choice(TYPES)
    more = {"entity": random.choice(ENTITIES)} if type_ == "dag" and random.random() < 0.5 else {}
    if random.random() < 0.8:
        more["id"] = random.choice(NAMES)
    return subject, random.choice(ACTIONS), Resource(type_, random.choice([None, *teams]), **more)


@pytest.mark.parametrize("by_person", [True, False], ids=["by person", "by groups"])
def test_they_end_what_rules_can_end_and_change_no_other_answer(
    opened: Opened, open_engines: Callable[[Path], Engines], tmp_path: Path, by_person: bool
) -> None:
    random, point = Random(11), opened.engines.in_process  # noqa: S311 - not for secrets

    def decided(subject: Subject, action: str, resource: Resource) -> Decision:
        (decision,) = point.decide(Evaluations(subject, action, [resource])).decisions
        return decision

    def who(subject: Subject) -> object:
        held = (subject.groups, subject.roles, subject.team_ids)
        return subject.id if by_person else tuple(tuple(sorted(names or ())) for names in held)

    recorded, questions = [], {}
    for _ in range(RECORDED):
        subject, action, resource = a_question(random, opened.teams)
        new = decided(subject, action, resource)
        questions[who(subject), action, resource] = new.allow
        asked = Asked(Who("person", subject.id, subject), action, [resource])
        recorded.append(
            Difference(asked, resource, Decision(not new.allow, (), "default"), new, Seen(1, (), "", subject))
        )
    # Two people with one name, of whom the auth manager allowed something to one only.
    recorded = [
        one for one in recorded if questions[who(one.question.subject), one.asked.action, one.resource] is one.new.allow
    ]
    proposal = propose(recorded, by_person)
    policy = opened.site.write(tmp_path / "policy")
    changed = open_engines(write(policy, {f"{FOLDER}/observed.rego": proposal.text})).in_process
    assert [one for one, _ in still_different(changed, recorded)] == list(proposal.remaining)
    assert len(recorded) > RECORDED * 0.9
    assert 0 < len(proposal.remaining) < RECORDED * 0.7
    allowed = 0
    for _ in range(OTHERS):
        subject, action, resource = a_question(random, opened.teams)
        if (who(subject), action, resource) not in questions:
            (answer,) = changed.decide(Evaluations(subject, action, [resource])).decisions
            assert answer == decided(subject, action, resource)
            allowed += answer.allow
    assert 0 < allowed < OTHERS
