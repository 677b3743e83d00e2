"""An OPA server that hangs: nobody waits for it longer than one deadline, and it is asked again when it answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from airflow_team_authz.engines import CHUNK, DecisionPoint, opa_server
from airflow_team_authz.engines.breaker import Breaker
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import EngineError, Evaluations, NotAnsweringError, Resource
from tests.conftest import PATIENT_MS, Opa, errors, eventually, forked
from tests.support.fake_opa import DENY, QUESTION, Connect, FakeOpa, Said, allow, answer, begin, never

# Long beside what a busy machine takes for anything here; and what all of a test may wait, with what such one adds.
DEADLINE = 1.0
_MOST = 1.4 * DEADLINE

HEALTHY = answer(b"{}")


def listed(size: int) -> Evaluations:
    return Evaluations(QUESTION.subject, "read", [Resource("dag", None, str(number)) for number in range(size)])


class Hang:
    """Says nothing until it is let go, and then ends the connection. Counts who hangs."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.times = 0

    def __call__(self, connection: socket.socket) -> None:
        self.times += 1
        self.go.wait(60)
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hang(fake: FakeOpa) -> Hang:
    """The fake neither answers nor is in good health, until it is let go."""
    hang = Hang()
    fake.health, fake.answers = hang, [never] * 200
    return hang


def outcome(ask: Callable[[], object]) -> str:
    try:
        ask()
    except EngineError as error:
        return error.code
    return "answered"


@pytest.fixture
def long_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of a part of a list is half as long again as that of one question."""
    monkeypatch.setattr(opa_server, "_SECONDS_PER_RESOURCE", 0.5 * DEADLINE / CHUNK)


@pytest.fixture
def point(fake: FakeOpa) -> Iterator[DecisionPoint]:
    """Of a long deadline, with a breaker for a short one: what comes is of the breaker."""
    engine = OpaServer(fake.url, PATIENT_MS)
    engine.breaker = Breaker(fake.url, 0.0, engine._answers)
    yield DecisionPoint(engine)
    engine.close()


def breaker_of(point: DecisionPoint) -> Breaker:
    breaker = point._engine.breaker  # type: ignore[attr-defined]
    assert isinstance(breaker, Breaker)
    return breaker


def decided(point: DecisionPoint) -> str:
    return outcome(lambda: point.decide(QUESTION))


def at_once(asks: list[Callable[[], str]], pause: float = 0.0) -> list[str]:
    """What comes of them, each asked on a thread."""
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda ask=ask: outcomes.append(ask())) for ask in asks]  # type: ignore[misc]
    for thread in threads:
        thread.start()
        time.sleep(pause)
    for thread in threads:
        thread.join()
    return outcomes


@pytest.fixture
def frozen(opa: Opa) -> Opa:
    """A real OPA without a policy that is stopped."""
    opa.start()
    opa.send(signal.SIGSTOP)
    return opa


def test_a_hundred_requests_to_a_stopped_opa_stop_nothing_longer_than_one_deadline(
    connect: Connect, frozen: Opa
) -> None:
    point = connect(frozen.url, int(1000 * DEADLINE))
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.001)

    async def request(number: int) -> str:
        # As Airflow's routes do: some ask on the event loop, others on a thread.
        await asyncio.sleep(0)
        if number % 2:
            return decided(point) if number % 4 == 1 else outcome(lambda: point.allowed(listed(2_000)))
        return await asyncio.to_thread(decided, point)

    async def requests() -> list[str]:
        ticking = asyncio.create_task(tick())
        outcomes = await asyncio.gather(*map(request, range(100)))
        ticking.cancel()
        return outcomes

    began = time.monotonic()
    outcomes = asyncio.run(requests())
    assert time.monotonic() - began < _MOST
    assert max(later - earlier for earlier, later in pairwise([began, *ticks])) < _MOST
    assert set(outcomes) == {"NotAnswering"}
    # And as long as it goes on like this.
    began = time.monotonic()
    assert {decided(point) for _ in range(100)} == {"NotAnswering"}
    assert time.monotonic() - began < DEADLINE / 2


@pytest.mark.exhaustive
@pytest.mark.usefixtures("hang", "long_lists")
def test_who_waits_already_waits_no_longer(connect: Connect, fake: FakeOpa) -> None:
    point = connect(fake.url, int(1000 * DEADLINE))
    # Each has a deadline of its own, the last more than half a one after the first; a list has a longer one.
    asks = [lambda: decided(point), lambda: outcome(lambda: point.allowed(listed(CHUNK))), lambda: decided(point)]
    began = time.monotonic()
    assert at_once(asks * 2, 0.1 * DEADLINE) == ["NotAnswering"] * 6
    assert time.monotonic() - began < _MOST


@pytest.mark.exhaustive
def test_an_opa_that_goes_on_or_is_restarted_is_asked_again(connect: Connect, frozen: Opa) -> None:
    point = connect(frozen.url, 500)
    eventually(lambda: decided(point) == "NotAnswering")
    frozen.send(signal.SIGCONT)
    # It has no policy: that is an answer.
    eventually(lambda: decided(point) == "Undefined")
    frozen.send(signal.SIGSTOP)
    eventually(lambda: decided(point) == "NotAnswering")
    frozen.stop()
    # Nobody listens: that is told as what it is, and takes no time.
    eventually(lambda: decided(point) == "Unreachable")
    frozen.start()
    assert decided(point) == "Undefined"


def test_a_rule_that_takes_its_time_closes_the_server_to_nobody(
    hang: Hang, point: DecisionPoint, fake: FakeOpa
) -> None:
    """Not even if the server has no time for its health, but for questions."""
    busy = fake.health = Hang()
    fake.answers = [hang] * 3
    slow = threading.Thread(target=at_once, args=([lambda: decided(point)] * 3,))
    slow.start()
    eventually(lambda: busy.times == 1)
    assert allow(point) is True
    looker = breaker_of(point)._looker
    assert looker is not None
    looker.join(10)
    assert (breaker_of(point).openings, busy.times) == (0, 1)
    fake.health = HEALTHY
    hang.go.set()
    busy.go.set()
    slow.join()


@pytest.mark.exhaustive
@pytest.mark.usefixtures("long_lists")
def test_silence_after_a_healthy_look_is_noticed_within_a_deadline(fake: FakeOpa, connect: Connect) -> None:
    point, hang = connect(fake.url, int(1000 * DEADLINE)), Hang()
    healthy: list[float] = []

    def once(connection: socket.socket) -> None:
        fake.health = hang
        healthy.append(time.monotonic())
        connection.sendall(HEALTHY)

    fake.health, fake.answers = once, [hang]
    assert outcome(lambda: point.allowed(listed(CHUNK))) == "NotAnswering"
    assert time.monotonic() - healthy[0] < _MOST
    hang.go.set()


def test_one_asks_for_the_health_and_not_everybody(hang: Hang, fake: FakeOpa, point: DecisionPoint) -> None:
    assert at_once([lambda: decided(point)] * 20) == ["NotAnswering"] * 20
    assert {decided(point) for _ in range(100)} == {"NotAnswering"}
    assert len(fake.questions) == 20
    # The look, and the first try.
    assert 1 <= hang.times <= 2


# What comes of asking for the health, and whether that is an answer.
HEALTH: dict[str, tuple[Said, bool]] = {
    "200": (HEALTHY, True),
    "500": (answer(b'{"error":"unable to perform evaluation"}', "500 Internal Server Error"), True),
    "401": (answer(b'{"code":"unauthorized","message":"no"}', "401 Unauthorized"), True),
    "404 of a proxy": (answer(b"404 page not found", "404 Not Found"), True),
    "no HTTP": (b"220 mail.example ESMTP\r\n\r\n", True),
    "closed": (lambda connection: connection.shutdown(socket.SHUT_RDWR), True),
    "silence": (never, False),
    "half an answer": (begin(HEALTHY[:-1], never), False),
    "504 of a proxy": (answer(b"upstream request timeout", "504 Gateway Timeout"), False),
}


@pytest.mark.parametrize("case", HEALTH)
def test_only_silence_opens(case: str, fake: FakeOpa) -> None:
    fake.health, expected = HEALTH[case]
    engine = OpaServer(fake.url)
    assert engine._answers(0.05 if expected is False else 20) is expected


def test_a_socket_on_which_too_many_wait_is_silent_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    place = tmp_path / "opa.sock"
    engine = OpaServer(f"unix://{place}")
    with socket.socket(socket.AF_UNIX) as full, contextlib.ExitStack() as waiting:
        full.bind(str(place))
        full.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(place))
        assert engine._answers(20) is False
    assert engine._answers(20) is True


def test_an_open_breaker_allows_and_keeps_nothing_and_says_when_it_tries_next(
    hang: Hang, fake: FakeOpa, point: DecisionPoint
) -> None:
    fake.answers.clear()
    assert allow(point) is True
    fake.answers = [never, DENY]
    for ask in (point.decide, point.allowed, lambda question: point.whoami(question.subject)):
        with pytest.raises(NotAnsweringError, match=r"so it is not asked at present; the next try is in [01]\.\d s"):
            ask(QUESTION)
    fake.health = HEALTHY
    hang.go.set()
    eventually(lambda: decided(point) == "answered")
    # It was denied.
    assert fake.answers == []
    assert allow(point) is True


@pytest.mark.exhaustive
def test_a_server_whose_health_nobody_may_ask_for_is_asked_again(
    hang: Hang, fake: FakeOpa, point: DecisionPoint
) -> None:
    fake.answers = [never]
    assert decided(point) == "NotAnswering"
    eventually(lambda: decided(point) == "answered")
    hang.go.set()


def test_a_forked_process_begins_with_a_closed_one(hang: Hang, fake: FakeOpa, point: DecisionPoint) -> None:
    assert decided(point) == "NotAnswering"
    fake.answers.clear()
    with forked(lambda: decided(point)) as ask:
        assert ask() == "answered"
        # It has a breaker of its own.
        fake.answers = [never]
        assert ask() == "NotAnswering"
    assert decided(point) == "NotAnswering"
    hang.go.set()


def test_each_change_of_state_is_logged_once(
    hang: Hang, fake: FakeOpa, point: DecisionPoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airflow_team_authz")
    for _ in range(5):
        assert decided(point) == "NotAnswering"
    fake.health, fake.answers = HEALTHY, []
    hang.go.set()
    eventually(lambda: decided(point) == "answered")
    told = [record.getMessage() for record in caplog.records]
    for said in ("answers nothing", "no decision can be had", "is silent no longer", "can be had again"):
        assert len([line for line in told if said in line]) == 1
    assert (len(told), len(errors(caplog))) == (4, 1)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("hang")
def test_without_a_thread_questions_have_their_deadlines(
    fake: FakeOpa, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = connect(fake.url, 500)
    fake.answers.clear()
    assert decided(point) == "answered"
    fake.answers = [never]

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as starved:
        starved.setattr(threading.Thread, "start", none)
        assert decided(point) == "DeadlineExceeded"
    fake.answers = [never] * 9
    eventually(lambda: decided(point) == "NotAnswering")


@pytest.mark.exhaustive
@pytest.mark.usefixtures("hang")
def test_a_closed_engine_asks_no_more(point: DecisionPoint, caplog: pytest.LogCaptureFixture) -> None:
    assert decided(point) == "NotAnswering"
    looker = breaker_of(point)._looker
    assert looker is not None
    caplog.clear()
    point.close()
    looker.join(10)
    assert not looker.is_alive()
    assert not caplog.records
