"""Questions as people write them: it is strict, and reports every mistake with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from airflow_team_authz.cli.support.console import UserError
from airflow_team_authz.cli.support.vocabulary import nearest, resource_words
from airflow_team_authz.model import Evaluation, Resource


class _Owned(Resource, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Unlike in Python the owner has to be named: forgetting it would ask about what is common to all teams."""

    team_id: str | None


class _Question(Evaluation, frozen=True, forbid_unknown_fields=True):
    resource: _Owned


_decode = msgspec.json.Decoder(list[_Question] | _Question).decode


def read_questions(name: str, text: bytes) -> Sequence[Evaluation]:
    """The questions of a JSON document; ``UserError`` names the document and the place in it that is wrong."""
    try:
        decoded = _decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{name}: {error}") from None
    if not decoded:
        raise UserError(f"{name}: the list has no question")
    asked = decoded if isinstance(decoded, list) else [decoded]
    for i, question in enumerate(asked):
        for problem in _unknown_words(f"$[{i}]" if isinstance(decoded, list) else "$", question):
            raise UserError(f"{name}: {problem}")
    return asked


def _unknown_words(place: str, question: Evaluation) -> Iterator[str]:
    """A misspelt type would only be denied, and look like an answer."""
    for field in ("type", "entity"):
        word, known = getattr(question.resource, field), resource_words(field)
        if isinstance(word, str) and word not in known:
            yield f"{word!r} is unknown - at `{place}.resource.{field}`: {nearest(word, known)}"
