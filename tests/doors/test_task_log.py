"""The reason of a refusal, out of the API server's answer, for the task's log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from airflow_team_authz.doors import task_log


def told(kind: str, status: int, body: str, times: int = 1) -> list[str]:
    """What is written into the task's log while its supervisor handles a message of this kind."""
    lines: list[str] = []

    class Supervisor:
        client = httpx.Client(
            base_url="http://x", transport=httpx.MockTransport(lambda _: httpx.Response(status, text=body))
        )
        process_log = SimpleNamespace(error=lines.append)

        def _handle_request(self, *_: Any) -> None:
            for _ in range(times):
                self.client.get("/")

    task_log.guard(SimpleNamespace(ActivitySubprocess=Supervisor))  # type: ignore[arg-type]
    supervisor: Any = Supervisor()
    supervisor._handle_request(type(kind, (), {})(), None, 1)
    assert supervisor.client.event_hooks["response"] == []
    return lines


@pytest.mark.parametrize("kind", ["GetConnection", "GetVariable"])
def test_a_refusal_is_told(kind: str) -> None:
    assert told(kind, 403, '{"detail": {"reason": "access_denied", "message": "not yours"}}') == ["Refused: not yours"]


@pytest.mark.parametrize("kind", ["GetConnection", "GetVariable"])
def test_that_there_is_no_decision_is_told_once_and_is_no_refusal(kind: str) -> None:
    body = '{"detail": {"reason": "no_decision", "message": "No decision can be had. It is\\nslow"}}'
    assert told(kind, 503, body, times=3) == ["No decision can be had. It is\\nslow"]


@pytest.mark.parametrize(("kind", "status"), [("GetConnection", 404), ("GetConnection", 503), ("PutVariable", 403)])
def test_what_airflow_tells_itself_is_not_told_twice(kind: str, status: int) -> None:
    assert told(kind, status, "{}") == []


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("Forbidden", "Forbidden"),
        ("[]", "[]"),
        ('{"detail": "no"}', "no"),
        ('{"detail": {"x": 1}}', "{'x': 1}"),
        ('{"detail": null}', "None"),
        ("", ""),
    ],
)
def test_any_answer_will_do(body: str, line: str) -> None:
    assert told("GetConnection", 403, body) == [f"Refused: {line}"]
