"""Instances of a policy: threads share as many as work at once, and what is not needed any more ends."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_team_authz import forks
from airflow_team_authz.engines import instances as module
from airflow_team_authz.engines.in_process import InProcess, load_bundle
from airflow_team_authz.engines.instances import AT_REST, MOST_TIMES, Instances
from airflow_team_authz.model import EngineError, PolicyBrokenError
from airflow_team_authz.opa import wasm
from tests.conftest import build, eventually, forked

Patch = pytest.MonkeyPatch
REGO = """package airflow.authz
decision := {}
allowed := []
whoami := {}
decisions := "yes" if input.action == "read"
decisions := [count(split(input.action, ""))] if input.action != "read"
"""
READ = b'{"action": "read"}'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("instances") / "bundle.tar.gz"
    file.write_bytes(build(REGO))
    return file


@pytest.fixture(scope="module")
def policy(bundle: Path) -> wasm.Policy:
    return load_bundle(bundle, quick=True)


def waiting(instances: Instances, seconds: float) -> Instances:
    """As if a start took that long."""
    instances._start_seconds = seconds
    return instances


def test_a_thread_takes_what_another_one_gives_back(policy: wasm.Policy) -> None:
    instances = waiting(Instances(policy, at_rest=1), 60.0)
    first = instances.take()
    instances._start_seconds = 60.0
    with ThreadPoolExecutor(3) as threads:
        taken = [threads.submit(instances.take) for _ in range(3)]
        eventually(lambda: len(instances._waiting) == 3)
        assert not any(one.done() for one in taken)
        for _ in range(3):
            instances.give(first)
            eventually(lambda: not instances.idle)
    assert [one.result() for one in taken] == [first] * 3


def test_a_thread_that_waits_for_too_long_starts_another_one(policy: wasm.Policy) -> None:
    instances = Instances(policy, at_rest=1)
    first = instances.take()
    assert instances._start_seconds < 60
    assert instances.take() is not first


def test_there_are_never_more_than_a_few_times_as_many_as_processors(policy: wasm.Policy) -> None:
    instances = Instances(policy, at_rest=1)
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(waiting(instances, 0.0).take) for _ in range(20)]
        eventually(lambda: sum(one.done() for one in asked) >= MOST_TIMES)
        eventually(lambda: len(instances._waiting) >= 20 - MOST_TIMES)
        taken = [one.result() for one in asked if one.done()]
        assert len(taken) == MOST_TIMES
        while not all(one.done() for one in asked):
            instances.give(taken[0])
            eventually(lambda: not instances.idle or all(one.done() for one in asked))
    assert {id(one.result()) for one in asked} == {id(machine) for machine in taken}


def test_nobody_waits_below_the_number_of_processors(policy: wasm.Policy) -> None:
    instances = waiting(Instances(policy, at_rest=4), 60.0)
    taken = [waiting(instances, 60.0).take() for _ in range(4)]
    assert len(set(map(id, taken))) == 4


def test_who_waits_starts_another_one_when_one_fails(policy: wasm.Policy) -> None:
    instances = Instances(policy, at_rest=1)
    failed = instances.take()
    instances._start_seconds = 60.0
    with ThreadPoolExecutor(1) as threads:
        taken = threads.submit(instances.take)
        eventually(lambda: bool(instances._waiting))
        instances.discard()
        assert taken.result(30) is not failed


def test_an_instance_that_cannot_be_started_is_not_counted(policy: wasm.Policy) -> None:
    instances = Instances(policy._replace(data=b"{nope"), at_rest=1)
    for _ in range(3):
        waiting(instances, 60.0)
        with pytest.raises(PolicyBrokenError):
            instances.take()


def test_more_than_processors_end_when_they_have_had_no_work(bundle: Path, monkeypatch: Patch) -> None:
    engine = InProcess(bundle)
    instances = engine._in_force.instances
    taken = [instances._start() for _ in range(AT_REST + 3)]
    ended = [weakref.ref(machine) for machine in taken]
    for machine in taken:
        instances.give(machine)
    instances.shrink()
    assert len(instances.idle) == AT_REST + 3
    del taken, machine
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    eventually(lambda: len(instances.idle) == AT_REST)
    # Those that were used last stay.
    assert [one() for one in ended[3:]] == list(instances.idle)
    engine.close()


def test_forks_wait_while_an_instance_ends(policy: wasm.Policy) -> None:
    """Wasmtime holds its locks meanwhile, which a child would find held for ever."""
    delayed: list[bool] = []
    instances = Instances(policy, at_rest=1)
    machines = [instances.take(), instances.take()]
    for machine in machines:
        weakref.finalize(machine, lambda: delayed.append(bool(forks._under_way._threads)))
        instances.give(machine)
        machine.rests_since = 0.0
    machines.clear()
    del machine
    instances.shrink()
    assert delayed == [True]


FAILING = {
    "it fails": (b"[" * 100_000, EngineError),
    "it takes much memory": (b'{"action": "%s"}' % (b"x" * 500_000), None),
}


@pytest.mark.parametrize("case", FAILING)
def test_an_instance_that_is_not_used_again_leaves_nothing_behind(case: str, bundle: Path, monkeypatch: Patch) -> None:
    seen: list[weakref.ref[wasm.Machine]] = []
    begin = wasm.Machine.__init__
    monkeypatch.setattr(
        wasm.Machine, "__init__", lambda machine, *given: (seen.append(weakref.ref(machine)), begin(machine, *given))[0]
    )
    engine = InProcess(bundle)
    question, error = FAILING[case]
    for number in range(3):
        if error is None:
            # Never the same question again: answers are kept.
            engine.query("decisions", question + b" " * number, 20_000)
        else:
            with pytest.raises(error):
                engine.query("decisions", question, 1)
    engine.query("decisions", READ, 1)
    engine.close()
    gc.collect()
    assert len(seen) > 3
    # The next question's, and, with the error, what the last traceback still holds.
    assert sum(one() is not None for one in seen) <= 2


def test_a_replaced_policys_instances_end(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "bundle.tar.gz"
    source.write_bytes(bundle.read_bytes())
    engine = InProcess(source)
    engine.query("decisions", READ, 1)
    (machine,) = engine._in_force.instances.idle
    before, ended = [engine._in_force], weakref.ref(machine)
    source.touch()
    eventually(lambda: engine._in_force is not before[0])
    # As a thread does that began with the policy before.
    before[0].instances.give(before[0].instances.take())
    before.clear()
    del machine
    gc.collect()
    assert ended() is None
    assert engine._in_force.instances.idle == ()
    engine.close()


def test_a_forked_child_has_instances_of_its_own(bundle: Path) -> None:
    """Also if a thread of its parent was just counting, and another one had the last instance."""
    engine = InProcess(bundle)
    engine.query("decisions", READ, 1)
    instances = engine._in_force.instances
    (machine,) = instances.idle
    held = instances.take()

    def ask() -> tuple[bytes, bool]:
        answer = bytes(engine.query("decisions", READ, 1).value)
        return answer, any(one is machine for one in engine._in_force.instances.idle)

    with instances._counting, forked(ask) as child:
        assert child() == (b'"yes"', False)
    instances.give(held)
    assert ask() == (b'"yes"', True)
    engine.close()


def test_threads_that_ask_take_few_instances(bundle: Path, monkeypatch: Patch) -> None:
    started: list[int] = []
    start: Callable[[wasm.Policy], wasm.Machine] = module.start
    monkeypatch.setattr(module, "start", lambda policy: (started.append(os.getpid()), start(policy))[1])
    engine = InProcess(bundle)
    together = threading.Barrier(30)

    def ask(_: int) -> None:
        together.wait(60)
        for number in range(20):
            engine.query("decisions", b'{"action": "%d"}' % number, 1)

    with ThreadPoolExecutor(30) as threads:
        list(threads.map(ask, range(30)))
    assert len(started) < 30
    engine.close()
