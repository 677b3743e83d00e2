"""``GET /metrics``: what the server does, in the text format of Prometheus.

By hand, since the format takes fewer lines than a library would take settings:
https://prometheus.io/docs/instrumenting/exposition_formats/. No label is the name of anybody or anything: a route is
told as it is declared, such as ``/teams/{team_id}/package``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_team_authz.gate.findings import Finding
from airflow_team_authz.server.approvals import Waits
from airflow_team_authz.server.clients import ClientState
from airflow_team_authz.server.decisions import Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "team_authz_server_"
# Each metric: its kind, its labels, and what it counts.
METRICS = {
    "requests_total": ("counter", ("method", "route", "status"), "Requests that were answered."),
    "publishes_total": (
        "counter",
        ("outcome",),
        "Artifacts that were published, held for an approval, refused, or failed.",
    ),
    "findings_total": ("counter", ("rule",), "Findings of the gate in artifacts that it refused."),
    "decisions_received_total": ("counter", (), "Records of decisions that came by POST /logs."),
    "decisions_written_total": ("counter", (), "Those that are in the table now and were not before."),
    "decisions_dropped_total": ("counter", (), "Those that are no records."),
    "clients": ("gauge", ("state",), "Clients without and with an alarm."),
    "withheld_packages": ("gauge", (), "Packages that no longer compile."),
    "approvals_waiting": ("gauge", (), "Changes that wait for an approval."),
    "approvals_oldest_seconds": ("gauge", (), "How long the first of them has waited. None waits: no sample."),
    "approvals_expiry_seconds": ("gauge", (), "The time until one of them expires. None waits: no sample."),
    "bundles": ("gauge", (), "Bundles that are served."),
    "up": ("gauge", (), "1 while everything works; 0 while nothing can be published."),
}
_OUTCOMES = {200: "published", 202: "held", 409: "refused", 422: "refused", 423: "refused"}
_ROUTE_UNKNOWN = "other"
_METHODS = frozenset({"DELETE", "GET", "POST", "PUT"})

Samples = Mapping[tuple[str, ...], float]


class Counting:
    """Counts of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, ...]] = Counter()

    def note(self, name: str, *labels: str) -> None:
        """Count one more."""
        with self._lock:
            self._counts[name, *labels] += 1

    def refused(self, findings: Iterable[Finding]) -> None:
        """Count findings of the gate."""
        for finding in findings:
            self.note("findings_total", finding.rule)

    def samples(self, name: str) -> Samples:
        """The counts of a metric by its labels."""
        with self._lock:
            return {labels[1:]: count for labels, count in self._counts.items() if labels[0] == name}


class CountedRequests:
    """ASGI middleware: counts each request with its answer."""

    def __init__(self, app: ASGIApp, counting: Counting) -> None:
        self._app, self._counting = app, counting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"])
            await send(message)

        await self._app(scope, receive, counted)

    def _note(self, scope: Scope, status: int) -> None:
        # Not the path itself, which has names, nor a method that a client invents.
        route = str(getattr(scope.get("route"), "path", _ROUTE_UNKNOWN))
        method = scope["method"] if scope["method"] in _METHODS else _ROUTE_UNKNOWN
        self._counting.note("requests_total", method, route, str(status))
        if method == "PUT" and route.endswith("/package"):
            outcome = _OUTCOMES.get(status, "failed")
            self._counting.note("publishes_total", outcome)


def render(
    counting: Counting,
    decisions: Counts,
    clients: Iterable[ClientState],
    withheld: int,
    bundles: int,
    trouble: str,
    waits: Waits | None = None,
) -> str:
    """Everything, as Prometheus reads it. ``waits``: ``None`` if that cannot be known now."""
    states = Counter("alarm" if state.alarms else "ok" for state in clients)
    known: dict[str, Samples] = {
        "decisions_received_total": {(): decisions.received},
        "decisions_written_total": {(): decisions.written},
        "decisions_dropped_total": {(): decisions.dropped},
        "clients": {(state,): states[state] for state in ("alarm", "ok")},
        "withheld_packages": {(): withheld},
        "approvals_waiting": _sample(waits and waits.number),
        "approvals_oldest_seconds": _sample(waits and waits.oldest_seconds),
        "approvals_expiry_seconds": _sample(waits and waits.expiry_seconds),
        "bundles": {(): bundles},
        "up": {(): float(not trouble)},
    }
    lines = []
    for name, (kind, labels, told) in METRICS.items():
        lines += [f"# HELP {_PREFIX}{name} {told}", f"# TYPE {_PREFIX}{name} {kind}"]
        samples = known.get(name) or counting.samples(name)
        lines += [f"{_PREFIX}{name}{_labels(labels, values)} {value:g}" for values, value in sorted(samples.items())]
    return "\n".join(lines) + "\n"


def _sample(value: float | None) -> Samples:
    return {} if value is None else {(): value}


def _labels(names: Iterable[str], values: Iterable[str]) -> str:
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{told}}}" if told else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
