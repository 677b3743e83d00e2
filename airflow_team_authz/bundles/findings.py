"""What is wrong with a package, in a form for people, programs and code review."""

from __future__ import annotations

from typing import Any, NamedTuple


class Finding(NamedTuple):
    """One reason why a package may not be published, where it is, and the way out."""

    rule: str
    file: str
    line: int
    message: str
    help: str

    def as_json(self) -> dict[str, Any]:
        """The finding as ``--output json`` prints it."""
        return self._asdict()
