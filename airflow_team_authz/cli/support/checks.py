"""The checks of ``team-authz doctor``, one entry each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """The result of one check. ``help`` says what to do; ``microseconds`` is the time of a decision."""

    check: str
    ok: bool
    detail: str
    help: str = ""
    microseconds: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry as ``--output json`` prints it."""
        return asdict(self)
