"""Prometheus of Debian's package, and what `tools/install_tool.sh monitoring` builds: each started for a test."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from airflow_team_authz.decision_log import DecisionLog
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.metrics import Meter, Metrics
from airflow_team_authz.decision_log.record import Form
from airflow_team_authz.decision_log.sinks import StandardLog
from airflow_team_authz.model import Decision, Evaluations, Provenance, Resource, Subject, UnreachableError
from demo.airflow import free_port
from demo.process import Process, environment
from tests.conftest import REPOSITORY

PLACE = REPOSITORY / "docs/monitoring"
_START_SECONDS = 60


def count_everything(meter: Meter) -> None:
    """Let each metric of Airflow's processes be told to this meter."""
    counted = Metrics(DecisionLog([StandardLog()], Levels("none"), Form()), meter)
    question = Evaluations(Subject("user", "bob"), "read", [Resource("dag", "alpha", "d")])
    for revision in ("1", "2"):
        counted.decided(question, [Decision(True, (), "team")], Provenance(revision, 1))
    counted.decided(question, [Decision(False, (), "team")], Provenance("2", 1))
    counted.listed(question, [], Provenance("2", 1))
    counted.failed(question, UnreachableError("x"), 1)
    counted.beside("same")
    counted.breaker = SimpleNamespace(is_open=True, openings=1)
    (writer,) = counted._log.writers
    writer.written = writer.lost = 1
    counted.close()


def debians(name: str) -> str:
    """A program of Debian's package `prometheus`; without it the test is skipped, or fails where nothing may be."""
    found = shutil.which(name)
    if found is None:
        assert "REQUIRE_ALL" not in os.environ
        pytest.skip(f"{name} is not on this machine: apt-get install prometheus")
    return found


def built(name: str) -> str:
    """A program of tools/monitoring, likewise."""
    found = REPOSITORY / ".venv/monitoring" / name
    if not found.exists():
        assert "REQUIRE_ALL" not in os.environ
        pytest.skip(f"{name} is not built: tools/install_tool.sh monitoring")
    return str(found)


def is_there(url: str) -> bool:
    """Whether a server answers there as one that is ready."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def started(name: str, command: list[str], log: Path, ready: str) -> Iterator[Process]:
    """A program that runs until it is left; ``ready`` is where it answers with 200 then."""
    process = Process(name, command, log, environment(HOME=str(log.parent)))
    process.start(lambda: is_there(ready), _START_SECONDS)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def statsd_exporter(home: Path) -> Iterator[tuple[int, str]]:
    """Where a `statsd_exporter` as its makers configure it takes StatsD's datagrams, and its address for Prometheus."""
    datagrams, address = free_port(), f"127.0.0.1:{free_port()}"
    options = [f"--statsd.listen-udp=127.0.0.1:{datagrams}", "--statsd.listen-tcp=", f"--web.listen-address={address}"]
    ready = f"http://{address}/-/ready"
    with started("statsd_exporter", [built("statsd_exporter"), *options], home / "exporter.log", ready):
        yield datagrams, address


class Collector:
    """A collector of OpenTelemetry that takes OTLP by HTTP at ``url``, and writes what comes to a file."""

    def __init__(self, home: Path) -> None:
        address = f"127.0.0.1:{free_port()}"
        self.url, self._file = f"http://{address}", home / "collected.ndjson"
        pipelines = {kind: {"receivers": ["otlp"], "exporters": ["file"]} for kind in ("logs", "traces")}
        configured = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": address}}}},
            "exporters": {"file": {"path": str(self._file), "append": True}},
            "service": {"pipelines": pipelines},
        }
        (home / "collector.yaml").write_text(yaml.safe_dump(configured))
        command = [built("collector"), f"--config=file:{home}/collector.yaml"]
        self._process = Process("The collector", command, home / "collector.log", environment(HOME=str(home)))

    def start(self) -> None:
        """Start it, for the first time or again."""
        self._process.start(self._takes, _START_SECONDS)

    def stop(self) -> None:
        """Stop it; what it has taken is in the file then."""
        self._process.stop()

    def _takes(self) -> bool:
        try:
            return httpx.post(f"{self.url}/v1/logs", json={}).status_code == 200
        except httpx.HTTPError:
            return False

    def text(self) -> str:
        """All that it has written so far."""
        return self._file.read_text() if self._file.exists() else ""

    def logs(self) -> list[dict[str, Any]]:
        """Records of the log, in the order in which they came."""
        return list(self._each("resourceLogs", "scopeLogs", "logRecords"))

    def spans(self) -> list[dict[str, Any]]:
        """Spans of the traces, likewise."""
        return list(self._each("resourceSpans", "scopeSpans", "spans"))

    def _each(self, resources: str, scopes: str, kind: str) -> Iterator[dict[str, Any]]:
        # Its last line may be half written.
        for line in self.text().split("\n")[:-1]:
            for resource in json.loads(line).get(resources, []):
                for scope in resource[scopes]:
                    yield from scope[kind]


def attributes(collected: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a record or span."""
    return {each["key"]: next(iter(each["value"].values())) for each in collected["attributes"]}


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """A collector that runs; a test may stop and start it."""
    made = Collector(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Prometheus:
    """A Prometheus that has loaded the alert rules of the documentation."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an error of Prometheus fails."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        """What an expression gives now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alert rules by name, as they were evaluated last."""
        return {rule["name"]: rule for group in self.ask("rules")["groups"] for rule in group["rules"]}


@contextmanager
def prometheus(home: Path, *jobs: dict[str, Any]) -> Iterator[Prometheus]:
    """One that scrapes these jobs each second."""
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configured = {"global": every, "rule_files": [str(PLACE / "alerts.yaml")], "scrape_configs": list(jobs)}
    (home / "prometheus.yml").write_text(yaml.safe_dump(configured))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
    command = [debians("prometheus"), *options, f"--web.listen-address={address}"]
    with started("Prometheus", command, home / "prometheus.log", f"http://{address}/-/ready"):
        yield Prometheus(f"http://{address}")
