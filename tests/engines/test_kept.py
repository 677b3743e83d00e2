"""What the policy in this process has answered is kept, and is what it would answer now."""

from __future__ import annotations

import copy
import multiprocessing
import shutil
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from airflow_team_authz.engines import CHUNK, DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.engines.kept import Kept, Key, key
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import Context, Evaluations, PolicyBrokenError, Provenance, Resource, Resources, Subject
from airflow_team_authz.opa import wasm
from airflow_team_authz.opa.compile import ENTRYPOINTS, compile_directory, find_opa, shipped_policies
from tests.conftest import REPOSITORY, eventually, opened, write

Policy = Callable[[dict[str, str]], Path]
Patch = pytest.MonkeyPatch
ANN = Subject("user", "ann", ("alpha",), ("op",), ("alpha-engineers",), {"department": ("finance",)})
PG = Resource("connection", "alpha", "pg")
QUESTION = Evaluations(ANN, "read", [PG, Resource("pool", "beta", "pool")], Context("7", ("ann",)))
change = msgspec.structs.replace
# One for each part of a question: what differs in nothing else is another question.
OTHERS = {
    "who": change(QUESTION, subject=change(ANN, id="eve")),
    "what kind of subject": change(QUESTION, subject=change(ANN, type="task")),
    "teams": change(QUESTION, subject=change(ANN, team_ids=("beta",))),
    "no teams": change(QUESTION, subject=change(ANN, team_ids=msgspec.UNSET)),
    "roles": change(QUESTION, subject=change(ANN, roles=("viewer",))),
    "groups": change(QUESTION, subject=change(ANN, groups=("beta-engineers",))),
    "claims": change(QUESTION, subject=change(ANN, claims={"department": ("sales",)})),
    "unverified": change(QUESTION, subject=change(ANN, unverified="its token has expired")),
    "a task's Dag": change(QUESTION, subject=change(ANN, dag_id="daily")),
    "a task's name": change(QUESTION, subject=change(ANN, task_id="load")),
    "a task's run": change(QUESTION, subject=change(ANN, run_id="run1")),
    "action": change(QUESTION, action="delete"),
    "order": change(QUESTION, resources=QUESTION.resources[::-1]),
    "fewer": change(QUESTION, resources=QUESTION.resources[:1]),
    "kind": change(QUESTION, resources=[change(PG, type="variable"), QUESTION.resources[1]]),
    "owner": change(QUESTION, resources=[change(PG, team_id="beta"), QUESTION.resources[1]]),
    "common": change(QUESTION, resources=[change(PG, team_id=None), QUESTION.resources[1]]),
    "name": change(QUESTION, resources=[change(PG, id="audit_store"), QUESTION.resources[1]]),
    "no name": change(QUESTION, resources=[change(PG, id=msgspec.UNSET), QUESTION.resources[1]]),
    "part": change(QUESTION, resources=[change(PG, entity="run"), QUESTION.resources[1]]),
    "context": change(QUESTION, context=Context("8", ("ann",))),
    "assigned": change(QUESTION, context=Context("7", ("eve",))),
    "no context": change(QUESTION, context=msgspec.UNSET),
}
DIGITS = "digits := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
COSTLY = f"count([1 | {'; '.join(f'some {name} in digits' for name in 'abcdefgh')}]) > 0"
SITE = {
    "teams/alpha/alpha.rego": 'package teams.alpha\ndeny contains "the first" if input.action == "read"',
    "teams/costly/c.rego": f'package teams.costly\ndeny contains "x" if {COSTLY}\n{DIGITS}',
}
SECOND = {"teams/alpha/alpha.rego": 'package teams.alpha\ndeny contains "the second" if input.action == "read"'}


def reasons(decisions: DecisionPoint, name: str = "pg") -> tuple[str, ...]:
    return decisions.decide(Evaluations(ANN, "read", [Resource("connection", "alpha", name)])).decisions[0].reasons


@pytest.fixture
def evaluated(monkeypatch: Patch) -> list[bytes]:
    """The questions that a policy has really been evaluated for."""
    questions: list[bytes] = []

    evaluate = wasm.Machine.evaluate

    def noted(machine: wasm.Machine, entrypoint: str, question: bytes, fuel: int) -> msgspec.Raw:
        questions.append(question)
        return evaluate(machine, entrypoint, question, fuel)

    monkeypatch.setattr(wasm.Machine, "evaluate", noted)
    return questions


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """The example's policy, which nobody has asked yet."""
    bundle = tmp_path_factory.mktemp("kept") / "bundle.tar.gz"
    compile_directory(REPOSITORY / "policies", bundle)
    engine = InProcess(bundle)
    yield engine
    engine.close()


@pytest.fixture
def decisions(engine: InProcess) -> DecisionPoint:
    """The same, with nothing kept."""
    engine._in_force = engine._in_force._replace(kept=Kept(engine.revision))
    return DecisionPoint(engine)


def test_the_same_question_is_evaluated_once(decisions: DecisionPoint, evaluated: list[bytes]) -> None:
    listed = change(QUESTION, resources=Resources(QUESTION.resources))

    def ask() -> Any:
        return decisions.decide(QUESTION), decisions.allowed(QUESTION), decisions.allowed(listed), decisions.whoami(ANN)

    first = ask()
    assert len(evaluated) == 4
    for _ in range(3):
        assert ask() == first
    assert len(evaluated) == 4


def test_who_changes_an_answer_changes_nobody_elses(decisions: DecisionPoint) -> None:
    first = decisions.decide(QUESTION).decisions, decisions.allowed(QUESTION), decisions.whoami(ANN)[0]
    told = copy.deepcopy(first)
    first[0].reverse()
    first[1].clear()
    first[2].team_roles.clear()
    assert (decisions.decide(QUESTION).decisions, decisions.allowed(QUESTION), decisions.whoami(ANN)[0]) == told


def test_the_observer_is_told_of_every_decision_and_whether_it_was_kept(engine: InProcess) -> None:
    told: list[tuple[int, str, bool]] = []

    class Observing:
        def decided(self, _: Any, decisions: Any, how: Provenance) -> str:
            told.append((len(decisions), how.revision, how.kept))
            return f"id{len(told)}"

        def listed(self, _: Any, allowed: Any, how: Provenance) -> None:
            told.append((len(allowed), how.revision, how.kept))

        def failed(self, *_: Any) -> str:
            raise AssertionError("nothing fails here")

    engine._in_force = engine._in_force._replace(kept=Kept("r1"))
    point = DecisionPoint(engine, Observing())
    # In two parts, of which only the first is there already.
    many = change(QUESTION, resources=[*QUESTION.resources * (CHUNK // 2), PG])
    point.allowed(change(many, resources=many.resources[:CHUNK]))
    ids = [point.decide(QUESTION).decision_id for _ in range(2)]
    for _ in range(2):
        point.allowed(many)
    assert ids == ["id2", "id3"]
    assert [kept for *_, kept in told] == [False, False, True, False, True]
    assert {told[1][0], told[2][0]} == {2}


@pytest.mark.parametrize("part", OTHERS)
def test_a_question_that_differs_in_any_part_is_another_one(
    part: str, engine: InProcess, decisions: DecisionPoint, evaluated: list[bytes]
) -> None:
    other = OTHERS[part]
    alone = decisions.decide(other), decisions.allowed(other)
    engine._in_force = engine._in_force._replace(kept=Kept(engine.revision))
    decisions.decide(QUESTION)
    decisions.allowed(QUESTION)
    evaluated.clear()
    assert (decisions.decide(other), decisions.allowed(other)) == alone
    assert len(evaluated) == 2


def test_every_part_of_a_question_is_among_them() -> None:
    assert len({msgspec.json.encode(question) for question in OTHERS.values()}) == len(OTHERS)
    asked = msgspec.to_builtins(list(OTHERS.values()))
    assert {name for question in asked for name in question["subject"]} == set(Subject.__struct_fields__)
    assert {name for question in asked for name in question} == set(Evaluations.__struct_fields__)
    assert {name for question in asked for name in question.get("context", ())} == set(Context.__struct_fields__)


def test_a_bundle_whose_rules_know_more_than_the_question_is_refused(tmp_path: Path) -> None:
    """Whoever makes a bundle with `opa build` alone has OPA's functions, whose answers are not to be kept."""
    impure = ["http.send", "opa.runtime", "rand.intn", "time.now_ns"]
    rule = """package airflow.site
allow contains "now" if {
	time.now_ns() > rand.intn(input.subject.id, 9)
	http.send({"method": "get", "url": opa.runtime().env.URL}).status_code == 200
}
"""
    policies = shutil.copytree(shipped_policies() / "airflow", tmp_path / "policy" / "airflow").parent
    write(policies, {"airflow/site/now.rego": rule})
    entrypoints = [argument for name in ENTRYPOINTS for argument in ("--entrypoint", name)]
    command = [find_opa(), "build", "--target", "wasm", "--bundle", ".", "--ignore", "*_test.rego", *entrypoints]
    subprocess.run([*command, "--output", "bundle.tar.gz"], cwd=policies, check=True)
    with pytest.raises(PolicyBrokenError, match="which the in-process engine does not have") as refused:
        InProcess(policies / "bundle.tar.gz")
    assert all(name in str(refused.value) for name in impure)


def test_of_an_opa_servers_answers_none_is_kept() -> None:
    """Its policy and its data may change between any two questions, and it tells only which revision has answered."""
    assert not hasattr(OpaServer, "kept")


def test_an_error_is_not_kept(policy: Policy, evaluated: list[bytes]) -> None:
    with opened(policy(SITE)) as decisions:
        for asked in (1, 2):
            with pytest.raises(PolicyBrokenError, match="fuel"):
                decisions.decide(Evaluations(ANN, "read", [Resource("connection", "costly", "pg")]))
            # The first time also without the team's package, which says whose rules they are.
            assert len(evaluated) == 1 + asked


def test_another_policy_answers_anew(policy: Policy, evaluated: list[bytes]) -> None:
    with opened(policy(SITE)) as decisions:
        for name in "abc":
            assert reasons(decisions, name) == ("the first",)
        policy(SECOND)
        eventually(lambda: reasons(decisions) == ("the second",))
        evaluated.clear()
        for name in "abc":
            assert reasons(decisions, name) == ("the second",)
        assert len(evaluated) == 3


def test_an_answer_of_the_policy_before_is_not_kept_for_the_next(policy: Policy, monkeypatch: Patch) -> None:
    """One thread is still at its question when the policy changes."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(wasm.Machine):
        def evaluate(self, entrypoint: str, question: bytes, fuel: int) -> msgspec.Raw:
            answer = super().evaluate(entrypoint, question, fuel)
            if b'"slow"' in question and not begun.is_set():
                begun.set()
                assert go_on.wait(60)
            return answer

    monkeypatch.setattr(wasm, "Machine", Slow)
    with opened(policy(SITE)) as decisions, ThreadPoolExecutor(1) as pool:
        late = pool.submit(reasons, decisions, "slow")
        assert begun.wait(60)
        policy(SECOND)
        eventually(lambda: reasons(decisions) == ("the second",))
        go_on.set()
        assert late.result(60) == ("the first",)
        assert reasons(decisions, "slow") == ("the second",)


def test_threads_that_ask_the_same_have_the_right_answers(policy: Policy) -> None:
    together = threading.Barrier(8, timeout=60)

    def ask(point: DecisionPoint) -> set[tuple[str, str]]:
        together.wait()
        return {(name, reasons(point, name)[0]) for _ in range(20) for name in "abc"}

    rules = 'package teams.alpha\ndeny contains $"not {input.resource.id}"'
    with opened(policy({"teams/alpha/alpha.rego": rules})) as point, ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(ask, [point] * 8)) == {(name, f"not {name}") for name in "abc"}


def test_a_child_answers_though_a_thread_of_its_parent_was_just_looking(
    engine: InProcess, decisions: DecisionPoint
) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    told = decisions.allowed(QUESTION)
    process = context.Process(target=lambda: there.send(decisions.allowed(QUESTION)), daemon=True)
    with engine._in_force.kept._lock:
        process.start()
    assert here.poll(60)
    assert here.recv() == told
    process.join(60)
    assert process.exitcode == 0


def kept_of(number: int, most: int = 40_000) -> tuple[Kept, list[Key]]:
    """So many answers of 1,000 bytes, each somebody else's."""
    kept, places = Kept("r1", most_bytes=most), [key("allowed", b"%d" % place) for place in range(number)]
    for place in places:
        kept.keep(place, b"x" * 1_000, 1_000, ("user", place[1].decode()))
    return kept, places


def test_what_nobody_asks_for_again_goes_first() -> None:
    kept, places = kept_of(20)
    assert all(kept.get(place) for place in places[:5])
    for number in range(100, 116):
        kept.keep(key("allowed", b"%d" % number), b"y", 1_000, ("user", str(number)))
    assert [bool(kept.get(place)) for place in places] == [True] * 5 + [False] * 15


def test_what_is_kept_is_bounded_by_what_it_takes_in_memory(decisions: DecisionPoint, engine: InProcess) -> None:
    """Python's own count of what the answers take, keys and all, is not above what the cache believes."""
    words = [f"{number:05d}" for number in range(1_000)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for word in words:
            decisions.decide(Evaluations(change(ANN, id=word), "read", [Resource("pool", "beta", word)]))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    believed = engine._in_force.kept._all.bytes
    assert after - before < believed


def test_an_answer_that_is_too_large_is_not_kept_and_pushes_out_none() -> None:
    kept, places = kept_of(5)
    kept.keep(key("allowed", b"large"), b"x", 6_000, ("user", "eve"))
    assert kept.get(key("allowed", b"large")) is None
    assert all(kept.get(place) for place in places)


def test_a_list_costs_the_same_however_much_of_it_is_allowed(engine: InProcess) -> None:
    """In fuel, which counts what is done: for who may read the Dags of a hundred teams, and who those of one."""
    dags = [Resource("dag", f"team{number % 100}", f"dag{number}") for number in range(1_000)]
    admin, viewer = Subject("user", "pat", (), ("admin",)), Subject("user", "vic", ("team0",), ("viewer",))
    used = {}
    for subject in (admin, viewer):
        engine.query("allowed", msgspec.json.encode(Evaluations(subject, "read", dags)), len(dags), 100)
        used[subject.id] = engine._in_force.instances.idle[-1].fuel_used
    assert used["pat"] < 1.5 * used["vic"]
