"""The words of questions: the known ones, and the likely meaning of an unknown one."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

from airflow_team_authz.opa.compile import shipped_policies

# As Airflow has it for team names.
TEAM_ID = re.compile(r"[a-zA-Z0-9_-]{3,50}")


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
