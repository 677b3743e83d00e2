"""Limits the size and the time of a request, before anything looks at its token."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_team_authz.bundles.artifact import MAX_ARTIFACT_BYTES

MAX_STATUS_BYTES = 256 * 1024
MAX_LOGS_BYTES = 4 << 20
MAX_ACCESS_BYTES = 256 * 1024
_MAX_BYTES = 64 * 1024
_SECONDS = 60


class Bodies:
    """ASGI middleware: a body that is larger than its route takes is 413 as soon as it is, and a slow one 408."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        http = scope["type"] == "http"
        await self._app(scope, _limited(receive, _limit(scope["path"])) if http else receive, send)


def is_access(path: str) -> bool:
    """Whether the path is one of the AuthZEN API, whose errors have a form of their own."""
    return "/access/v1/" in path


def _limit(path: str) -> int:
    if path == "/status":
        return MAX_STATUS_BYTES
    if is_access(path):
        return MAX_ACCESS_BYTES
    if path.startswith("/logs"):
        return MAX_LOGS_BYTES
    return MAX_ARTIFACT_BYTES if path.endswith("/package") else _MAX_BYTES


def _limited(receive: Receive, limit: int) -> Receive:
    left, end, whole = limit, asyncio.get_running_loop().time() + _SECONDS, False

    async def limited() -> Message:
        nonlocal left, whole
        # After the body comes only that the client hangs up.
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the request was not whole after {_SECONDS} seconds") from None
        left, whole = left - len(message.get("body", b"")), not message.get("more_body")
        if left < 0:
            raise HTTPException(413, f"it is larger than {limit:,} bytes")
        return message

    return limited
