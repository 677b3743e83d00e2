"""Reviews a policy: who may do what, and the effect of a change. The engine decides, and this package asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Context, Decision, EngineError, Evaluations, Resource, Subject

_OF_ALL = ("list", "read", "create", "update", "delete")
_READ = ("list", "read")
# What Airflow asks of each type and part: ``questions.py``, the doors and their tables of routes.
ACTIONS: dict[str, tuple[str, ...]] = {
    "asset": _OF_ALL,
    "asset.audit_log": _READ,
    "asset.event": (*_READ, "create", "trigger"),
    "asset.state": ("read", "update", "delete"),
    "asset_alias": _READ,
    "asset_alias.audit_log": _READ,
    "asset_alias.event": _READ,
    "configuration": _READ,
    "connection": _OF_ALL,
    "connection.audit_log": _READ,
    "custom_view": (*_OF_ALL, "menu"),
    "dag": _OF_ALL,
    "dag.audit_log": _READ,
    "dag.code": _READ,
    "dag.dependencies": _READ,
    "dag.hitl_detail": (*_READ, "update"),
    "dag.import_error": _READ,
    "dag.run": (*_READ, "trigger", "update", "delete"),
    "dag.task": _READ,
    "dag.task_instance": (*_READ, "update", "delete"),
    "dag.task_logs": _READ,
    "dag.version": _READ,
    "dag.warning": _READ,
    "dag.xcom": _OF_ALL,
    "hitl_task": ("update",),
    "platform_view": ("read",),
    "pool": (*_OF_ALL, "use"),
    "pool.audit_log": _READ,
    "route": ("read", "create", "update", "delete"),
    "team": _OF_ALL,
    "variable": _OF_ALL,
    "variable.audit_log": _READ,
    "view": ("read",),
}
# Airflow asks these about no resource in particular.
_WITHOUT_ID = {"list"}
# Types whose verbs are free, since plugins have pages of their own.
FREE_VERBS = {"custom_view"}


class Who(NamedTuple):
    """Somebody, or a kind of people or machines: what to call it, and the subject that stands for it.

    ``kind`` is ``person``, ``group``, ``role``, ``claim``, ``task``, ``machine``, ``people`` or ``anybody``.
    """

    kind: str
    name: str
    subject: Subject


class Asked(NamedTuple):
    """Questions of one subject, in one context, about things of one owner: so one team's failing rules are an error."""

    who: Who
    action: str
    resources: Sequence[Resource]
    context: Context | UnsetType = UNSET

    def question(self, resources: Sequence[Resource] | None = None) -> Evaluations:
        """For the engine: all of them, or only these resources."""
        return Evaluations(
            self.who.subject, self.action, self.resources if resources is None else resources, self.context
        )


class Allowed(NamedTuple):
    """The rights of a subject, with reasons."""

    who: Who
    action: str
    resource: Resource
    decision: Decision


class NotDecidedError(Exception):
    """The policy fails about some questions; the message says about whose things."""


def kind_of(resource: Resource) -> str:
    """The type, and the part of it that is meant: ``dag.run``."""
    return resource.type if resource.entity is UNSET else f"{resource.type}.{resource.entity}"


def fits(action: str, resource: Resource) -> bool:
    """Whether Airflow asks about such a resource with an id, or about none in particular."""
    return action == "create" or (resource.id is UNSET) == (action in _WITHOUT_ID)


def allowed(point: DecisionPoint, asked: Asked) -> list[Resource]:
    """Which of the resources are allowed; ``NotDecidedError`` if the policy fails about their owner."""
    try:
        return point.allowed(asked.question(), aside=True)
    except EngineError as error:
        raise _failed(asked, error) from error


def decided(point: DecisionPoint, asked: Asked, resources: Sequence[Resource]) -> list[Decision]:
    """The decisions about some of the resources, with reasons; ``NotDecidedError`` as above."""
    try:
        return point.decide(asked.question(resources), aside=True).decisions if resources else []
    except EngineError as error:
        raise _failed(asked, error) from error


def permissions(point: DecisionPoint, questions: Iterator[Asked]) -> Iterator[Allowed]:
    """The allowed ones of many questions, each with its reason."""
    for asked in questions:
        found = allowed(point, asked)
        for resource, decision in zip(found, decided(point, asked, found), strict=True):
            # The same engine has answered both: an answer that is no yes here is none.
            if decision.allow is True:
                yield Allowed(asked.who, asked.action, resource, decision)


def _failed(asked: Asked, error: EngineError) -> NotDecidedError:
    owners = {resource.team_id for resource in asked.resources}
    of = " and ".join("what is common" if owner is None else f"team {owner}" for owner in sorted(owners, key=str))
    return NotDecidedError(f"no decision about {of} for {asked.who.name} ({asked.action}): {error}")
