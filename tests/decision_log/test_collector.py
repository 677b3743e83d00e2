"""The sink for OpenTelemetry beside a real collector, which writes what it takes to a file."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from airflow_team_authz.decision_log import DecisionLog, origin
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.over_http import OpenTelemetry
from airflow_team_authz.decision_log.record import DEFAULT_MASKS, Form
from airflow_team_authz.decision_log.writer import Writer
from airflow_team_authz.model import Evaluations, Provenance, Resource, UnreachableError
from tests.conftest import eventually
from tests.decision_log.conftest import BOB, NO, YES, Kept, ask_with
from tests.decision_log.test_over_http import TRACE, entry
from tests.decision_log.test_record import ODD, SECRETS
from tests.support.monitoring import Collector, attributes, collector

pytestmark = pytest.mark.exhaustive
__all__ = ["collector"]  # the fixture

PAIR = [Resource("connection", "alpha", "one"), Resource("connection", "beta", "two")]


@pytest.fixture(autouse=True)
def _named(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)


def opened(masks: str) -> tuple[DecisionLog, Kept]:
    """A decision log with the collector and a sink in memory."""
    kept = Kept()
    return DecisionLog([OpenTelemetry(), kept], Levels("all"), Form(masks)), kept


def test_each_record_arrives_with_its_fields(collector: Collector) -> None:
    log, kept = opened("none")
    headers = [(b"traceparent", TRACE), (b"x-request-id", b"r-1")]
    scope = {"method": "GET", "path": "/x", "client": ("10.0.0.1", 1), "headers": headers}
    with origin.at("users", scope):
        log.decided(Evaluations(BOB, "read", PAIR[:1]), [NO], Provenance("r1", 7))
        log.decided(Evaluations(BOB, "read", PAIR), [YES, YES], Provenance("r1", 7))
        log.listed(Evaluations(BOB, "read", PAIR), PAIR[:1], Provenance("r1", 7))
        log.failed(Evaluations(BOB, "read", PAIR[:1]), UnreachableError("nobody"), 7)
    for text in ["", "x" * 10_000, *ODD]:
        ask_with(log, text)
    log.close()
    collector.stop()
    came = collector.logs()
    assert [json.loads(one["body"]["stringValue"]) for one in came] == kept.records
    assert {record["custom"]["outcome"] for record in kept.records} == {"allow", "deny", "list", "error"}
    for one, record in zip(came, kept.records, strict=True):
        assert (one.get("traceId", ""), one.get("spanId", "")) == (
            record.get("trace_id", ""),
            record.get("span_id", ""),
        )
        assert one["eventName"] == "team_authz.decision"
        assert one["severityText"] == ("WARN" if record["custom"]["outcome"] == "error" else "INFO")
        at = datetime.fromisoformat(record["timestamp"]).timestamp() * 1e9
        assert abs(int(one["timeUnixNano"]) - at) < 1_000
        about = attributes(one)
        assert about["team_authz.decision_id"] == record["decision_id"]
        assert about["team_authz.outcome"] == record["custom"]["outcome"]
    assert came[0]["traceId"] == "a" * 32
    assert attributes(came[0])["team_authz.resource.team_id"] == "alpha"


def test_no_secret_and_nothing_that_is_masked_arrives(collector: Collector) -> None:
    log, _ = opened("none")
    for secret, _ in SECRETS.values():
        ask_with(log, secret)
    log.close()
    log, _ = opened(f"/input, /result, /custom/told, /custom/request, /custom/door, {DEFAULT_MASKS}")
    ask_with(log, "MASKED")
    log.close()
    collector.stop()
    assert len(collector.logs()) == 2 * len(SECRETS) + 2
    assert "MARKED" not in collector.text()
    for record in collector.logs()[-2:]:
        told = json.loads(record["body"]["stringValue"])
        assert {"/input", "/custom/request", "/custom/door"} <= set(told["erased"])
        # No mask can name the others.
        named = {name: told.get(name) for name in ("input", "result", "custom")}
        assert "MASKED" not in json.dumps([named, record["attributes"]])


def test_what_was_lost_while_it_was_stopped_is_told(collector: Collector) -> None:
    writing = Writer(OpenTelemetry(), Form(), lambda: None, most=100)
    writing.offer(entry("before"))
    eventually(lambda: writing.written == 1)
    collector.stop()
    for number in range(250):
        writing.offer(entry(str(number)))
    collector.start()
    eventually(lambda: not writing.waiting())
    writing.close(20)
    collector.stop()
    records = [json.loads(one["body"]["stringValue"]) for one in collector.logs()]
    told = [record["input"]["resource"]["id"] for record in records if "input" in record]
    gaps = [record["custom"]["lost"] for record in records if record["custom"]["outcome"] == "gap"]
    assert told[0] == "before"
    assert writing.lost == sum(gaps) > 0
    assert len(told) + sum(gaps) == 251
    assert told[1:] == list(map(str, range(len(told) - 1)))
