"""The form of a team's id: Airflow's own rule for team names, as a pattern and as a sentence."""

from __future__ import annotations

import re

PATTERN = "[a-zA-Z0-9_-]{3,50}"
FORM = "3 to 50 of a-z, A-Z, 0-9, _ and -"
_WHOLE = re.compile(PATTERN)


def is_team_id(text: str) -> bool:
    """Whether a team can have this id."""
    return _WHOLE.fullmatch(text) is not None
