"""With the cache the answers are those that the policy would give now, for questions that differ in one part only."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from airflow_team_authz.engines import DecisionPoint, Reply
from airflow_team_authz.engines.in_process import InProcess, _InForce, load_bundle
from airflow_team_authz.engines.kept import Kept
from airflow_team_authz.model import Context, Evaluations, Resource, Resources, Subject
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.opa.wasm import Policy
from tests.conftest import write
from tests.properties.words import questions, subjects

change = msgspec.structs.replace
TEAMS = ("alpha", "Alpha", "1")
# Its reason is the question that it was asked, so an answer to another question is seen. Lists have no reasons: there
# whatever is allowed hangs on the whole question, too.
ECHO = """package airflow.site

deny contains json.marshal(input) if input.action == "echo"

allow contains "it is long" if count(json.marshal(input)) > data.airflow.site.longest
"""
SUBJECT = Subject("user", "ann", ("a", "b"), ("op",), ("x",), {"d": ("a", "b"), "e": ("c",)})
RESOURCE = Resource("connection", "alpha", "pg", "run")
QUESTION = Evaluations(SUBJECT, "echo", [RESOURCE], Context("7", ("ann", "bob")))
# Values that a careless key would take for each other; not all of them are of the right type, as a plugin's may not be.
ALIKE: dict[str, list[Any]] = {
    "claims": [
        {"d": ("a,b",)}, {"d": ("a", "b")}, {"d": ("b", "a")}, {"d": ('a","b',)}, {"d": ("a",), "e": ("b",)}, {"d": ()},
        {"d": ("a", "b"), "e": ()}, {"da": ("b",)}, {"d": ("",)}, {"": ("d",)}, {}, UNSET,
    ],
    "team_ids": [("a", "b"), ("b", "a"), ("a,b",), ("ab",), ("a",), ("a", "a"), ("",), ("None",), (), UNSET],
    "roles": [("1",), (1,), (True,), (1.0,), ("True",), ("true",), ()],
    "groups": [("é",), ("e\u0301",), ("\u212a",), ("K",), ("k",), ("a\x00",), ("a",), ("A",)],
    "unverified": ["", "null", "false", UNSET],
    "id": ["1", "01", "1 ", " 1", "\uff11", "null", "", "x" * 600, "x" * 601],
}  # fmt: skip
OF_RESOURCE: dict[str, list[Any]] = {
    "id": ["1", 1, True, 1.0, "true", "", "null", "None", UNSET, "é", "e\u0301"],
    "team_id": [None, "", "null", "None", "1", "alpha", "Alpha", "alpha "],
    "entity": [UNSET, "", "run", "RUN", "run "],
    "name": [UNSET, "", "a"],
    "uri": [UNSET, "", "a"],
    "group": [UNSET, "", "a"],
}
OF_CONTEXT: list[Any] = [
    UNSET, Context(), Context("7"), Context("7", ()), Context("7", ("ann", "bob")), Context("7", ("bob", "ann")),
    Context("7", ("ann,bob",)), Context(assigned_users=("7",)), Context("", ("7",)),
]  # fmt: skip
POISONS = [
    *(change(QUESTION, subject=change(SUBJECT, **{part: value})) for part in ALIKE for value in ALIKE[part]),
    *(
        change(QUESTION, resources=[change(RESOURCE, **{part: value})])
        for part in OF_RESOURCE
        for value in OF_RESOURCE[part]
    ),
    *(change(QUESTION, context=context) for context in OF_CONTEXT),
]


class Bare:
    """The same engine, of whose answers nothing is kept."""

    def __init__(self, engine: InProcess) -> None:
        self._engine = engine

    def query(self, *arguments: Any) -> Reply:
        return self._engine.query(*arguments)._replace(kept=None)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy, Path]:
    """Two policies, and the bundle of the first."""
    home = tmp_path_factory.mktemp("cache")
    bundles = []
    for longest in (220, 240):
        files = {"airflow/site/site.rego": ECHO, "airflow/site/data.json": json.dumps({"longest": longest})}
        bundles.append(home / f"{longest}.tar.gz")
        compile_directory(write(home / str(longest), files), bundles[-1])
    first, second = map(load_bundle, bundles)
    return first._replace(revision="first"), second._replace(revision="second"), bundles[0]


@pytest.fixture(scope="module")
def engine(policies: tuple[Policy, Policy, Path]) -> Iterator[InProcess]:
    engine = InProcess(policies[2])
    yield engine
    engine.close()


def echoed(question: Evaluations) -> set[str]:
    """The reasons that the policy gives: each resource's question, with sorted names as OPA writes it."""
    asked = msgspec.json.decode(msgspec.json.encode(question))
    shared = {name: part for name, part in asked.items() if name != "resources"}
    return {canonical(shared | {"resource": resource}) for resource in asked["resources"]}


def canonical(document: Any) -> str:
    return msgspec.json.encode(document, order="sorted").decode()


def said(point: DecisionPoint, question: Evaluations) -> set[str]:
    reasons = {reason for decision in point.decide(question).decisions for reason in decision.reasons}
    return {canonical(msgspec.json.decode(reason)) for reason in reasons if reason.startswith("{")}


def test_questions_that_look_alike_have_answers_of_their_own(engine: InProcess) -> None:
    point = DecisionPoint(engine)
    for order in (POISONS, POISONS[::-1], random.Random(7).sample(POISONS, len(POISONS))):  # noqa: S311
        for question in order:
            assert said(point, question) == echoed(question)
            listed = change(question, resources=Resources(question.resources))
            assert said(point, listed) == echoed(question)


def test_a_list_is_the_same_whichever_way_its_resources_come(engine: InProcess) -> None:
    point, bare = DecisionPoint(engine), DecisionPoint(Bare(engine))
    seen: set[int] = set()

    @settings(max_examples=25)
    @given(questions(TEAMS, 4, subjects(TEAMS)), st.randoms(use_true_random=False))
    def ask(question: Evaluations, chance: random.Random) -> None:
        others = [*question.resources]
        chance.shuffle(others)
        for asked in (question, change(question, action="read"), change(question, resources=others)):
            expected = bare.allowed(asked), bare.decide(asked).decisions
            for resources in (asked.resources, Resources(asked.resources)) * 2:
                same = change(asked, resources=resources)
                assert (point.allowed(same), point.decide(same).decisions) == expected
            seen.add(len(expected[0]))

    ask()
    assert len(seen) > 2


def test_threads_have_the_answers_of_the_policy_that_they_are_told(
    engine: InProcess, policies: tuple[Policy, Policy, Path]
) -> None:
    """The policy changes all the time; once a change is over, nobody hears of the policy before."""
    point = DecisionPoint(engine)
    over, changes = threading.Event(), 60
    # What the list allows differs between the policies, and every question was asked of both.
    asked = [change(question, action="list", resources=Resources(question.resources * 3)) for question in POISONS[:40]]
    expected = {}
    for policy in policies[:2]:
        engine._in_force = _InForce.anew(policy)
        bare = DecisionPoint(Bare(engine))
        expected[policy.revision] = [len(bare.allowed(question)) for question in asked]
    assert expected["first"] != expected["second"]

    def ask(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        while not over.is_set():
            number = chance.randrange(len(asked))
            answer = point.decide(asked[number])
            assert sum(decision.allow for decision in answer.decisions) == expected[answer.revision][number]

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, seed) for seed in range(4)]
        try:
            for number in range(changes):
                policy = policies[number % 2]
                engine._in_force = _InForce.anew(policy)
                for _ in range(3):
                    which = number % len(asked)
                    answer = point.decide(asked[which])
                    assert answer.revision == policy.revision
                    assert len(point.allowed(asked[which])) == expected[policy.revision][which]
        finally:
            over.set()
        for one in asking:
            one.result(60)


def test_whoever_asks_for_much_pushes_out_only_what_is_their_own() -> None:
    kept = Kept("r", most_bytes=1 << 20)
    mine = [("decisions", b"ann %d" % number, b"") for number in range(20)]
    for place in mine:
        kept.keep(place, "yes", 10, ("user", "ann"))
    for number in range(20_000):
        kept.keep(("decisions", b"eve %d" % number, b""), "no", 10, ("user", "eve"))
    assert [kept.get(place) for place in mine] == ["yes"] * 20
