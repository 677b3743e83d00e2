"""Limits how much a refusal reveals about owner and existence of a resource, by ``[team_authz] refusals``.

Who may see nothing of a type gets the same answer about what another team has as about what does not exist. With
``conceal`` so does everybody who may not read the very thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastapi import HTTPException
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from airflow_team_authz.doors.decision_point import records_are_kept, settings
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Decision, Evaluations, Resource

# Airflow mounts the auth manager's application there.
_PAGE = "/auth/decisions"


class VisibleReason(NamedTuple):
    """The part of a refusal that the subject may see. ``as_missing``: the answer is that about a missing resource.

    A door that cannot answer like that tells the reason.
    """

    reason: str
    as_missing: bool = False


def visible_reason(
    policy: DecisionPoint,
    question: Evaluations,
    resource: Resource,
    refused: Decision,
    missing: Resource | UnsetType | None = UNSET,
) -> VisibleReason:
    """The visible part of a refusal of one resource of the question. Raises ``EngineError`` and ``SettingsError``.

    ``missing`` is what would be asked about if the resource did not exist, ``None`` if nothing would be; as a rule,
    something common of that name.
    """
    # A team is known by its name alone, so a question about one does not tell whether it is there.
    if resource.team_id is None or resource.type == "team" or _may_know(policy, question, resource):
        return VisibleReason("; ".join(refused.reasons))
    if resource.id is UNSET:
        # Who asks has named the team; its rules have nothing to tell.
        return VisibleReason(
            "; ".join(refused.reasons) if refused.layer == "default" else _without_reason(question, resource)
        )
    if missing is None:
        return VisibleReason(_without_reason(question, resource), as_missing=True)
    asked = replace(resource, team_id=None) if missing is UNSET else missing
    (said,) = policy.decide(replace(question, resources=[asked]), aside=True).decisions
    if said.allow is True:
        return VisibleReason(_without_reason(question, resource), as_missing=True)
    return VisibleReason("; ".join(said.reasons))


def told_id(decision_id: str) -> str:
    """The record's id for an answer, if there is a record: with it, an administrator finds the full reason."""
    return f" (decision {decision_id})" if decision_id else ""


def told_record(decision_id: str) -> str:
    """The same for an answer to a person, with the address of the record."""
    return told_id(decision_id) + where_to_look(decision_id)


def where_to_look(*decision_ids: str) -> str:
    """The end of an answer to a person: the address of the record, if there is one and a page shows it.

    ``[api] base_url`` is where Airflow is. Raises ``SettingsError``, but not without a record.
    """
    recorded = sorted(filter(None, decision_ids))
    if not recorded or not records_are_kept():
        return ""
    from airflow.configuration import conf

    selected = f"id={recorded[0]}" if len(set(recorded)) == 1 else "denied=true"
    return f". See {conf.get('api', 'base_url', fallback='').rstrip('/')}{_PAGE}?{selected}"


def no_decision(error: Exception) -> HTTPException:
    """The answer to a person's request about which nothing can be decided."""
    told = told_record(getattr(error, "decision_id", ""))
    return HTTPException(503, f"No decision can be had about this request. {error}{told}")


def _may_know(policy: DecisionPoint, question: Evaluations, resource: Resource) -> bool:
    return any(
        policy.allowed(replace(question, action=action, resources=resources), aside=True)
        for action, resources in _signs(resource)
    )


def conceals() -> bool:
    """Whether what is another team's is answered as if it did not exist. Raises ``SettingsError``."""
    return settings().refusals == "conceal"


def _signs(resource: Resource) -> Iterator[tuple[str, list[Resource]]]:
    """Questions of which one allowed resource is enough for knowing about this one."""
    itself = [resource, replace(resource, entity=UNSET)]
    if conceals():
        yield "read", itself
    else:
        yield "read", [*itself, replace(resource, team_id=None)]
        yield "list", [Resource(resource.type, None, entity=resource.entity)]


def _without_reason(question: Evaluations, resource: Resource) -> str:
    names = (str(part) for part in (resource.id, resource.entity) if part is not UNSET)
    return " ".join((question.subject.type, question.subject.id, "may not", question.action, resource.type, *names))
