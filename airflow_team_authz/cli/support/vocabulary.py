"""The words of questions: the known ones, and the likely meaning of an unknown one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from airflow_team_authz.cli.support.console import UserError
from airflow_team_authz.opa.compile import shipped_policies
from airflow_team_authz.team_ids import FORM, is_team_id


def resource_words(field: str) -> list[str]:
    """The values of ``resource.type`` or ``resource.entity``. They come from the schema, so Airflow is not imported."""
    schema = json.loads((shipped_policies() / "schemas" / "input.json").read_text(encoding="utf-8"))
    words: list[str] = schema["properties"]["resource"]["properties"][field]["enum"]
    return words


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a word that is unknown: what it may have meant."""
    words = list(known)
    near = difflib.get_close_matches(word.lower(), words, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(words)}"


def require_team_id(option: str, team: str | None) -> None:
    """``UserError`` if an option names what cannot be a team."""
    if team is not None and not is_team_id(team):
        raise UserError(f"{option}: {team!r} is not a team id, which is {FORM}")
