"""Findings about a package, in a form for people, programs and code review."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from airflow_team_authz.gate.rules import RULES
from airflow_team_authz.opa.errors import Problem

# Of a message, so that a report stays readable whatever somebody has called a rule.
_MAX_MESSAGE = 400
# The level of what may be meant as it is, which keeps nothing from being published.
WARNING = "warning"


class Finding(NamedTuple):
    """A reason not to publish a package, or a ``WARNING``: its place, and what to do.

    ``rule`` is the id of one of ``gate.rules.RULES``.
    """

    rule: str
    file: str
    line: int
    message: str
    help: str
    level: str = "error"

    def as_json(self) -> dict[str, Any]:
        """The finding as ``--output json`` prints it."""
        return self._asdict()


def of_opa(
    rule: str, problems: Sequence[Problem], otherwise: str, own: Collection[str] | None = None
) -> Iterator[Finding]:
    """OPA's problems as findings. A problem outside of ``own`` files becomes a finding of the file ``otherwise``."""
    for file, line, message, help_ in problems:
        if own is None or file in own:
            yield Finding(rule, file, line, message[:_MAX_MESSAGE], help_)
        else:
            yield Finding(rule, otherwise, 1, f"{file}:{line}: {message}"[:_MAX_MESSAGE], help_)


def sarif(findings: Iterable[Finding], files: Collection[str] = ()) -> dict[str, Any]:
    """The findings for code review: SARIF 2.1.0 (https://docs.oasis-open.org/sarif/sarif/v2.1.0/).

    ``files`` are those of the packages, if they are at hand.
    """
    listed = list(findings)
    names = sorted({found.rule for found in listed})
    results = [
        {
            "ruleId": found.rule,
            "ruleIndex": names.index(found.rule),
            "level": found.level,
            "message": {"text": f"{found.message}: {found.help}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(_file(found.file, files))},
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
        "runs": [
            {
                "tool": {"driver": {"name": "team-authz bundle check", "rules": [*map(_described, names)]}},
                "results": results,
            }
        ],
    }


def _described(name: str) -> dict[str, Any]:
    # A bundle server that is newer may have rules that are not known here.
    if (rule := RULES.get(name)) is None:
        return {"id": name}
    return {"id": name, "shortDescription": {"text": f"Refuses {rule.refuses}."}, "help": {"text": rule.help}}


def _file(place: str, files: Collection[str]) -> str:
    """Code review shows nothing at a directory: what is wrong with a whole package is shown at its first rules."""
    within = [name for name in files if name.startswith(f"{place}/")]
    if not within:
        name = place.rpartition("/")[2]
        return place if "." in name else f"{place}/{name}.rego"
    return min(within, key=lambda name: (not name.endswith(".rego"), name.endswith("_test.rego"), name))
