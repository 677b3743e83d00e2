"""The parts of a record for readers who may not see the whole: parts about some resources, and what was told already.

A reader may see a resource of a record who may read its audit log. This module knows neither policy nor place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_team_authz.model import Resource, code_of

# Which resources have an audit log, see the policy's schema of questions.
AUDITED = frozenset({"asset", "asset_alias", "connection", "dag", "pool", "variable"})
_OF_SUBJECT = ("type", "id", "dag_id", "task_id", "run_id")
# Doors whose answers have the message of an error.
_TELLING = frozenset({"tasks", "users"})


def audited(record: Mapping[str, Any]) -> Iterator[tuple[int, tuple[Resource, ...]]]:
    """The place of each resource among those of a record, with the audit logs that its readers may read.

    The first is its own. What an asset event would start is another's, and that there is such a Dag too.
    """
    input_ = record.get("input") or {}
    for place, one in enumerate(input_.get("resources") or [input_.get("resource")]):
        if not isinstance(one, dict) or one.get("type") not in AUDITED or not isinstance(one.get("team_id"), str):
            continue
        logs: tuple[Resource, ...] = (_log(one["type"], one["team_id"], one.get("id")),)
        if "delivery" in one:
            started = one["delivery"] if isinstance(one["delivery"], dict) else {}
            if not isinstance(started.get("team_id"), str):
                # Common, or of a form that nobody knows.
                continue
            logs = (*logs, _log("dag", started["team_id"], started.get("dag_id")))
        yield place, logs


def _log(type_: str, team_id: str, id_: object) -> Resource:
    log = Resource(type_, team_id, entity="audit_log")
    return Resource(type_, team_id, id_, "audit_log") if isinstance(id_, str) else log


def in_order(resources: Iterable[Resource]) -> list[Resource]:
    """Each of them once, for a question that is the same for the same resources."""
    return sorted(set(resources), key=lambda one: (one.type, str(one.team_id), str(one.id)))


def part(record: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """The part about the resources at these places: of the subject it has nothing but the name."""
    input_, result, custom = record["input"], record.get("result"), record["custom"]
    told: dict[str, Any] = {"subject": _named(input_.get("subject")), "action": input_.get("action")}
    if "resources" in input_:
        resources = input_["resources"]
        told["resources"] = [_without_consent(resources[place]) for place in places]
        is_same = isinstance(result, list) and len(result) == len(resources)
        result = [one for place, one in enumerate(result or ()) if place in places] if is_same else None
    else:
        told["resource"] = _without_consent(input_["resource"])
    found = {name: record[name] for name in ("decision_id", "timestamp", "path", "bundles") if name in record}
    found["input"] = told
    if result is not None and custom["outcome"] != "list":
        found["result"] = result
    found["custom"] = {name: custom[name] for name in ("outcome", "door", "codes", "repeated") if name in custom}
    if "resources" not in input_ and isinstance(candidate := custom.get("candidate"), dict):
        # How many more there were, and an engine's message, would tell about others.
        names = ("direction", "result", "revision", "decision_id")
        found["custom"]["candidate"] = {name: candidate[name] for name in names if name in candidate}
    if "resources" in input_ and custom["outcome"] in {"allow", "deny", "other"}:
        # Both would tell what was decided about the others.
        found["custom"] |= {"outcome": outcome_of(found), "codes": _codes(found.get("result"))}
    return found


def _named(subject: object) -> dict[str, Any]:
    said = subject if isinstance(subject, dict) else {}
    return {name: said[name] for name in _OF_SUBJECT if name in said}


def _without_consent(resource: Mapping[str, Any]) -> dict[str, Any]:
    """A resource without the teams that the other Dag's author consents to."""
    if not isinstance(started := resource.get("delivery"), dict):
        return dict(resource)
    return {**resource, "delivery": {name: started[name] for name in ("dag_id", "team_id", "asset") if name in started}}


def told_part(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part that the subject knows already: its request, and the answer. ``None`` if the answer told nothing.

    It has no resource: the subject may have named another than was asked about, such as a Dag by its backfill.
    """
    custom, error = record["custom"], record.get("error")
    outcome = custom["outcome"]
    is_told = (outcome == "deny" and "told" in custom) or (
        outcome == "error" and custom.get("door") in _TELLING and isinstance(error, dict)
    )
    if not is_told:
        return None
    found = {name: record[name] for name in ("decision_id", "timestamp") if name in record}
    found["input"] = {"subject": _named(record["input"].get("subject"))}
    found["custom"] = {name: custom[name] for name in ("outcome", "door", "told", "repeated") if name in custom}
    if isinstance(request := custom.get("request"), dict):
        found["custom"]["request"] = {name: request[name] for name in ("method", "path") if name in request}
    if outcome == "error":
        found["error"] = error
    return found


def outcome_of(record: Mapping[str, Any]) -> str:
    """The outcome, by the record's result or error."""
    if record.get("error"):
        return "error"
    result = record.get("result")
    if str(record.get("path", "")).endswith("/allowed"):
        return "list"
    told = [
        one.get("allow") if isinstance(one, dict) else None
        for one in (result if isinstance(result, list) else [result])
    ]
    return "other" if None in told else "allow" if all(one is True for one in told) else "deny"


def _codes(result: Any) -> list[str]:
    """Codes of the rules that a result names, see ``model.code_of``."""
    reasons = [one.get("reasons") for one in result or () if isinstance(one, dict)]
    said = [reason for told in reasons if isinstance(told, list) for reason in told if isinstance(reason, str)]
    return sorted({code for code in map(code_of, said) if code})
