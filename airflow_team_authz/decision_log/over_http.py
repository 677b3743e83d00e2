"""Sinks at the other end of a connection: a bundle server, and a collector of OpenTelemetry."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from airflow_team_authz.decision_log.record import encode, without_secrets
from airflow_team_authz.files import read_token

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS = 10.0
# What is as wrong the next time. Anything else, such as a token that somebody has yet to replace, may be better then.
_FOR_GOOD = (400, 413, 422)


class RecordsRefusedError(Exception):
    """The server does not take the records; the message says what it answers."""


class _Post:
    """Sends records in one request, over a connection that it keeps."""

    def __init__(self, url: str, headers: Callable[[], Mapping[str, str]], hint: str) -> None:
        """``headers`` are asked for each request; ``hint`` is for who is not let in."""
        self._url, self._headers, self._hint = url, headers, hint
        self.begin_anew()

    def begin_anew(self) -> None:
        """The parent goes on with the connections."""
        self._client: httpx.Client | None = None

    def send(self, content: str) -> httpx.Response | None:
        """The answer; ``None`` if the server will never take the content.

        Raises ``RecordsRefusedError``, or an error of httpx, if it may take it later.
        """
        import httpx

        if self._client is None:
            self._client = httpx.Client(timeout=_TIMEOUT_SECONDS)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json", **self._headers()}
        answer = self._client.post(self._url, content=gzip.compress(content.encode(), 1), headers=headers)
        if answer.status_code in _FOR_GOOD:
            return None
        if not answer.is_success:
            hint = f" (see {self._hint})" if answer.status_code in {401, 403} else ""
            raise RecordsRefusedError(f"it answers {answer.status_code} {answer.reason_phrase}{hint}")
        return answer


class BundleServer:
    """``POST /logs`` of a bundle server in the protocol of OPA's ``decision_logs`` plugin, with a reader's token."""

    name, setting = "the bundle server", "server"

    def __init__(self, url: str, token_file: Path | None) -> None:
        """``url`` is the server's address, such as ``https://bundles.example``."""
        self._token_file = token_file
        self._post = _Post(f"{url.rstrip('/')}/logs", self._authorization, "decision_log_token_file")
        self.begin_anew = self._post.begin_anew

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``."""
        answer = self._post.send(f"[{','.join(map(encode, records))}]")
        return len(records) if answer is None else _number(answer, "dropped")

    def _authorization(self) -> Mapping[str, str]:
        # For each request: it may have been replaced.
        return {} if self._token_file is None else {"Authorization": f"Bearer {read_token(self._token_file)}"}


class OpenTelemetry:
    """A collector that takes logs by OTLP over HTTP as JSON (https://opentelemetry.io/docs/specs/otlp/#otlphttp).

    By hand: the SDK's exporter hides from its caller what the collector refuses, and its interface for logs is not
    stable. OpenTelemetry's own variables say where the collector is, and which headers it wants.
    """

    name, setting = "OpenTelemetry", "otel"

    def __init__(self) -> None:
        url = os.environ.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT") or (
            os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318").rstrip("/") + "/v1/logs"
        )
        self._post = _Post(url, _otel_headers, "OTEL_EXPORTER_OTLP_HEADERS")
        self.begin_anew = self._post.begin_anew

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``."""
        labels = records[0]["labels"]
        known = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "airflow"), "service.instance.id": labels["id"],
                 "host.name": labels["host"], "process.pid": labels["pid"]}  # fmt: skip
        scope = {"name": "airflow_team_authz", "version": labels["version"]}
        logs = {"scope": scope, "logRecords": [_otel(record) for record in records]}
        told = {"resourceLogs": [{"resource": {"attributes": _attributes(known)}, "scopeLogs": [logs]}]}
        answer = self._post.send(msgspec.json.encode(told).decode())
        return len(records) if answer is None else _number(answer, "partialSuccess", "rejectedLogRecords")


def _otel(record: Mapping[str, Any]) -> dict[str, Any]:
    outcome, input_ = record["custom"]["outcome"], record.get("input", {})
    moment = datetime.fromisoformat(record["timestamp"]).astimezone(UTC)
    is_bad = outcome in {"error", "gap"}
    about = {
        "team_authz.decision_id": record["decision_id"],
        "team_authz.outcome": outcome,
        "team_authz.door": record["custom"].get("door"),
        "enduser.id": input_.get("subject", {}).get("id"),
        "team_authz.action": input_.get("action"),
        "team_authz.resource.type": input_.get("resource", {}).get("type"),
        "team_authz.resource.team_id": input_.get("resource", {}).get("team_id"),
    }
    return {
        "timeUnixNano": str(int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1_000),
        "severityNumber": 13 if is_bad else 9,
        "severityText": "WARN" if is_bad else "INFO",
        "eventName": "team_authz.decision",
        "body": {"stringValue": encode(dict(record))},
        "attributes": _attributes({name: without_secrets(str(value)) for name, value in about.items() if value}),
        "traceId": record.get("trace_id", ""),
        "spanId": record.get("span_id", ""),
    }


def _attributes(known: Mapping[str, str]) -> list[dict[str, Any]]:
    # Half a surrogate pair is nothing that a collector takes.
    texts = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in known.items()}
    return [{"key": name, "value": {"stringValue": value}} for name, value in texts.items()]


def _otel_headers() -> Mapping[str, str]:
    told = os.environ.get("OTEL_EXPORTER_OTLP_LOGS_HEADERS") or os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    return dict(_pairs(told))


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals:
            yield unquote(name.strip()), unquote(value.strip())


def _number(answer: httpx.Response, *names: str) -> int:
    """A number in the answer, which a server of another kind may not tell."""
    try:
        told = answer.json()
        for name in names:
            told = told[name]
        return int(told)
    except (ValueError, KeyError, TypeError):
        return 0
