"""What is decided is counted for Airflow's own metrics: a StatsD of the test's own listens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from airflow_team_authz.decision_log import SINKS
from airflow_team_authz.decision_log.database import Database
from airflow_team_authz.decision_log.metrics import Metrics
from airflow_team_authz.decision_log.origin import come_in
from airflow_team_authz.decision_log.over_http import BundleServer, OpenTelemetry
from airflow_team_authz.decision_log.sinks import File, StandardLog
from airflow_team_authz.model import Evaluations, Provenance, Resource, UnreachableError
from tests.conftest import errors
from tests.decision_log.conftest import BOB, NO, YES, Made

DB = Resource("connection", "alpha", "secret_name")


class Meter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, tuple[str, ...]]] = []

    def _keep(self, stat: str, value: float, *, tags: dict[str, str]) -> None:
        self.told.append((stat, value, tuple(sorted(tags.values()))))

    incr = gauge = timing = _keep

    def sums(self) -> Counter[tuple[str, ...]]:
        found: Counter[tuple[str, ...]] = Counter()
        for stat, value, tags in self.told:
            found[stat, *tags] += int(value)
        return found


def no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def metered() -> Iterator[tuple[Metrics, Meter]]:
    meter = Meter()
    metrics = Metrics(Made().log, meter)
    yield metrics, meter
    metrics.close()
    assert not metrics._thread or metrics._thread.join(10) or not metrics._thread.is_alive()


def test_decisions_lists_and_errors_are_counted_by_door(metered: tuple[Metrics, Meter]) -> None:
    metrics, meter = metered

    def request() -> None:
        come_in("users", {"type": "http"})
        for _ in range(3):
            metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 2_000_000))
        metrics.decided(Evaluations(BOB, "read", [DB, DB]), [YES, NO], Provenance("r2", 2_000_000))
        metrics.decided(Evaluations(BOB, "read", [DB]), [YES], Provenance("r2", 0, kept=True))
        metrics.listed(Evaluations(BOB, "list", [DB]), [], Provenance("r2", 9_000_000))
        metrics.listed(Evaluations(BOB, "list", [DB]), [DB], Provenance("r2", 0, kept=True))
        metrics.failed(Evaluations(BOB, "read", [DB]), UnreachableError("gone"), 1)

    thread = threading.Thread(target=request)
    thread.start()
    thread.join()
    metrics.tell()
    found = meter.sums()
    assert found["team_authz.decisions", "baseline", "connection", "deny", "users"] == 4
    assert found["team_authz.decisions", "allow", "baseline", "connection", "users"] == 2
    assert found["team_authz.lists", "connection", "users"] == 2
    assert found["team_authz.answers", "decision", "hit"] == found["team_authz.answers", "hit", "list"] == 1
    assert found["team_authz.answers", "decision", "miss"] == 4
    assert found["team_authz.answers", "list", "miss"] == 1
    assert found["team_authz.errors", "Unreachable", "users"] == 1
    assert found["team_authz.duration", "decision", "users"] == 8
    assert found["team_authz.duration", "list", "users"] == 9
    assert found["team_authz.policy.changes",] == 1
    meter.told.clear()
    metrics.tell()
    assert {name for (name, *_), value in meter.sums().items() if value} <= {
        "team_authz.log.waiting",
        "team_authz.log.written",
    }


def test_the_state_of_the_breaker_and_its_openings_are_told(metered: tuple[Metrics, Meter]) -> None:
    metrics, meter = metered
    metrics.tell()
    assert not [stat for stat, *_ in meter.told if "breaker" in stat]
    for is_open, openings in ((True, 2), (False, 2), (True, 3)):
        metrics.breaker = SimpleNamespace(is_open=is_open, openings=openings)
        metrics.tell()
    assert [value for stat, value, _ in meter.told if stat == "team_authz.breaker.open"] == [1, 0, 1]
    assert [value for stat, value, _ in meter.told if stat == "team_authz.breaker.openings"] == [2, 1]


def test_no_tag_holds_an_id(metered: tuple[Metrics, Meter]) -> None:
    metrics, meter = metered
    metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 1))
    metrics.tell()
    assert not {"bob", "secret_name", "alpha", "r1"} & {tag for _, _, tags in meter.told for tag in tags}


def test_many_threads_lose_no_count(metered: tuple[Metrics, Meter]) -> None:
    metrics, meter = metered
    question = Evaluations(BOB, "read", [DB])
    threads = [
        threading.Thread(target=lambda: [metrics.decided(question, [YES], Provenance("r", 1)) for _ in range(2_000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for _ in range(20):
        metrics.tell()
    for thread in threads:
        thread.join()
    metrics.tell()
    assert sum(value for (name, *_), value in meter.sums().items() if name == "team_authz.decisions") == 16_000


def test_a_meter_that_fails_disturbs_nobody_and_is_told_once(
    metered: tuple[Metrics, Meter], caplog: pytest.LogCaptureFixture
) -> None:
    metrics, meter = metered
    meter.incr = None  # type: ignore[assignment]
    for _ in range(3):
        metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 1))
        metrics.tell()
    assert len(errors(caplog)) == 1
    del meter.incr
    metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 1))
    metrics.tell()
    assert meter.sums()["team_authz.decisions", "baseline", "connection", "deny", "other"] == 1
    meter.incr = None  # type: ignore[assignment]
    metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 1))
    metrics.tell()
    assert len(errors(caplog)) == 2


def test_a_thread_that_cannot_start_disturbs_nobody(
    metered: tuple[Metrics, Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, meter = metered
    with monkeypatch.context() as starved:
        starved.setattr(threading.Thread, "start", no_more_threads)
        metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 1))
    metrics.decided(Evaluations(BOB, "read", [DB]), [NO], Provenance("r1", 1))
    assert metrics._thread
    metrics.tell()
    assert meter.sums()["team_authz.decisions", "baseline", "connection", "deny", "other"] == 2


def test_a_forked_child_tells_only_its_own(metered: tuple[Metrics, Meter]) -> None:
    metrics, meter = metered
    question = Evaluations(BOB, "read", [DB])
    metrics.decided(question, [NO], Provenance("r1", 1))
    read, write = os.pipe()
    if os.fork() == 0:
        metrics.decided(question, [NO], Provenance("r1", 1))
        metrics.tell()
        told = sum(value for (name, *_), value in meter.sums().items() if name == "team_authz.decisions")
        os.write(write, str(told).encode())
        os._exit(0)
    os.wait()
    assert os.read(read, 10) == b"1"
    metrics.tell()
    assert sum(value for (name, *_), value in meter.sums().items() if name == "team_authz.decisions") == 1


def test_metrics_that_are_set_wrong_stop_no_decision() -> None:
    """In a process of its own: Airflow reads its settings once."""
    code = (
        "from airflow_team_authz.doors.decision_point import decision_point, flush_log\n"
        "from airflow_team_authz.model import Evaluations, Resource, Subject\n"
        "question = Evaluations(Subject('user', 'bob'), 'read', [Resource('connection', 'alpha', 'db')])\n"
        "print(decision_point().decide(question).decisions[0].allow)\n"
        "flush_log()\n"
    )
    settings = {"AIRFLOW__METRICS__OTEL_ON": "perhaps", "AIRFLOW__TEAM_AUTHZ__DECISION_LOG": "none"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, check=True, capture_output=True, text=True
    )
    assert "False" in told.stdout.splitlines()
    assert "decisions are not counted, since [metrics] cannot be read" in told.stdout + told.stderr


def test_airflows_statsd_gets_them() -> None:
    """In a process of its own, with Airflow's settings alone."""
    code = (
        "from airflow.observability import stats\n"
        "from airflow.observability.metrics import stats_utils\n"
        # As each component of Airflow's does when it starts.
        "stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)\n"
        "from airflow_team_authz.doors.decision_point import decision_point, flush_log\n"
        "from airflow_team_authz.model import Evaluations, Resource, Subject\n"
        "question = Evaluations(Subject('user', 'bob'), 'read', [Resource('connection', 'alpha', 'db')])\n"
        "decision_point().decide(question)\n"
        "flush_log()\n"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(30)
        settings = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(statsd.getsockname()[1]),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
            "AIRFLOW__TEAM_AUTHZ__DECISION_LOG": "log",
        }
        subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True)
        told = [statsd.recv(2_000).decode()]
        while not told[-1].startswith("airflow.team_authz.log.waiting"):
            told.append(statsd.recv(2_000).decode())
    assert "airflow.team_authz.decisions,door=other,layer=default,outcome=deny,type=connection:1|c" in told
    assert any(line.startswith("airflow.team_authz.duration,door=other,kind=decision:") for line in told)
    assert "airflow.team_authz.log.waiting,sink=log:0|g" in told


def test_each_sink_has_its_word_in_the_metrics() -> None:
    sinks = (Database, File, StandardLog, OpenTelemetry, BundleServer)
    assert tuple(sink.setting for sink in sinks) == SINKS
