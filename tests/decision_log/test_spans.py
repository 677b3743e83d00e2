"""Each decision is a span of the trace that is under way."""

from __future__ import annotations

import time

import pytest
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from airflow_team_authz.decision_log import origin
from airflow_team_authz.decision_log.spans import Spans
from airflow_team_authz.model import Evaluations, Provenance, Resource, UnreachableError
from tests.decision_log.conftest import BOB, NO, YES, Made

DB = Resource("connection", "alpha", "secret_name")
QUESTION = Evaluations(BOB, "read", [DB])


def test_outcomes_are_spans_with_their_time_and_no_ids_of_resources() -> None:
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer, made = provider.get_tracer("test"), Made()
    spans = Spans(made.log, tracer)
    spans.decided(QUESTION, [NO], Provenance("r1", 1_000))
    assert kept.get_finished_spans() == ()
    with tracer.start_as_current_span("request") as request, origin.at("users"):
        before = time.time_ns()
        refused = spans.decided(QUESTION, [NO], Provenance("r1", 5_000_000))
        spans.decided(Evaluations(BOB, "read", [DB, DB]), [YES, YES], Provenance("r1", 1))
        spans.listed(QUESTION, [DB], Provenance("r1", 1))
        failed = spans.failed(QUESTION, UnreachableError("nobody"), 1)
    *told, _ = kept.get_finished_spans()
    assert all(span.parent and span.parent.span_id == request.get_span_context().span_id for span in told)
    first = told[0]
    assert first.end_time - first.start_time == 5_000_000  # type: ignore[operator]
    assert first.end_time >= before  # type: ignore[operator]
    assert dict(first.attributes or {}) == {
        "team_authz.outcome": "deny", "team_authz.door": "users", "team_authz.action": "read", "team_authz.asked": 1,
        "team_authz.type": "connection", "team_authz.allowed": 0, "team_authz.layer": "baseline",
        "team_authz.revision": "r1", "team_authz.decision_id": refused,
    }  # fmt: skip
    outcomes = [(span.attributes or {})["team_authz.outcome"] for span in told]
    assert outcomes == ["deny", "allow", "list", "error"]
    assert (told[3].attributes or {})["team_authz.decision_id"] == failed
    assert not told[3].status.is_ok
    assert not any("secret_name" in str(span.attributes) for span in told)
    made.log.close()


SAMPLED, NOT_SAMPLED = ((b"traceparent", f"00-{'a' * 32}-{'b' * 16}-0{flag}".encode()) for flag in (1, 0))


@pytest.mark.parametrize(
    ("header", "attached", "names"),
    [
        (SAMPLED, None, "header"),
        (NOT_SAMPLED, None, "nothing"),
        ((b"traceparent", b"nonsense"), None, "nothing"),
        ((b"traceparent", b"\xff" * 55), None, "nothing"),
        ((b"other", b""), None, "nothing"),
        (NOT_SAMPLED, TraceFlags.SAMPLED, "attached"),
        (SAMPLED, TraceFlags.DEFAULT, "nothing"),
    ],
)
def test_a_trace_that_began_elsewhere_has_the_spans_that_it_wants(
    header: tuple[bytes, bytes], attached: int | None, names: str
) -> None:
    """Airflow attaches what a task's request says; of a user's request it looks at no header."""
    provider, kept, made = TracerProvider(), InMemorySpanExporter(), Made()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    remote = SpanContext(0xC, 0xD, is_remote=True, trace_flags=TraceFlags(attached or 0))
    context = set_span_in_context(NonRecordingSpan(remote)) if attached is not None else Context()
    token = attach(context)
    with origin.at("users", {"method": "GET", "path": "/x", "headers": [header]}):
        Spans(made.log, provider.get_tracer("test")).decided(QUESTION, [NO], Provenance("r1", 1))
    detach(token)
    (record,) = made.records()
    told = [(f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") for span in kept.get_finished_spans()]  # type: ignore[union-attr]
    expected = {"header": [("a" * 32, "b" * 16)], "attached": [(f"{0xC:032x}", f"{0xD:016x}")], "nothing": []}[names]
    assert told == expected
    assert names == "nothing" or told == [(record["trace_id"], record["span_id"])]


def test_a_fault_in_tracing_changes_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tracer = Made(), TracerProvider().get_tracer("test")
    spans = Spans(made.log, tracer)
    with tracer.start_as_current_span("request"):
        monkeypatch.setattr(tracer, "start_span", lambda *_, **__: 1 / 0)
        id_ = spans.decided(QUESTION, [NO], Provenance("r1", 1))
    assert [record["decision_id"] for record in made.records()] == [id_]
