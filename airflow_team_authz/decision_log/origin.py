"""Where a question comes from: the door that asks, and the request that it serves. Airflow hands neither down."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import structlog

# What clients send as an id of theirs, such as a header, is cut here.
_LONGEST = 200
# W3C Trace Context, version 00 and what is compatible with it.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-")


class Origin(NamedTuple):
    """What a record tells of a question's origin; what is not known is empty. Of a request there are neither query,
    body nor headers, but for the two headers that name it.
    """

    door: str
    method: str = ""
    path: str = ""
    request_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    client: str = ""


class _Door(NamedTuple):
    name: str
    scope: Mapping[str, Any] | None = None


_NOWHERE = _Door("other")
_door: ContextVar[_Door] = ContextVar("team_authz_door", default=_NOWHERE)


def come_in(door: str, scope: Mapping[str, Any]) -> None:
    """The rest of this context, which serves one request only, asks at this door. ``scope`` is ASGI's."""
    _door.set(_Door(door, scope))


@contextmanager
def at(door: str, scope: Mapping[str, Any] | None = None) -> Iterator[None]:
    """What is asked in here is asked at this door, of the request that ``scope`` is about, or of the one before."""
    token = _door.set(_Door(door, _door.get().scope if scope is None else scope))
    try:
        yield
    finally:
        _door.reset(token)


def door() -> str:
    """The door at which this context asks."""
    return _door.get().name


def current() -> Origin:
    """All that is known of where the present question comes from."""
    name, scope = _door.get()
    if scope is None:
        return Origin(name, "", "", "", *_span(()))
    request_id = str(structlog.contextvars.get_contextvars().get("request_id") or "")
    address = scope.get("client")
    return Origin(
        name,
        str(scope.get("method", ""))[:_LONGEST],
        str(scope.get("path", ""))[: 5 * _LONGEST],
        request_id[:_LONGEST],
        *_span(scope.get("headers") or ()),
        f"{address[0]}:{address[1]}" if address else "",
    )


def _span(headers: Any) -> tuple[str, str]:
    """Ids of the trace and of the span: of OpenTelemetry where it traces, else of what the client says."""
    if (tracing := sys.modules.get("opentelemetry.trace")) is not None:
        context = tracing.get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    for name, value in headers:
        if name == b"traceparent" and (said := _TRACEPARENT.match(value)):
            return said[1].decode(), said[2].decode()
    return "", ""
