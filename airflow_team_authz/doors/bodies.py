"""Reads teams from a request's body, where Airflow 3.3 does not give them to its auth manager.

Airflow asks about the team that a changed connection, variable or pool would go to, with three gaps:

- In a single PATCH it cannot be seen whether ``team_name`` is left out (the team stays) or null (it becomes common).
- In a bulk PATCH ``"team_name": null`` is not asked about, though it takes the resource away from its team.
- A variable that a bulk PATCH creates becomes common, whatever ``team_name`` says: Airflow drops it.

So this middleware reads the bodies of these PATCH requests, and the auth manager asks what is really going to happen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

_PATH = re.compile(r"/api/v2/(?P<collection>connections|variables|pools)(?P<one>/.+)?$")
_ID = {"connections": ("connection_id",), "variables": ("key",), "pools": ("name", "pool")}


class TeamChange(NamedTuple):
    """``keeps_team``: a PATCH of one leaves ``team_name`` out. ``to_common``: ids that a bulk one takes from teams.

    ``new_to_common``: ids that a bulk one creates as common, if there is no such thing yet, although it names a team.
    """

    keeps_team: bool = False
    to_common: frozenset[str] = frozenset()
    new_to_common: frozenset[str] = frozenset()


_NOTHING = TeamChange()
_change: ContextVar[TeamChange] = ContextVar("team_authz_team_change", default=_NOTHING)


def team_change() -> TeamChange:
    """The teams in the body of this context's request; empty outside of a PATCH on connections, variables or pools."""
    return _change.get()


class TeamChanges:
    """ASGI middleware: reads such a body and hands it on unchanged."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See the ASGI specification, 3.0."""
        match = _PATH.search(scope["path"]) if scope["type"] == "http" and scope["method"] == "PATCH" else None
        if match is None:
            await self._app(scope, receive, send)
            return
        messages: list[Any] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            if messages[-1]["type"] != "http.request":
                break
        change = _read(match, b"".join(message.get("body", b"") for message in messages))
        waiting = iter(messages)

        async def replay() -> Any:
            return next(waiting, None) or await receive()

        token = _change.set(change)
        try:
            await self._app(scope, replay, send)
        finally:
            _change.reset(token)


def _read(match: re.Match[str], body: bytes) -> TeamChange:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return _NOTHING
    if not isinstance(document, dict):
        return _NOTHING
    if match["one"]:
        return TeamChange(keeps_team="team_name" not in document)
    names = _ID[match["collection"]]
    created = _ids(_entities(document, "create"), names) if match["collection"] == "variables" else ()
    made_common = (entity for entity in _entities(document) if "team_name" in entity and entity["team_name"] is None)
    return TeamChange(to_common=frozenset(_ids(made_common, names)), new_to_common=frozenset(created))


def _entities(document: dict[str, Any], only: str | None = None) -> Iterator[dict[str, Any]]:
    actions = document.get("actions")
    for action in actions if isinstance(actions, list) else ():
        if not isinstance(action, dict) or only not in (None, action.get("action")):
            continue
        entities = action.get("entities")
        yield from (entity for entity in (entities if isinstance(entities, list) else ()) if isinstance(entity, dict))


def _ids(entities: Iterable[dict[str, Any]], names: tuple[str, ...]) -> Iterator[str]:
    return (str(entity[name]) for entity in entities for name in names if name in entity)
