"""A running Airflow that sends traces: spans, records and Airflow's own spans meet in a real collector."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from demo.airflow import Settings, merged
from demo.running import RunningSite
from tests.conftest import eventually
from tests.support.monitoring import Collector, attributes

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]

# Of a user who traces requests, such as by a proxy.
TRACE, SPAN = "a" * 32, "b" * 16


class _Traced(RunningSite):
    """Sends records and spans to a collector."""

    def __init__(self, *arguments: Any) -> None:
        self.collector = Collector(arguments[0])
        super().__init__(*arguments)

    def guarding_settings(self) -> Settings:
        log = {"decision_log": "otel", "decision_log_levels": "all", "decision_log_masks": "none"}
        return merged(super().guarding_settings(), {"team_authz": log, "traces": {"otel_on": "True"}})

    def variables(self) -> Mapping[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url,
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def records(self) -> dict[str, dict[str, Any]]:
        """The records that have arrived, by their ids."""
        read = [json.loads(one["body"]["stringValue"]) for one in self.collector.logs()]
        return {record["decision_id"]: record for record in read}

    def spans(self) -> dict[str, dict[str, Any]]:
        """The spans of decisions that have arrived, by the ids of their records."""
        told = [span for span in self.collector.spans() if span["name"] == "team_authz.decide"]
        return {attributes(span).get("team_authz.decision_id", ""): span for span in told}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Traced]:
    running = _Traced(tmp_path_factory.mktemp("traces"))
    try:
        running.collector.start()
        running.start()
        running.begin_to_run()
        yield running
    finally:
        running.stop()
        running.collector.stop()


def refused(site: _Traced, connection: str, sampled: str) -> str:
    """The id of a record about a request of bob's in this trace; the same connection again is a repetition."""
    header = {"traceparent": f"00-{TRACE}-{SPAN}-{sampled}"}
    answer = site.client("bob").get(f"/api/v2/connections/{connection}", headers=header)
    assert answer.status_code == 403
    (id_,) = re.findall(r"decision ([0-9a-f-]{36})", answer.text)
    eventually(lambda: id_ in site.records())
    record = site.records()[id_]
    assert (record["trace_id"], record["span_id"]) == (TRACE, SPAN)
    return str(id_)


def test_a_users_request_that_names_a_trace_has_its_span_there_if_it_is_sampled(site: _Traced) -> None:
    without, id_ = refused(site, "audit_store", "00"), refused(site, "alpha_db", "01")
    eventually(lambda: id_ in site.spans())
    span = site.spans()[id_]
    assert (span["traceId"], span["parentSpanId"]) == (TRACE, SPAN)
    assert attributes(span)["team_authz.outcome"] == "deny"
    # It would have arrived before.
    assert without not in site.spans()


def test_a_tasks_decisions_have_spans_in_the_trace_of_its_run(site: _Traced) -> None:
    site.tried("alpha", site.begin("alpha", ("read connection", "alpha_db"), ("read connection", "beta_db")))

    def of_tasks() -> list[tuple[str, dict[str, Any]]]:
        return [(id_, span) for id_, span in site.spans().items() if attributes(span)["team_authz.door"] == "tasks"]

    eventually(lambda: {attributes(span)["team_authz.outcome"] for _, span in of_tasks()} >= {"allow", "deny"})
    eventually(lambda: {id_ for id_, _ in of_tasks()} <= site.records().keys() | {""})
    # Airflow sends its own when the task has ended.
    eventually(lambda: "task_run.attempt" in {span["name"] for span in site.collector.spans()})
    runs = {span["traceId"] for span in site.collector.spans() if span["name"].startswith("task_run.")}
    for id_, span in of_tasks():
        assert span["traceId"] in runs
        if id_:
            record = site.records()[id_]
            assert (span["traceId"], span["parentSpanId"]) == (record["trace_id"], record["span_id"])
            assert record["input"]["subject"]["type"] == "task"
