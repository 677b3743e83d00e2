"""The one table: from what Airflow asks to actions and resources.

Airflow's words end here. ``team_name`` becomes ``team_id``, HTTP methods become actions, the many ``*Details``
become one ``Resource``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.common.types import MenuItem
from msgspec import UNSET

from airflow_team_authz.model import Resource


class UnknownQuestionError(Exception):
    """Airflow asks about something that this version does not know: denied."""


class Kind(NamedTuple):
    """How a resource type's ``details`` name a resource and its team."""

    type: str
    id: str
    team: Callable[[Any], str | None]


def _common(_: Any) -> str | None:
    return None


def _owner(details: Any) -> str | None:
    return details.team_name  # type: ignore[no-any-return]


KINDS = {
    "asset": Kind("asset", "id", _common),
    "asset_alias": Kind("asset_alias", "id", _common),
    "configuration": Kind("configuration", "section", _common),
    "connection": Kind("connection", "conn_id", _owner),
    "dag": Kind("dag", "id", _owner),
    "pool": Kind("pool", "name", _owner),
    "team": Kind("team", "name", lambda details: details.name),
    "variable": Kind("variable", "key", _owner),
}

_ACTIONS = {"GET": "read", "POST": "create", "PUT": "update", "DELETE": "delete", "MENU": "menu"}

# Written out, so that what a coming Airflow adds is unknown here, and denied, until somebody decides about it.
_ENTITIES = {
    "AUDIT_LOG", "CODE", "DEPENDENCIES", "HITL_DETAIL", "RUN", "TASK", "TASK_INSTANCE", "TASK_LOGS", "VERSION",
    "WARNING", "XCOM",
}  # fmt: skip
_VIEWS = {"CLUSTER_ACTIVITY", "DOCS", "IMPORT_ERRORS", "JOBS", "PLUGINS", "PROVIDERS", "TRIGGERS", "WEBSITE"}
# Views of what belongs to no team in particular, so that it may tell of any: Airflow 3.4 asks about them.
_PLATFORM_VIEWS = {"AUDIT_LOGS_ALL", "IMPORT_ERRORS_ALL", "REPARSE_ALL"}

# A menu item is shown to whoever may list what it leads to.
_MENU = {
    "REQUIRED_ACTIONS": Resource("dag", entity="hitl_detail"),
    "ASSETS": Resource("asset"),
    "AUDIT_LOG": Resource("dag", entity="audit_log"),
    "CONFIG": Resource("configuration"),
    "CONNECTIONS": Resource("connection"),
    "DAGS": Resource("dag"),
    "DEADLINES": Resource("dag", entity="run"),
    "DOCS": Resource("view", id="docs"),
    "JOBS": Resource("view", id="jobs"),
    "PLUGINS": Resource("view", id="plugins"),
    "POOLS": Resource("pool"),
    "PROVIDERS": Resource("view", id="providers"),
    "VARIABLES": Resource("variable"),
    "XCOMS": Resource("dag", entity="xcom"),
}


def resource(type_: str, details: Any | None, entity: DagAccessEntity | None = None) -> Resource:
    """The resource that ``details`` (an Airflow ``*Details`` or ``None``) means."""
    kind = KINDS[type_]
    part = UNSET if entity is None else _name(entity, _ENTITIES)
    if details is None:
        return Resource(type_, entity=part)
    id_ = getattr(details, kind.id)
    return Resource(type_, kind.team(details), UNSET if id_ is None else str(id_), part)


def action(method: Any, about: Resource) -> str:
    """The action that a method means: reading no resource in particular is listing, adding a run is triggering."""
    name = _ACTIONS.get(str(method))
    if name is None:
        raise UnknownQuestionError(f"the method {str(method)!r} is unknown")
    if name == "read" and about.id is UNSET:
        return "list"
    if name == "create" and about.entity == "run":
        return "trigger"
    return name


def view(access_view: AccessView) -> Resource:
    """The resource of a read-only view of the installation."""
    name = _name(access_view, _VIEWS | _PLATFORM_VIEWS)
    return Resource("platform_view" if access_view.name in _PLATFORM_VIEWS else "view", id=name)


def every_view() -> list[Resource]:
    """All of them."""
    return [
        *(Resource("view", id=name.lower()) for name in sorted(_VIEWS)),
        *(Resource("platform_view", id=name.lower()) for name in sorted(_PLATFORM_VIEWS)),
    ]


def route(method: str, path: str) -> tuple[str, Resource]:
    """Action and resource of a route that this version does not know: ``GET /ui/new``."""
    return {**_ACTIONS, "PATCH": "update"}.get(method, "read"), Resource("route", id=f"{method} {path}")


def custom_view(method: Any, resource_name: str) -> tuple[str, Resource]:
    """Action and resource of a plugin's or the login manager's own page; its verbs are free, ``can_edit`` for one."""
    return _ACTIONS.get(str(method), str(method)), Resource("custom_view", id=str(resource_name))


def menu_item(item: MenuItem) -> Resource | None:
    """The target of a menu item, ``None`` if it is unknown."""
    return _MENU.get(item.name)


def _name(member: Any, known: set[str]) -> str:
    if getattr(member, "name", None) not in known:
        raise UnknownQuestionError(f"{type(member).__name__} {getattr(member, 'name', member)!r} is unknown")
    return str(member.name).lower()
