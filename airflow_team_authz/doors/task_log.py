"""Writes into a task's log why it did not get a connection or a variable, because Airflow drops the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

from airflow_team_authz.escaping import escaped

# What a task is answered about these holds no detail; of everything else, Airflow's own log line tells it.
_WITHOUT_DETAIL = {"GetConnection", "GetVariable"}


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``; the module is the supervisor's, which runs beside the task on its worker."""
    supervisor: Any = module.ActivitySubprocess
    supervisor._handle_request = _telling(supervisor._handle_request)


def _telling(handle: Callable[..., None]) -> Callable[..., None]:
    def handle_request(self: Any, msg: Any, log: Any, *arguments: Any, **named: Any) -> None:
        if type(msg).__name__ not in _WITHOUT_DETAIL:
            handle(self, msg, log, *arguments, **named)
            return

        told: list[str] = []

        def tell(response: Any) -> None:
            if response.status_code not in {403, 503}:
                return
            response.read()
            # The task's log; `log` is the worker's.
            if response.status_code == 403:
                self.process_log.error(f"Refused: {escaped(_reason(response.text))}")
            elif '"no_decision"' in response.text and not told:
                # Airflow asks again a few times, and then says that there is no such thing.
                told.append(_reason(response.text))
                self.process_log.error(escaped(told[0]))

        hooks = self.client.event_hooks["response"]
        # The first one: Airflow's own raises.
        hooks.insert(0, tell)
        try:
            handle(self, msg, log, *arguments, **named)
        finally:
            hooks.remove(tell)

    return handle_request


def _reason(body: str) -> str:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, TypeError, KeyError):
        return body
    return str(detail.get("message", detail)) if isinstance(detail, dict) else str(detail)
