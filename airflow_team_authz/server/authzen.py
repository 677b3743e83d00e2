"""The requests and answers of the AuthZEN Authorization API 1.0, and our questions: only the form differs.

https://openid.net/specs/authorization-api-1_0.html. The type of a resource is that of the commands (``connection``,
``dag.run``), and its ``properties`` have the other fields of policies/schemas/input.json. An empty ``id`` means no
resource in particular.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from airflow_team_authz.decision_log.parts import AUDITED
from airflow_team_authz.model import Context, Decision, Evaluation, Resource, Subject
from airflow_team_authz.review import ACTIONS, FREE_VERBS, fits, kind_of
from airflow_team_authz.server import ServerError

PATHS = {
    "access_evaluation_endpoint": "/access/v1/evaluation",
    "access_evaluations_endpoint": "/access/v1/evaluations",
    "search_subject_endpoint": "/access/v1/search/subject",
    "search_resource_endpoint": "/access/v1/search/resource",
    "search_action_endpoint": "/access/v1/search/action",
}
ALL, FIRST_DENY, FIRST_PERMIT = "execute_all", "deny_on_first_deny", "permit_on_first_permit"
MOST_EVALUATIONS = 1_000
_MOST_RESULTS = 1_000
# A resource of one of these has an owner, or is common. Without a word about it, nobody knows which.
OWNED = AUDITED
_SUBJECT = ("team_ids", "roles", "groups", "claims", "dag_id", "task_id", "run_id")
_RESOURCE = ("team_id", "name", "uri", "group", "delivery")
_CONTEXT = ("user_id", "assigned_users")

T = TypeVar("T")


class BadRequestError(ServerError):
    """A request is not of the form of the specification, or names a type or an action that no policy has."""


class Batch(NamedTuple):
    """The questions of a request. ``semantic`` is ``None`` for a single one, whose answer has another form."""

    questions: Sequence[Evaluation]
    semantic: str | None = None


class Page(NamedTuple):
    """The part of a search's results that a request is about. ``request`` is a digest of the rest of the request."""

    start: int
    limit: int
    request: str


def identification(request: Request) -> dict[str, str]:
    """The caller's name of the request, which belongs to the answer too."""
    sent = request.headers.get("X-Request-ID")
    return {} if sent is None else {"X-Request-ID": sent}


# Requests


def body(content: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object of a request."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise BadRequestError("the Content-Type has to be application/json")
    try:
        found = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_number)
        # Half a surrogate pair is in no Unicode text.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, _AmbiguousError) else "not valid JSON"
        raise BadRequestError(f"the body cannot be read: {why}") from None
    if not isinstance(found, dict):
        raise BadRequestError("the body has to be a JSON object")
    return found


class _AmbiguousError(ValueError):
    """JSON that two readers may understand differently."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise _AmbiguousError("an object has a member twice")
    return found


def _no_number(name: str) -> Any:
    raise _AmbiguousError(f"{name} is not a number of JSON")


class _Parts:
    """The parts of a request's questions. A part that many questions share is read once, however large it is."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, bool, int], Any] = {}

    def once(self, name: str, sent: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """The value of ``read``, which looks at the member of this name only. The request holds that member."""
        key = name, name in sent, id(sent.get(name))
        if key not in self._read:
            self._read[key] = read(sent)
        found: T = self._read[key]
        return found


def evaluation(sent: Mapping[str, Any], parts: _Parts | None = None) -> Evaluation:
    """The question of an Access Evaluation request."""
    once = (parts or _Parts()).once
    resource = once("resource", sent, _resource)
    action = _action(sent, resource)
    return Evaluation(once("subject", sent, _subject), action, resource, once("context", sent, _context))


def evaluations(sent: Mapping[str, Any]) -> Batch:
    """The questions of an Access Evaluations request: each has its own members, or those of the request."""
    listed = sent.get("evaluations", [])
    semantic = _member(sent, "options", dict, {}).get("evaluations_semantic", ALL)
    if semantic not in (ALL, FIRST_DENY, FIRST_PERMIT):
        raise BadRequestError(f"options.evaluations_semantic has to be {ALL}, {FIRST_DENY} or {FIRST_PERMIT}")
    if not isinstance(listed, list):
        raise BadRequestError("evaluations has to be an array")
    if not listed:
        return Batch([evaluation(sent)])
    if len(listed) > MOST_EVALUATIONS:
        raise BadRequestError(f"evaluations has {len(listed):,} questions, and {MOST_EVALUATIONS:,} may come at once")
    defaults = {name: sent[name] for name in ("subject", "action", "resource", "context") if name in sent}
    questions, parts = list[Evaluation](), _Parts()
    for number, one in enumerate(listed):
        if not isinstance(one, dict):
            raise BadRequestError(f"evaluations[{number}] has to be an object")
        try:
            questions.append(evaluation(defaults | one, parts))
        except BadRequestError as error:
            raise BadRequestError(f"evaluations[{number}]: {error}") from None
    return Batch(questions, semantic)


def subject_search(sent: Mapping[str, Any]) -> tuple[str, Evaluation]:
    """The type of the wanted subjects, and the question with a subject in their place."""
    type_ = _text(_member(sent, "subject", dict), "subject.type", "type")
    placeholder = _converted({"type": type_, "id": "-"}, Subject, "subject")
    resource = _resource(sent)
    return type_, Evaluation(placeholder, _action(sent, resource), resource, _context(sent))


def resource_search(sent: Mapping[str, Any]) -> tuple[str | UnsetType | None, Evaluation]:
    """The owner of the wanted resources (``UNSET`` for any), and the question with a resource in their place."""
    kind, fields = _kind(sent)
    type_, _, entity = kind.partition(".")
    owner = {name: fields[name] for name in ("team_id",) if name in fields}
    wanted = _converted(owner | {"type": type_} | ({"entity": entity} if entity else {}), Resource, "resource")
    action = _action(sent, msgspec.structs.replace(wanted, id="-"))
    if action == "create":
        raise BadRequestError("create is about resources that do not exist yet, so no search finds them")
    return owner.get("team_id", UNSET), Evaluation(_subject(sent), action, wanted, _context(sent))


def action_search(sent: Mapping[str, Any]) -> tuple[Sequence[str], Evaluation]:
    """The possible actions, and the question with one of them."""
    resource = _resource(sent)
    actions = [action for action in ACTIONS[kind_of(resource)] if fits(action, resource)]
    return actions, Evaluation(_subject(sent), "", resource, _context(sent))


def page(sent: Mapping[str, Any]) -> Page:
    """The wanted page of a search."""
    said = _member(sent, "page", dict, {})
    limit = _member(said, "limit", int, None, "page.limit")
    token = _member(said, "token", str, "", "page.token")
    if isinstance(limit, bool) or (limit is not None and limit < 0):
        raise BadRequestError("page.limit has to be a number that is not negative")
    rest = {name: part for name, part in sent.items() if name != "page"}
    request = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]
    if not token:
        return Page(0, min(_MOST_RESULTS if limit is None else limit, _MOST_RESULTS), request)
    try:
        start, before, digest = json.loads(base64.urlsafe_b64decode(token.encode()))
        is_good = type(start) is int and start >= 0 and type(before) is int and 0 <= before <= _MOST_RESULTS
    except (ValueError, TypeError, RecursionError, binascii.Error):
        is_good = False
    if not is_good:
        raise BadRequestError("page.token is not a next_token of this server")
    if digest != request or limit not in (None, before):
        raise BadRequestError("page.token belongs to another request: only the token may change from page to page")
    return Page(start, before, request)


def _subject(sent: Mapping[str, Any]) -> Subject:
    said = _member(sent, "subject", dict)
    named = {"type": _text(said, "subject.type", "type"), "id": _text(said, "subject.id", "id")}
    if not named["id"]:
        raise BadRequestError("subject.id is empty")
    return _converted(_known(said, "subject", _SUBJECT) | named, Subject, "subject")


def _resource(sent: Mapping[str, Any]) -> Resource:
    kind, fields = _kind(sent)
    type_, _, entity = kind.partition(".")
    named: dict[str, Any] = {"type": type_}
    if id_ := _text(sent["resource"], "resource.id", "id"):
        named["id"] = id_
    if type_ in OWNED and "team_id" not in fields:
        raise BadRequestError("resource.properties.team_id is missing: name the owner, or null for a common resource")
    if entity:
        named["entity"] = entity
    return _converted(fields | named, Resource, "resource")


def _kind(sent: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    said = _member(sent, "resource", dict)
    kind = _text(said, "resource.type", "type")
    if kind not in ACTIONS:
        raise BadRequestError(f"resource.type {kind!r:.60} is not known: the types are {', '.join(ACTIONS)}")
    return kind, _known(said, "resource", _RESOURCE)


def _action(sent: Mapping[str, Any], resource: Resource) -> str:
    name = _text(_member(sent, "action", dict), "action.name", "name")
    kind = kind_of(resource)
    if not name or (name not in ACTIONS[kind] and resource.type not in FREE_VERBS):
        raise BadRequestError(f"action.name {name!r:.60} is not known for {kind}: {', '.join(ACTIONS[kind])}")
    if not fits(name, resource):
        wrong = "list is about no resource in particular, so resource.id has to be empty"
        raise BadRequestError(
            wrong if resource.id is not UNSET else f"resource.id is empty: {name} is about one resource"
        )
    return name


def _context(sent: Mapping[str, Any]) -> Context | UnsetType:
    said = _member(sent, "context", dict, {})
    known = {name: said[name] for name in _CONTEXT if name in said}
    return _converted(known, Context, "context") if known else UNSET


def _known(said: Mapping[str, Any], name: str, fields: Sequence[str]) -> dict[str, Any]:
    """The properties that a policy's question has. The specification wants others to be ignored."""
    properties = _member(said, "properties", dict, {}, f"{name}.properties")
    return {field: properties[field] for field in fields if field in properties}


_REQUIRED: Any = object()


def _member(said: Mapping[str, Any], name: str, kind: type[Any], default: Any = _REQUIRED, path: str = "") -> Any:
    if name not in said and default is not _REQUIRED:
        return default
    if name not in said:
        raise BadRequestError(f"{path or name} is missing")
    if not isinstance(said[name], kind):
        raise BadRequestError(f"{path or name} has to be {_WORDS[kind]}")
    return said[name]


_WORDS: dict[type, str] = {dict: "an object", str: "a string", int: "an integer"}


def _text(said: Mapping[str, Any], path: str, name: str) -> str:
    found: str = _member(said, name, str, path=path)
    return found


def _converted(fields: Mapping[str, Any], kind: type[T], name: str) -> T:
    try:
        return msgspec.convert(fields, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"{name}: {error}") from None


# Answers


def as_decision(decision: Decision, revision: str) -> dict[str, Any]:
    """A Decision of the specification. Its context has the reasons and the layer of the policy."""
    context = {"reasons": list(decision.reasons), "layer": decision.layer, "revision": revision}
    return {"decision": decision.allow is True, "context": context}


def as_subject(subject: Subject, with_properties: bool) -> dict[str, Any]:
    """A Subject of the specification."""
    return _as_entity(subject, subject.type, with_properties)


def as_resource(resource: Resource) -> dict[str, Any]:
    """A Resource of the specification."""
    return _as_entity(resource, kind_of(resource), with_properties=True)


def _as_entity(entity: Subject | Resource, kind: str, with_properties: bool) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(entity)
    properties = {name: value for name, value in fields.items() if name not in {"type", "id", "entity"}}
    named = {"type": kind, "id": fields.get("id", "")}
    return named | ({"properties": properties} if with_properties and properties else {})


def as_results(found: Sequence[dict[str, Any]], wanted: Page, not_covered: Sequence[str]) -> dict[str, Any]:
    """The answer to a search: a page of the results, and the limits of the search."""
    shown, end = found[wanted.start : wanted.start + wanted.limit], wanted.start + wanted.limit
    token = json.dumps([end, wanted.limit, wanted.request]).encode() if shown and end < len(found) else b""
    return {
        "page": {
            "next_token": base64.urlsafe_b64encode(token).decode(), "count": len(shown), "total": len(found),
        },
        "context": {"not_covered": list(not_covered)},
        "results": shown,
    }  # fmt: skip


def metadata(base: str) -> dict[str, str]:
    """The metadata of a decision point at this address."""
    return {"policy_decision_point": base} | {name: base + path for name, path in PATHS.items()}
