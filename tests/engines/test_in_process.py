"""The policy as Wasm in this process: what breaks is an error and never an allow, and what changes is noticed."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import tarfile
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz import forks
from airflow_team_authz.engines import CHUNK, DecisionPoint, in_process, rule_checks
from airflow_team_authz.engines.choice import packaged_baseline
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.gate import policy_files
from airflow_team_authz.model import (
    EngineError,
    Evaluations,
    MalformedError,
    PolicyBrokenError,
    Resource,
    Subject,
    TooLongError,
    UndefinedError,
)
from airflow_team_authz.opa import wasm
from airflow_team_authz.opa.archive import MAX_BYTES
from airflow_team_authz.opa.compile import ENTRYPOINTS, compile_directory
from tests.conftest import Engines, build, errors, eventually, forked, opened, pack, restore, unpack, write

Policy = Callable[[dict[str, str]], Path]
Patch = pytest.MonkeyPatch
Log = pytest.LogCaptureFixture
EVE = Subject("user", "eve")
ANN = Subject("user", "ann", ("alpha", "broken", "costly"), ("op",))
DIGITS = "digits := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
COSTLY = f"count([1 | {'; '.join(f'some {name} in digits' for name in 'abcdefgh')}]) > 0"
OBEDIENT = f"""package airflow.authz
yes := {{"allow": true, "reasons": ["told to"], "layer": "team"}}
decision := yes if input.action == "read"
allowed := [0] if input.action == "read"

whoami := {{}}
decisions := [yes] if input.action == "read"
decisions := "yes" if input.action == "answer with a text"
decisions := [yes, yes] if input.action == "conflict"
decisions := [] if input.action == "conflict"
decisions := [yes | {COSTLY}] if input.action == "use up the fuel"
decisions := [yes | count(concat("", [long | some _ in digits])) > 0] if input.action == "use up the memory"
{DIGITS}
long := concat("", [input.subject.id | some _ in digits; some _ in digits; some _ in digits])
"""
TOLD_TO = (True, ("told to",))
ALPHA = "package teams.alpha\nallow contains word if some word in data.teams.alpha.words\n"
SITE = {
    ".manifest": '{"revision": "r7"}',
    "teams/alpha/data.json": '{"words": ["one"]}',
    "teams/alpha/alpha.rego": ALPHA + 'deny contains $"für {input.resource.id}" if endswith(input.resource.id, "7")',
    "teams/broken/b.rego": 'package teams.broken\ndeny contains "x" if n > 0\nn := 1\nn := 2 if input.action == "read"',
    "teams/costly/c.rego": f'package teams.costly\ndeny contains "x" if {COSTLY}\n{DIGITS}',
}
ONE, TWO = (True, ("one",)), (True, ("two",))
SECOND = {"teams/alpha/data.json": '{"words": ["two"]}'}


def about(subject: Subject, team: str, *ids: str, action: str = "read") -> Evaluations:
    return Evaluations(subject, action, [Resource("connection", team, name) for name in ids or ("pg",)])


def verdict(decisions: DecisionPoint) -> tuple[bool, tuple[str, ...]]:
    decision = decisions.decide(about(EVE, "alpha")).decisions[0]
    return decision.allow, decision.reasons


@pytest.fixture(scope="module")
def obedient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("obedient") / "bundle.tar.gz"
    bundle.write_bytes(build(OBEDIENT))
    return bundle


@pytest.fixture(scope="module")
def site(open_engines: Callable[[Path], Engines], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return open_engines(write(tmp_path_factory.mktemp("site"), SITE))


@pytest.fixture(params=[0, 1], ids=["in process", "server"])
def either(request: pytest.FixtureRequest, site: Engines) -> DecisionPoint:
    return site.both()[request.param]


@pytest.fixture(params=[False, True], ids=["for speed", "in a hurry"])
def either_compiler(request: pytest.FixtureRequest, monkeypatch: Patch) -> None:
    """Engines have a policy that was compiled for speed, or in a hurry."""
    load = in_process.load_bundle
    monkeypatch.setattr(in_process, "load_bundle", lambda *given, **_: load(*given[:2], quick=request.param))


@pytest.fixture
def users(monkeypatch: Patch) -> dict[object, set[int]]:
    """The threads in which each instance of a policy is used, by one of them at a time."""
    seen: dict[object, set[int]] = defaultdict(set)

    class Noted(wasm.Machine):
        busy = False

        def evaluate(self, *question: Any) -> Any:
            assert not self.busy
            self.busy = True
            seen[self].add(threading.get_ident())
            try:
                return super().evaluate(*question)
            finally:
                self.busy = False

    monkeypatch.setattr(wasm, "Machine", Noted)
    return seen


def test_a_changed_bundle_is_in_force_first_and_fast_later(tmp_path: Path, monkeypatch: Patch) -> None:
    hurried: list[bool] = []
    load = in_process.load_bundle

    def noted(path: Path, trust: Any = None, quick: bool = False, kept_code: Any = None) -> in_process.Policy:
        policy = load(path, trust, quick, kept_code)
        hurried.append(quick)
        return policy

    monkeypatch.setattr(in_process, "load_bundle", noted)
    monkeypatch.setattr(in_process, "_AGAIN_SECONDS", 3600.0)
    bundle = tmp_path / "bundle.tar.gz"
    bundle.write_bytes(build(OBEDIENT))
    with opened(bundle) as decisions:
        assert verdict(decisions) == TOLD_TO
        bundle.touch()
        eventually(lambda: hurried == [False, True])
        time.sleep(4 * in_process.POLL_SECONDS)
        assert hurried == [False, True]
        monkeypatch.setattr(in_process, "_AGAIN_SECONDS", 0.0)
        bundle.touch()
        eventually(lambda: hurried == [False, True, True, False])
        time.sleep(2 * in_process.POLL_SECONDS)
        assert hurried == [False, True, True, False]
        assert verdict(decisions) == TOLD_TO


def test_patterns_of_many_teams_fit_into_one_question(tmp_path: Path) -> None:
    names = [f"team{number}" for number in range(20)]
    rules = "\n".join(
        f"allow contains {i} if regex.match(`^prod_{i}_[a-z0-9_]{{1,20}}$`, input.resource.id)" for i in range(6)
    )
    policy = {f"teams/{name}/x.rego": f"package teams.{name}\n{rules.replace('prod', name)}" for name in names}
    with opened(write(tmp_path, policy)) as decisions:
        listed = [Resource("connection", name, f"{name}_5_x") for name in names]
        assert decisions.decide(Evaluations(EVE, "read", listed)).decisions


def test_a_policy_may_tell_more_of_itself_than_fits_into_a_page(tmp_path: Path) -> None:
    names = [f"{'long' * 50}{number}" for number in range(400)]
    rules = "\n".join(f"{name} := 1" for name in names)
    bundle = tmp_path / "bundle.tar.gz"
    bundle.write_bytes(build(OBEDIENT + rules, (*ENTRYPOINTS, *(f"airflow/authz/{name}" for name in names))))
    with opened(bundle) as decisions:
        assert verdict(decisions) == TOLD_TO


@pytest.mark.usefixtures("either_compiler")
@pytest.mark.parametrize(("action", "size", "error", "told"), [
    ("answer with a text", 1, MalformedError, "agreed form"),
    ("do nothing", 1, UndefinedError, "airflow.authz.decisions"),
    ("conflict", 1, PolicyBrokenError, "conflict"),
    ("use up the fuel", 1, TooLongError, "fuel"),
    ("use up the memory", 1, PolicyBrokenError, "malloc"),
])  # fmt: skip
def test_a_failed_evaluation_is_an_error_and_is_not_kept(
    action: str, size: int, error: type[EngineError], told: str, obedient: Path
) -> None:
    with opened(obedient) as decisions:
        for _ in range(2):
            with pytest.raises(EngineError, match=told) as raised:
                decisions.decide(about(Subject("user", "x" * 30_000), "alpha", *["pg"] * size, action=action))
            assert type(raised.value) is error
            assert verdict(decisions) == TOLD_TO


@pytest.mark.usefixtures("either_compiler")
def test_a_trap_is_an_error_and_its_store_is_not_used_again(obedient: Path, users: dict[object, set[int]]) -> None:
    engine = InProcess(obedient)
    with pytest.raises(PolicyBrokenError, match="call stack exhausted"):
        engine.query("decisions", b"[" * 100_000, 1)
    for _ in range(2):
        assert b"told to" in bytes(engine.query("decisions", b'{"action": "read"}', 1).value)
    assert len(users) == 2
    engine.close()


def test_an_instance_with_much_data_is_used_again(policy: Policy, users: dict[object, set[int]]) -> None:
    """Starting one takes a thousand times as long as a decision."""
    numbers = json.dumps({"numbers": [1] * 300_000})
    with opened(policy(SITE | {"airflow/site/data.json": numbers})) as decisions:
        for _ in range(3):
            assert verdict(decisions) == ONE
        assert decisions._engine._in_force.instances.idle[-1].pages > wasm.KEEP_PAGES  # type: ignore[attr-defined]
    assert len(users) == 1


TOO_MUCH = b"\0" * (MAX_BYTES + 1)
SPARSE = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
OTHER = "package airflow.authz\ndecision := 1\ndecisions := []\nallowed := []\nwhoami := {}\n"
BAD_BUNDLES: dict[str, tuple[Callable[[dict[str, bytes]], bytes], str]] = {
    "empty": (lambda _: b"", "empty"),
    "not gzip": (lambda _: b"Welcome", "gzip"),
    "truncated": (lambda good: pack(good)[:20_000], "ended before"),
    "corrupt": (lambda good: pack(good)[:-8] + b"\0" * 8, "CRC"),
    "a bomb": (lambda good: pack({"x": TOO_MUCH} | good), "unpacks to more than 64 MiB"),
    "a huge header": (lambda good: pack(good, pax_headers={"x": "x" * len(TOO_MUCH)}), "unpacks to more than 64 MiB"),
    "larger than allowed": (lambda _: TOO_MUCH, "is larger than 64 MiB"),
    "a sparse file": (lambda good: pack(good, pax_headers=SPARSE), "no plain file"),
    "a link to nowhere": (lambda good: pack(good, type=tarfile.SYMTYPE, linkname="nowhere", size=0), "no plain file"),
    "no policy": (lambda good: pack({"data.json": good["data.json"]}), "no policy.wasm"),
    "half a policy": (lambda good: pack(good | {"policy.wasm": good["policy.wasm"][:9_000]}), "cannot be run"),
    "another module": (lambda good: pack(good | {"policy.wasm": b"\0asm\1\0\0\0"}), "cannot be started"),
    "data that is no JSON": (lambda good: pack(good | {"data.json": b"{nope"}), "data.json does not parse"),
    "no bytes of data": (lambda good: pack(good | {"data.json": b""}), "data.json does not parse"),
    "deep data": (lambda good: pack(good | {"data.json": b"[" * 100_000}), "cannot be started"),
    "an entrypoint is missing": (lambda _: build(OTHER, entrypoints=ENTRYPOINTS[:1]), "lacks the entrypoint airflow/a"),
    "an unknown built-in": (lambda _: build(OTHER.replace("1", 'sprintf("%v", [input])')), "calls sprintf, which"),
    "a manifest that is a list": (lambda good: pack(good | {".manifest": b"[]"}), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_BUNDLES)
def test_a_bad_bundle_is_not_in_force(case: str, obedient: Path, tmp_path: Path, caplog: Log) -> None:
    make, told = BAD_BUNDLES[case]
    (tmp_path / "bad").write_bytes(make(unpack(obedient)))
    with pytest.raises(PolicyBrokenError, match=told):
        InProcess(tmp_path / "bad")
    with opened(Path(shutil.copy(obedient, tmp_path / "bundle"))) as decisions:
        assert verdict(decisions) == TOLD_TO
        (tmp_path / "bad").replace(tmp_path / "bundle")
        eventually(lambda: bool(errors(caplog)))
        assert re.search(told, errors(caplog)[0])
        assert verdict(decisions) == TOLD_TO


# What is done to team alpha's directory, and either the decision that comes of it or the error that is told.
CHANGES: dict[str, tuple[Callable[[Path], object], bool | None, str]] = {
    "a rule is edited": (lambda alpha: write(alpha, {"alpha.rego": f'{ALPHA}deny contains "no"'}), False, "no"),
    "a file is added": (lambda alpha: write(alpha, {"a.rego": 'package teams.alpha\ndeny contains "no"'}), False, "no"),
    "the team is removed": (shutil.rmtree, False, "user eve may not read"),
    "data of equal size and time": (lambda alpha: restore(alpha / "data.json", b'{"words": ["two"]}'), True, "two"),
    "it does not parse": (
        lambda alpha: write(alpha, {"x.rego": "package"}),
        None,
        "x.rego:1: the file ends in the middle",
    ),
    "it is not UTF-8": (lambda alpha: (alpha / "x.rego").write_bytes(b"package teams.\xe4"), None, "x.rego:1"),
    "it is another team's": (lambda alpha: write(alpha, {"x.rego": "package teams.b"}), None, "may only declare"),
    "a link leads nowhere": (lambda alpha: (alpha / "x.rego").symlink_to("nowhere"), None, "cannot be read"),
    "it is gone": (lambda alpha: shutil.rmtree(alpha.parents[1]), None, "cannot be read"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_policy_is_in_force_and_a_broken_one_is_told_once(case: str, policy: Policy, caplog: Log) -> None:
    change, allow, told = CHANGES[case]
    with opened(policy(SITE)) as decisions:
        assert verdict(decisions) == ONE
        before = decisions.decide(about(EVE, "alpha")).revision
        change(policy({}) / "teams" / "alpha")
        if allow is not None:
            eventually(lambda: decisions.decide(about(EVE, "alpha")).revision != before)
            assert verdict(decisions)[0] is allow
            assert told in verdict(decisions)[1][0]
            return
        eventually(lambda: bool(errors(caplog)))
        time.sleep(0.8)  # several looks
        assert [told in error and f"revision {before} stays in force" in error for error in errors(caplog)] == [True]
        assert verdict(decisions) == ONE
        with pytest.raises(PolicyBrokenError, match=told):
            InProcess(policy({}))
        (policy({}) / "teams" / "alpha" / "x.rego").unlink(missing_ok=True)
        policy(SITE | SECOND)
        eventually(lambda: verdict(decisions) == TWO)


def test_a_replaced_bundle_is_in_force_and_a_deleted_one_stays(policy: Policy, tmp_path: Path, caplog: Log) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    compile_directory(policy(SITE), bundle)
    first = bundle.read_bytes()
    with opened(bundle) as decisions:
        assert verdict(decisions) == ONE
        compile_directory(policy(SECOND), bundle)
        eventually(lambda: verdict(decisions) == TWO)
        restore(bundle, first, older=10**12)
        eventually(lambda: verdict(decisions) == ONE)
        bundle.unlink()
        eventually(lambda: bool(errors(caplog)))
        assert "No such file" in errors(caplog)[0]
        assert verdict(decisions) == ONE


def test_threads_share_instances_one_at_a_time_and_have_right_answers(
    policy: Policy, users: dict[object, set[int]]
) -> None:
    together = threading.Barrier(8, timeout=30)

    def ask(number: int) -> set[tuple[str, tuple[str, ...]]]:
        together.wait()
        seen = set()
        for question in range(60):
            name = f"{number}.{question}.7"
            answer = decisions.decide(about(EVE, "alpha", name, "pg"))
            assert answer.decisions[0].reasons == (f"für {name}",)
            seen.add((answer.revision, answer.decisions[1].reasons))
            if number == 0 and question == 30:
                policy(SECOND)
                eventually(lambda: verdict(decisions) == TWO)
        together.wait()
        answer = decisions.decide(about(EVE, "alpha"))
        return seen | {(answer.revision, answer.decisions[0].reasons)}

    with opened(policy(SITE)) as decisions, ThreadPoolExecutor(8) as pool:
        seen = set.union(*pool.map(ask, range(8)))
        assert verdict(decisions) == TWO
        # By an instance that one of the others has had, however they took turns: nobody has asked this yet.
        assert decisions.decide(about(EVE, "alpha", "another")).decisions[0].reasons == ("two",)
    assert sorted(reasons for _, reasons in seen) == [("one",), ("two",)]
    assert len({revision for revision, _ in seen}) == 2
    assert 2 <= len(users) <= 16
    assert any(len(threads) > 1 for threads in users.values())


@pytest.fixture(scope="module")
def bundles() -> dict[str, bytes]:
    """Small ones, which are loaded in no time."""
    rego = "package airflow.authz\ndecision := {}\nallowed := []\nwhoami := {}\n"
    said = {
        word: f'decisions := [{{"allow": true, "reasons": ["{word}"], "layer": "team"}}]' for word in ("one", "two")
    }
    return {"broken": b"broken"} | {word: build(rego + rule) for word, rule in said.items()}


@pytest.fixture
def place(tmp_path: Path, bundles: dict[str, bytes]) -> Callable[[str], Path]:
    """Puts a small bundle into its place."""

    def put(word: str) -> Path:
        (tmp_path / "new").write_bytes(bundles[word])
        return (tmp_path / "new").replace(tmp_path / "bundle.tar.gz")

    return put


def test_a_forked_child_frees_nothing_of_its_parents() -> None:
    """Freeing an instance waits for locks of wasmtime's, which a thread of the parent may have held."""
    engine = InProcess(packaged_baseline())
    point = DecisionPoint(engine)
    point.decide(about(EVE, "alpha"))
    parents = weakref.ref(engine._in_force.instances)

    def child() -> tuple[bool, bool]:
        gc.collect()
        return parents() is not None, engine._in_force.instances is not parents()

    with forked(child) as ask:
        assert ask() == (True, True)
    engine.close()


def test_a_forked_child_decides_by_the_newest_from_its_first_question_on(place: Callable[[str], Path]) -> None:
    with opened(place("one")) as decisions, forked(lambda: verdict(decisions)) as ask:
        place("two")
        assert ask() == TWO
        place("one")
        eventually(lambda: bool(ask() == ONE))
        eventually(lambda: verdict(decisions) == ONE)


def test_a_forked_child_keeps_up_though_the_parents_watcher_held_a_lock(place: Callable[[str], Path]) -> None:
    with opened(place("one")) as decisions, ExitStack() as child:
        # As it is for a moment, whenever the watcher begins or ends to wait.
        with decisions._engine._closed._cond:  # type: ignore[attr-defined]
            ask = child.enter_context(forked(lambda: verdict(decisions)))
        assert ask() == ONE
        place("two")
        eventually(lambda: bool(ask() == TWO))


def test_a_forked_child_compiles_a_directory_that_has_changed(policy: Policy) -> None:
    with opened(policy(SITE)) as decisions, forked(lambda: verdict(decisions)) as ask:
        policy(SECOND)
        assert ask() == TWO


def test_who_opens_an_engine_keeps_up_for_those_it_forks(place: Callable[[str], Path], caplog: Log) -> None:
    """Also if nobody asks it, as in what forks the workers of a server, and if what came last is broken."""
    with opened(place("one")) as decisions:
        engine: Any = decisions._engine
        first = engine._policy
        place("two")
        eventually(lambda: engine._policy is not first)
        place("broken")
        eventually(lambda: bool(errors(caplog)))
        with forked(lambda: verdict(decisions)) as ask:
            assert ask() == TWO


def test_a_child_that_cannot_have_the_newest_has_none(place: Callable[[str], Path], caplog: Log) -> None:
    """It cannot know which one was the last good: a right that it would give may have been withdrawn meanwhile."""
    with opened(place("one")) as decisions, forked(lambda: verdict(decisions)) as ask:
        place("two")
        eventually(lambda: verdict(decisions) == TWO)
        place("broken")
        eventually(lambda: bool(errors(caplog)))
        for _ in range(2):
            assert isinstance(refused := ask(), PolicyBrokenError)
            assert "has changed since this process was forked, and it cannot be loaded: the" in str(refused)
        assert verdict(decisions) == TWO
        place("two")
        eventually(lambda: bool(ask() == TWO))


def test_a_fork_in_the_middle_of_a_change_leaves_the_child_neither_old_nor_stuck(
    place: Callable[[str], Path], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(forks, "LONGEST_SECONDS", 0.1)
    loading, go_on, load = threading.Event(), threading.Event(), InProcess._load
    parent = os.getpid()

    def slow_in_parent(engine: InProcess, quick: bool = False) -> in_process.Policy:
        if os.getpid() == parent and quick:
            loading.set()
            go_on.wait(60)
        return load(engine, quick)

    monkeypatch.setattr(InProcess, "_load", slow_in_parent)
    with opened(place("one")) as decisions:
        place("two")
        assert loading.wait(30)
        with forked(lambda: verdict(decisions)) as ask:
            assert ask() == TWO
        go_on.set()
        eventually(lambda: verdict(decisions) == TWO)


def test_the_revision_is_named_and_reasons_are_unicode(either: DecisionPoint, site: Engines) -> None:
    assert re.fullmatch("[0-9a-f]{12}" if either is site.in_process else "r7", either.decide(about(EVE, "b")).revision)
    names = [f"{chr(code)}7" for code in (0, 7, 0x22, 0x5C, 0x7F, 0xDF, 0x2028, 0xFFFE, 0x1D11E)]
    reasons = [decision.reasons for decision in either.decide(about(EVE, "alpha", *names)).decisions]
    assert reasons == [(f"für {name}",) for name in names]
    with pytest.raises(MalformedError, match="not Unicode"):
        either.decide(about(EVE, "alpha", "\ud800"))
    assert verdict(either) == ONE


@pytest.mark.parametrize("parts", [[CHUNK], [CHUNK, CHUNK, 3]], ids=str)
def test_large_questions_are_asked_in_parts(parts: list[int], either: DecisionPoint, monkeypatch: Patch) -> None:
    asked: list[int] = []
    query = either._engine.query
    monkeypatch.setattr(either._engine, "query", lambda *question: (asked.append(question[2]), query(*question))[1])
    # Names of its own: what another test has asked is answered from the cache.
    question = about(EVE, "alpha", *(f"Größe {len(parts)} {number}" for number in range(sum(parts))))
    expected = [number % 10 != 7 for number in range(sum(parts))]
    assert [decision.allow for decision in either.decide(question).decisions] == expected
    allowed = [resource for resource, allow in zip(question.resources, expected, strict=True) if allow]
    assert either.allowed(question) == allowed
    assert asked == parts * 2


def test_a_team_whose_rules_fail_loses_its_lists_only(either: DecisionPoint, site: Engines, caplog: Log) -> None:
    failing = ["broken", "costly"] if either is site.in_process else ["broken"]
    teams = ("alpha", *failing, None)
    mixed = Evaluations(ANN, "read", [Resource("connection", team, name) for name in "ab" for team in teams])
    for _ in range(2):
        assert either.allowed(mixed) == [resource for resource in mixed.resources if resource.team_id not in failing]
    assert [re.findall("what team (.*) owns", error) for error in errors(caplog)] == [[team] for team in failing]
    for team in failing:
        for ask in (either.allowed, either.decide):
            with pytest.raises(PolicyBrokenError):
                ask(about(ANN, team))
    assert verdict(either) == ONE


TYPO = 'package teams.alpha\n\ndeny contains "x" if input.resource.tem_id == "alpha"\n'
TOLD = "teams/alpha/more.rego:3: there is no input.resource.tem_id"


@pytest.mark.parametrize("as_bundle", [False, True])
def test_rules_that_read_what_no_question_has_are_a_warning_once(
    policy: Policy, tmp_path: Path, caplog: Log, as_bundle: bool
) -> None:
    with opened(_with_typo(policy, tmp_path, as_bundle)):
        eventually(lambda: TOLD in caplog.text)
        assert "did you mean team_id?" in caplog.text
        caplog.clear()
        if not as_bundle:
            # What has changed is looked at again.
            policy({"teams/alpha/more.rego": TYPO.replace("tem_id", "nam")})
            eventually(lambda: "there is no input.resource.nam" in caplog.text)
            assert TOLD not in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (0 if as_bundle else 1)


@pytest.mark.skipif(
    not any(metadata.distributions(name="airflow-team-authz")), reason="what nobody has installed shares no findings"
)
@pytest.mark.parametrize("as_bundle", [False, True])
def test_one_process_of_a_host_checks_the_rules_for_the_others_with_the_same_opa(
    policy: Policy, tmp_path: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch, as_bundle: bool
) -> None:
    source, children = _with_typo(policy, tmp_path, as_bundle), []
    by_a_child = rule_checks._by_a_child

    def counted(*asked: Any) -> Any:
        children.append(asked)
        return by_a_child(*asked)

    monkeypatch.setattr(rule_checks, "_by_a_child", counted)
    # A newer opa may find more.
    for found, expected in (((1, 22, 3), 1), ((1, 22, 3), 1), ((1, 23, 0), 2)):
        monkeypatch.setattr(rule_checks, "opa_version", lambda _, found=found: found)
        caplog.clear()
        engine = InProcess(source, kept_code=tmp_path / "state" / "compiled")
        eventually(lambda: TOLD in caplog.text)
        engine.close()
        assert len(children) == expected


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("as_bundle", [False, True])
def test_the_rules_are_checked_in_another_process(
    policy: Policy, tmp_path: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch, as_bundle: bool, strict: bool
) -> None:
    """It would keep the memory that many teams' rules take."""
    source = _with_typo(policy, tmp_path, as_bundle)
    monkeypatch.setattr(policy_files, "rule_findings", lambda *_: pytest.fail("this process checks them"))
    if strict:
        with pytest.raises(PolicyBrokenError, match=TOLD):
            InProcess(source, strict=True)
        return
    with opened(source):
        eventually(lambda: TOLD in caplog.text)


def _with_typo(policy: Policy, place: Path, as_bundle: bool) -> Path:
    source = policy({"teams/alpha/more.rego": TYPO})
    if as_bundle:
        compile_directory(source, place / "bundle.tar.gz")
        return place / "bundle.tar.gz"
    return source


@pytest.mark.parametrize(
    ("opa", "seconds", "told"), [("missing", 300, "missing"), (None, 0.01, "takes longer than 0.01 seconds")]
)
def test_rules_that_cannot_be_checked_are_told_and_stay_in_force(
    policy: Policy,
    tmp_path: Path,
    caplog: Log,
    monkeypatch: pytest.MonkeyPatch,
    opa: str | None,
    seconds: float,
    told: str,
) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    compile_directory(policy({"teams/alpha/more.rego": TYPO}), bundle)
    monkeypatch.setattr(rule_checks, "_SECONDS", seconds)
    caplog.set_level("INFO")
    engine = InProcess(bundle, opa=opa and str(tmp_path / opa))
    try:
        eventually(lambda: f"the rules of {bundle} are not checked: " in caplog.text)
        assert told in caplog.text
        assert engine.trouble == ""
    finally:
        engine.close()


@pytest.mark.parametrize("as_bundle", [False, True])
def test_a_strict_engine_refuses_them(policy: Policy, tmp_path: Path, caplog: Log, as_bundle: bool) -> None:
    source, bundle = policy({"teams/alpha/more.rego": "package teams.alpha\n"}), tmp_path / "bundle.tar.gz"
    compile_directory(source, bundle)
    engine = InProcess(bundle if as_bundle else source, strict=True)
    try:
        good = engine.revision
        policy({"teams/alpha/more.rego": TYPO})
        if as_bundle:
            compile_directory(source, bundle)
        eventually(lambda: TOLD in engine.trouble)
        assert engine.revision == good
        eventually(lambda: any(TOLD in error for error in errors(caplog)))
        with pytest.raises(
            PolicyBrokenError, match=r"is not what \[team_authz\] strict_policy asks for: teams/alpha/more"
        ):
            InProcess(bundle if as_bundle else source, strict=True)
        policy({"teams/alpha/more.rego": TYPO.replace("tem_id", "team_id")})
        if as_bundle:
            compile_directory(source, bundle)
        eventually(lambda: engine.trouble == "" and engine.revision != good)
    finally:
        engine.close()


def test_a_strict_engine_that_cannot_check_does_not_begin(policy: Policy, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    compile_directory(policy({"teams/alpha/more.rego": TYPO}), bundle)
    with pytest.raises(PolicyBrokenError, match="cannot be checked"):
        InProcess(bundle, opa=str(tmp_path / "missing"), strict=True)
    # Which takes no opa if it need not be.
    InProcess(bundle, opa=str(tmp_path / "missing")).close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_strict_engine_over_the_shipped_policy_alone_needs_no_opa(tmp_path: Path, shared: bool) -> None:
    """It has no rules to check, and a host may have the wheel only."""
    kept = tmp_path / "state" / "compiled" if shared else None
    InProcess(packaged_baseline(), opa=str(tmp_path / "missing"), strict=True, kept_code=kept).close()


@pytest.mark.parametrize("as_bundle", [False, True])
def test_a_file_whose_name_is_no_text_cannot_be_checked(
    policy: Policy, tmp_path: Path, caplog: Log, as_bundle: bool
) -> None:
    source = policy(SITE)
    odd = source / os.fsdecode(b"teams/alpha/\xff.rego")
    odd.write_text("package teams.alpha\n")
    if as_bundle:
        compile_directory(source, tmp_path / "bundle.tar.gz")
        source = tmp_path / "bundle.tar.gz"
        content = unpack(source) | {str(odd.relative_to(odd.parents[2])): odd.read_bytes()}
        source.write_bytes(pack(content))
    told = re.escape(r"the name of the file 'teams/alpha/\udcff.rego' is not UTF-8: rename the file")
    with pytest.raises(PolicyBrokenError, match=f"cannot be checked: {told}"):
        InProcess(source, strict=True)
    caplog.set_level("INFO")
    with opened(source) as decisions:
        eventually(lambda: re.search(f"are not checked: {told}", caplog.text) is not None)
        assert verdict(decisions) == ONE
