"""An explanation agrees with the decision, and what it names as missing turns the answer round."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import msgspec
from hypothesis import given, settings

from airflow_team_authz.explanation import Explanation, explain
from airflow_team_authz.model import Evaluation, Evaluations, Resource, Subject
from tests.properties.conftest import Opened
from tests.properties.rules import NOTHING
from tests.properties.sites import Site, a_site
from tests.properties.words import questions, subjects

# Each takes a third of a second. More by hand: `EXPLANATIONS=200 pytest tests/properties/test_explanations.py`.
EXPLANATIONS = int(os.environ.get("EXPLANATIONS", "6"))


def files(opened: Opened, root: Path) -> dict[str, bytes]:
    opened.site.write(root)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def turned_round(opened: Opened, explanation: Explanation) -> list[str]:
    """The changes that do not turn the answer of both engines round."""
    asked = explanation.question
    return [
        change.told
        for change in explanation.changes
        for engine in opened.engines.both()
        for decision in engine.decide(
            Evaluations(change.subject, asked.action, [asked.resource], asked.context)
        ).decisions
        if decision.allow is explanation.decision.allow
    ]


def test_an_explanation_agrees_with_the_decision_of_both_engines(opened: Opened, tmp_path: Path) -> None:
    sources, seen = files(opened, tmp_path), Counter[str]()

    @given(questions(opened.teams, 1, subjects(opened.teams)))
    @settings(max_examples=EXPLANATIONS)
    def ask(question: Evaluations) -> None:
        one = Evaluation(question.subject, question.action, question.resources[0], question.context)
        first, second = (explain(engine, one, sources, "the test") for engine in opened.engines.both())
        assert first.doubt == ""
        assert first._replace(revision="") == second._replace(revision="")
        (asked,), decided = opened.site.asked(question), [step for step in first.steps if step.decides]
        assert len(decided) == (first.decision.layer != "default")
        for step in decided:
            assert step.allows is first.decision.allow
            told = {reason for rule in step.rules for reason in rule.reasons}
            assert told <= set(first.decision.reasons)
            assert told or step.name == "roles allow"
        platform = {reason for rule in first.steps[0].rules for reason in rule.reasons}
        assert set(opened.site.platform.says("deny", asked)) <= platform
        # Of a rule that does not apply a condition is named, or all of them hold and its reason has no value.
        assert all(rule.reasons == () or rule.missing is None for step in first.steps for rule in step.rules)
        assert turned_round(opened, first) == []
        seen.update([first.decision.layer])

    ask()
    assert len(seen) > 1, seen


def test_what_is_named_as_missing_turns_the_answer_round(open_site: Callable[[Site], Opened], tmp_path: Path) -> None:
    """Nobody asks about what belongs to each team that the directory names, where roles alone decide."""
    opened = open_site(replace(a_site(3, own_roles=False), teams={}, platform=NOTHING))
    sources, engine = files(opened, tmp_path), opened.engines.in_process
    entries = [entry for found in opened.site.directory["groups"].values() for entry in found]
    named: Counter[bool] = Counter()
    teams = sorted({str(entry["team_id"]) for entry in entries if entry["team_id"] is not None})
    kinds = [("pool", "read"), ("dag", "trigger"), ("connection", "read"), ("variable", "update")]
    for team_id, (type_, action) in zip(cycle(teams), kinds, strict=False):
        question = Evaluation(Subject("user", "somebody", (), (), ()), action, Resource(type_, team_id, "d"))
        explanation = explain(engine, question, sources, "the test")
        assert turned_round(opened, explanation) == []
        for change in explanation.changes[:3]:
            back = explain(engine, msgspec.structs.replace(question, subject=change.subject), sources, "the test")
            assert turned_round(opened, back) == []
            named.update([explanation.decision.allow, bool(back.changes)])
    assert named[False] > 3, named
    assert named[True] > 3, named
