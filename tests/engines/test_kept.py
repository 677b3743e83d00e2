"""What the policy in this process has answered is kept, and is what it would answer now."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.engines.kept import Kept
from airflow_team_authz.model import Context, Evaluations, PolicyBroken, Resource, Subject
from airflow_team_authz.opa import wasm
from airflow_team_authz.opa.compile import compile_directory
from tests.conftest import REPOSITORY, eventually, opened

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
    engine._in_force = engine._in_force._replace(kept=Kept())
    return DecisionPoint(engine)


def test_the_same_question_is_evaluated_once(decisions: DecisionPoint, evaluated: list[bytes]) -> None:
    first = decisions.decide(QUESTION), decisions.allowed(QUESTION), decisions.whoami(ANN)
    assert len(evaluated) == 3
    for _ in range(3):
        assert (decisions.decide(QUESTION), decisions.allowed(QUESTION), decisions.whoami(ANN)) == first
    assert len(evaluated) == 3


@pytest.mark.parametrize("part", OTHERS)
def test_a_question_that_differs_in_any_part_is_another_one(
    part: str, engine: InProcess, decisions: DecisionPoint, evaluated: list[bytes]
) -> None:
    other = OTHERS[part]
    alone = decisions.decide(other), decisions.allowed(other)
    engine._in_force = engine._in_force._replace(kept=Kept())
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


def test_an_error_is_not_kept(policy: Policy, evaluated: list[bytes]) -> None:
    with opened(policy(SITE)) as decisions:
        for asked in (1, 2):
            with pytest.raises(PolicyBroken, match="fuel"):
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


def test_what_was_not_asked_for_longest_goes_first() -> None:
    answer = msgspec.Raw(b"x" * 1_000)
    kept = Kept(most_bytes=5_000)
    keys = [kept.key("allowed", b"%d" % number) for number in range(4)]
    for key in keys[:3]:
        kept.keep(key, answer)
    assert kept.get(keys[0]) is answer
    kept.keep(keys[3], answer)
    assert [kept.get(key) is answer for key in keys] == [True, False, True, True]
    kept.keep(keys[1], msgspec.Raw(b"x" * 10_000))
    assert [kept.get(key) for key in keys] == [None] * 4
    kept.keep(keys[1], answer)
    assert kept.get(keys[1]) is answer


def test_a_list_costs_the_same_however_much_of_it_is_allowed(engine: InProcess) -> None:
    """In fuel, which counts what is done: for who may read the Dags of a hundred teams, and who those of one."""
    dags = [Resource("dag", f"team{number % 100}", f"dag{number}") for number in range(1_000)]
    admin, viewer = Subject("user", "pat", (), ("admin",)), Subject("user", "vic", ("team0",), ("viewer",))
    used = {}
    for subject in (admin, viewer):
        engine.query("allowed", msgspec.json.encode(Evaluations(subject, "read", dags)), len(dags), 100)
        used[subject.id] = engine._in_force.instances.idle[-1].fuel_used
    assert used["pat"] < 1.5 * used["vic"]
