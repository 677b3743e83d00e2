"""The origin of a question: the door that asks, and the request that it serves. Airflow passes neither on."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

# What clients send as an id is cut here.
_LONGEST = 200
# W3C Trace Context, version 00 and what is compatible with it.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-")


class Origin(NamedTuple):
    """Where a question came from, as it is remembered until it is recorded; what is not known is empty.

    Of ``headers`` a record tells two that name the request, and no other. ``span`` is OpenTelemetry's.
    """

    door: str
    method: str = ""
    path: str = ""
    client: tuple[str, int] | None = None
    headers: Iterable[tuple[bytes, bytes]] = ()
    span: Any = None

    def request_id(self) -> str:
        """The request's id in Airflow's own log; the client chooses it."""
        return _header(self.headers, b"x-request-id")[:_LONGEST].decode("ascii", "replace")

    def traceparent(self) -> str:
        """The header that names the client's span; the client chooses it."""
        return self._traceparent().decode("ascii", "replace")

    def _traceparent(self) -> bytes:
        return _header(self.headers, b"traceparent")

    def trace(self) -> tuple[str, str]:
        """Ids of the trace and of the span: of OpenTelemetry where it traces, else of what the client says."""
        if self.span is not None:
            return f"{self.span.trace_id:032x}", f"{self.span.span_id:016x}"
        said = _TRACEPARENT.match(self._traceparent())
        return (said[1].decode(), said[2].decode()) if said else ("", "")


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for found, value in headers if found == name), b"")


class _Door(NamedTuple):
    name: str
    scope: Mapping[str, Any] | None = None


_new: Callable[[type[Origin], tuple[Any, ...]], Origin] = tuple.__new__
_NOWHERE = _Door("other")
_door: ContextVar[_Door] = ContextVar("team_authz_door", default=_NOWHERE)


def come_in(door: str, scope: Mapping[str, Any]) -> None:
    """The rest of this context, which serves one request only, asks at this door. ``scope`` is ASGI's."""
    _door.set(_Door(door, scope))


@contextmanager
def at(door: str, scope: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Mark questions of this block as asked at a door, for the request of ``scope``, or for the one before."""
    token = _door.set(_Door(door, _door.get().scope if scope is None else scope))
    try:
        yield
    finally:
        _door.reset(token)


def door() -> str:
    """The door at which this context asks."""
    return _door.get().name


def current() -> Origin:
    """All that is known of where the present question comes from. Quick: whoever asks waits for it."""
    name, scope = _door.get()
    span = None
    if (tracing := sys.modules.get("opentelemetry.trace")) is not None:
        context = tracing.get_current_span().get_span_context()
        span = context if context.is_valid else None
    if scope is None:
        return Origin(name, span=span)
    get = scope.get
    # What the class itself does, without looking up names of arguments.
    return _new(Origin, (name, get("method", ""), get("path", ""), get("client"), get("headers", ()), span))
