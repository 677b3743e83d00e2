"""What is wrong with a package, in a form for people, programs and code review."""

from __future__ import annotations

from collections.abc import Iterable
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


def sarif(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings for code review: SARIF 2.1.0 (https://docs.oasis-open.org/sarif/sarif/v2.1.0/)."""
    listed = list(findings)
    helps = {found.rule: found.help for found in reversed(listed)}
    rules = [{"id": rule, "help": {"text": text}} for rule, text in sorted(helps.items())]
    results = [
        {
            "ruleId": found.rule,
            "level": "error",
            "message": {"text": f"{found.message}: {found.help}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": found.file},
                        "region": {"startLine": max(found.line, 1)},
                    }
                }
            ],
        }
        for found in listed
    ]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": "team-authz bundle check", "rules": rules}}, "results": results}],
    }
