"""A span for each decision, in the traces of Airflow's OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_team_authz.decision_log import DecisionLog, origin
from airflow_team_authz.decision_log.metrics import Metrics
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import Decision, EngineError, Evaluations, Provenance, Resource

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

log = logger(__name__)


class Spans:
    """An observer of the decision point, in front of another one. It neither waits nor raises.

    A span begins and ends when the decision did, in the trace that the record names: below the span that is under way,
    or that the request's header names. Airflow has no spans of its own for requests. Without a trace, or in one that is
    not sampled, there is no span. It costs the request some 50 µs.
    """

    def __init__(self, observer: Metrics | DecisionLog, tracer: Tracer) -> None:
        self._observer, self._tracer = observer, tracer

    def decided(self, question: Evaluations, decisions: Sequence[Decision], how: Provenance) -> str:
        """See ``engines.Observer``."""
        id_ = self._observer.decided(question, decisions, how)
        allowed = sum(decision.allow is True for decision in decisions)
        outcome = "allow" if allowed == len(question.resources) else "deny"
        layer = decisions[0].layer if len(decisions) == 1 else ""
        about = {"layer": layer, "revision": how.revision, "decision_id": id_, "cache": _cache(how)}
        self._span(question, outcome, how.nanoseconds, allowed=allowed, **about)
        return id_

    def listed(self, question: Evaluations, allowed: Sequence[Resource], how: Provenance) -> None:
        """See ``engines.Observer``."""
        self._observer.listed(question, allowed, how)
        about = {"revision": how.revision, "cache": _cache(how)}
        self._span(question, "list", how.nanoseconds, allowed=len(allowed), **about)

    def failed(self, question: Evaluations, error: EngineError, nanoseconds: int) -> str:
        """See ``engines.Observer``."""
        id_ = self._observer.failed(question, error, nanoseconds)
        self._span(question, "error", nanoseconds, error=error.code, decision_id=id_)
        return id_

    def _span(self, question: Evaluations, outcome: str, nanoseconds: int, **about: str | int) -> None:
        try:
            from opentelemetry.trace import Status, StatusCode

            if not question.resources or (trace := _sampled()) is None:
                return
            now = time.time_ns()
            told = {
                "outcome": outcome, "door": origin.door(), "action": question.action,
                "type": question.resources[0].type, "asked": len(question.resources), **about,
            }  # fmt: skip
            attributes = {f"team_authz.{name}": value for name, value in told.items() if value != ""}
            begin = now - nanoseconds
            span = self._tracer.start_span("team_authz.decide", trace, start_time=begin, attributes=attributes)
            if outcome == "error":
                span.set_status(Status(StatusCode.ERROR, str(about["error"])))
            span.end(now)
        except Exception:
            log.exception("a decision has no span")


def _sampled() -> Context | None:
    """The trace of the present question, if there is one and its spans are wanted."""
    from opentelemetry.context import get_current
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = get_current()
    if not get_current_span(context).get_span_context().is_valid:
        named = {"traceparent": origin.current().traceparent()}
        context = TraceContextTextMapPropagator().extract(named, context)
    span = get_current_span(context)
    return context if span.is_recording() or span.get_span_context().trace_flags.sampled else None


def _cache(how: Provenance) -> str:
    return "hit" if how.kept else ""
