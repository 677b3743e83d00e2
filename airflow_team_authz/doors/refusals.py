"""Telling people why: Airflow answers a denial with 403 "Forbidden", the policy knows the reason.

A decision method can only say ``False``. So it leaves the reason with the request, and this middleware
puts it into the answer's ``detail``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastapi.concurrency import run_in_threadpool

from airflow_team_authz.decision_log import origin
from airflow_team_authz.doors.decision_point import flush_log
from airflow_team_authz.doors.disclosure import told_id, where_to_look
from airflow_team_authz.identities import requests

_refusals: ContextVar[dict[str, str] | None] = ContextVar("team_authz_refusals", default=None)
_OF_AIRFLOW = ("/api/v2/", "/ui/")
_SAID_BY_AIRFLOW = b'{"detail":"Forbidden"}'


def remember_refusal(reason: str, decision_id: str = "") -> None:
    """Keep a reason with the request that runs in this context, if any. Airflow's threads see the same list."""
    refusals = _refusals.get()
    if refusals is not None:
        refusals[reason + told_id(decision_id)] = decision_id


class RefusalReasons:
    """ASGI middleware: replaces Airflow's bare refusal, and nothing else, by one with the policy's reasons."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See the ASGI specification, 3.0."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _after_flush(send))
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusals: dict[str, str] = {}
        token = _refusals.set(refusals)
        held: list[Any] = []

        async def explain(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 403:
                held.append(message)
                return
            if held and message["type"] == "http.response.body":
                held.append(message)
                body = b"".join(part.get("body", b"") for part in held[1:])
                # Airflow's own middlewares send a body on in pieces, an empty one at the end.
                if message.get("more_body") and _SAID_BY_AIRFLOW.startswith(body):
                    return
                start, *parts = held
                held.clear()
                if refusals and body == _SAID_BY_AIRFLOW and not message.get("more_body"):
                    detail = f"Forbidden: {'; '.join(refusals)}{where_to_look(*refusals.values())}"
                    body = json.dumps({"detail": detail}).encode()
                    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                    start = {**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
                    parts = [{"type": "http.response.body", "body": body}]
                for part in (start, *parts):
                    await send(part)
                return
            # A server may be told to send a file itself.
            for part in held:
                await send(part)
            held.clear()
            await send(message)

        try:
            # Not applications of plugins, which may show what is in no database.
            of_airflow = scope["path"].removeprefix(scope.get("root_path", "")).startswith(_OF_AIRFLOW)
            with requests.request(of_airflow), origin.at("users", scope):
                await self._app(scope, receive, explain)
        finally:
            _refusals.reset(token)


def _after_flush(send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Uvicorn ends its process by the signal that it got, so nothing of Python's runs at the end: what waits to be
    recorded is written before the server hears that its application has stopped.
    """

    async def send_after_flush(message: Any) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await run_in_threadpool(flush_log)
        await send(message)

    return send_after_flush
