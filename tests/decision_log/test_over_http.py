"""What sinks over HTTP send, and what they make of each answer; a server of the test's own listens."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.over_http import BundleServer, OpenTelemetry, RecordsRefusedError
from airflow_team_authz.decision_log.record import Entry, Form, Gap, new_id
from airflow_team_authz.decision_log.writer import Sink, Writer
from airflow_team_authz.model import Evaluations, Resource, Subject
from tests.conftest import eventually
from tests.decision_log.conftest import NO

TRACE = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


class Listening:
    """Answers what it is told to, and keeps what came."""

    def __init__(self, port: int = 0) -> None:
        self.answer: tuple[int, Any] = 200, {}
        self.came: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
                outer.came.append((self.path, dict(self.headers), json.loads(content)))
                code, told = outer.answer
                body = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def serving(made: Listening) -> Iterator[Listening]:
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def listening() -> Iterator[Listening]:
    with serving(Listening()) as made:
        yield made


def entry(name: str = "db") -> Entry:
    resource = Resource("connection", "alpha", name)
    origin = Origin("users", "GET", "/x", None, [(b"traceparent", TRACE)])
    question = Evaluations(Subject("user", "bob"), "read", [resource])
    at = 1_700_000_000_123_456_000
    return Entry(new_id(at), at, 1, origin, question, "r", 1, 0, [resource], [NO])


def record(name: str = "db") -> dict[str, Any]:
    return Form().record(entry(name))


@pytest.fixture(params=["otel", "server"])
def sink(request: pytest.FixtureRequest, listening: Listening, monkeypatch: pytest.MonkeyPatch) -> Sink:
    if request.param == "server":
        return BundleServer(listening.url, None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{listening.url}/")
    return OpenTelemetry()


@pytest.mark.parametrize("code", [301, 401, 404, 429, 500, 503])
def test_what_may_be_better_later_is_sent_again(sink: Sink, listening: Listening, code: int) -> None:
    listening.answer = code, {"dropped": 1}
    with pytest.raises(RecordsRefusedError, match=str(code)):
        sink.write([record()])
    listening.answer = 200, {}
    assert sink.write([record()]) == 0


@pytest.mark.parametrize("code", [400, 413, 422])
def test_what_is_never_taken_is_told_as_lost(sink: Sink, listening: Listening, code: int) -> None:
    listening.answer = code, b"x"
    assert sink.write([record(), record()]) == 2


@pytest.mark.parametrize("told", [b"", b"[]", b"x", {"dropped": "x", "partialSuccess": 1}, {"partialSuccess": {}}])
def test_an_answer_of_another_kind_is_no_loss(sink: Sink, listening: Listening, told: Any) -> None:
    listening.answer = 200, told
    assert sink.write([record()]) == 0


def test_what_a_server_drops_is_counted(sink: Sink, listening: Listening) -> None:
    listening.answer = 200, {"dropped": 2, "partialSuccess": {"rejectedLogRecords": "2"}}
    assert sink.write([record(), record(), record()]) == 2


def test_while_a_server_is_gone_records_wait_and_those_that_find_no_room_are_told(
    listening: Listening, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_team_authz.decision_log.writer._LONGEST_PAUSE_SECONDS", 0.01)
    listening.answer = 503, {}
    writing = Writer(BundleServer(listening.url, None), Form(), lambda: None, most=100)
    writing.offer(entry("first"))
    eventually(lambda: bool(listening.came))
    for number in range(150):
        writing.offer(entry(str(number)))
    assert (writing.written, writing.lost) == (0, 50)
    listening.came.clear()
    listening.answer = 200, {}
    writing.close(20)
    sent = [one for _, _, records in listening.came for one in records]
    told = [one["input"]["resource"]["id"] for one in sent if "input" in one]
    # What was refused when it came is sent once more.
    assert list(dict.fromkeys(told)) == ["first", *map(str, range(100))]
    assert [one["custom"]["lost"] for one in sent if one["custom"]["outcome"] == "gap"] == [50]
    assert "cannot be recorded in the bundle server (RecordsRefusedError): it answers 503" in caplog.text


def test_a_server_that_begins_later_gets_what_waited(listening: Listening) -> None:
    port = listening.server.server_port
    listening.server.server_close()
    writing = Writer(BundleServer(listening.url, None), Form(), lambda: None)
    writing.offer(entry("waits"))
    eventually(lambda: writing._failing)
    with serving(Listening(port)) as later:
        writing.close(20)
    assert [one["input"]["resource"]["id"] for _, _, records in later.came for one in records] == ["waits"]
    assert writing.lost == 0


def test_a_collector_gets_the_record_with_its_trace_and_the_headers_that_it_wants(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{listening.url}/here")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, other = c ,none")
    one = record("db\ud800 postgresql://a:MARKED@b")
    OpenTelemetry().write([one, Form().gap(Gap(3, 1, 2), "OpenTelemetry")])
    ((path, headers, sent),) = listening.came
    assert (path, headers["x-key"], headers["other"]) == ("/here", "a b", "c")
    (of_resource,) = sent["resourceLogs"]
    (of_scope,) = of_resource["scopeLogs"]
    assert {"key": "service.name", "value": {"stringValue": "airflow"}} in of_resource["resource"]["attributes"]
    log, gap = of_scope["logRecords"]
    assert (log["timeUnixNano"], log["severityText"], gap["severityText"]) == ("1700000000123456000", "INFO", "WARN")
    assert (log["traceId"], log["spanId"]) == ("a" * 32, "b" * 16)
    assert json.loads(log["body"]["stringValue"])["decision_id"] == one["decision_id"]
    told = {each["key"]: each["value"]["stringValue"] for each in log["attributes"]}
    assert told["team_authz.outcome"] == "deny"
    assert told["enduser.id"] == "bob"
    assert "MARKED" not in json.dumps(sent)
