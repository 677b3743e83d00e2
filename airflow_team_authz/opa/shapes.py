"""The index of a directory's patterns: the patterns that begin and end alike, for a directory of thousands of them.

Without it a question tries each pattern. It is made when a policy is compiled, from data in JSON in the place that the
documentation names. A directory in any other form has no index, and each pattern is tried. Uses the standard library
only, as ``compile`` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# Where a bundle has it. Policies of people cannot have it: a bundle that is built has the index that is made here.
PATTERN_SHAPES = "airflow/pattern_shapes/data.json"

_DIRECTORY = "airflow/directory/data.json"
_TABLES = ("group_patterns", "role_patterns")
_WORD = re.compile("<(?:team|role)>")
# A package clause without quotes or comments in between.
_PACKAGE = re.compile(rb"package[ \t]+([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)[ \t]*(?:#.*)?")
_IN_DIRECTORY = b"airflow.directory."
# Trying as many as this takes no longer than looking for a name's beginnings and ends.
_FEW = 20


def pattern_shapes(files: Mapping[str, bytes]) -> bytes:
    """``PATTERN_SHAPES`` of a policy, by the paths of its files: JSON.

    For each table with many patterns: how many there are (``count``), the lengths of what comes before the first and
    after the last word that stands for others (``lengths``, in characters), the patterns by these texts (``patterns``),
    and the teams that a pattern means whichever team a name has (``fixed``).
    """
    tables = (
        {}
        if any(_adds_to_directory(name, text) for name, text in files.items())
        else _tables(files.get(_DIRECTORY, b"{}"))
    )
    index = {name: _index(patterns) for name, patterns in tables.items() if len(patterns) > _FEW}
    return json.dumps(index, separators=(",", ":"), sort_keys=True).encode()


def _adds_to_directory(name: str, text: bytes) -> bool:
    """Whether another file than the directory's own may say something of the directory, as data or by a rule."""
    if name == _DIRECTORY or name.startswith(("airflow/authz/", "teams/")):
        # Nobody else's rules may be there, and a team's declare nothing but its package: ``compile.check_ownership``.
        return False
    if name.endswith(".rego") and _may_declare_directory(text):
        return True
    return name.startswith("airflow/directory/") or name in {
        f"{folder}data.{form}" for folder in ("", "airflow/") for form in ("json", "yaml", "yml")
    }


def _may_declare_directory(rego: bytes) -> bool:
    """Whether the package of a file may be the directory, or what is not plain enough to tell."""
    lines = (line.strip() for line in rego.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    package = _PACKAGE.fullmatch(first)
    return (
        package is None or b"airflow.directory.".startswith(package[1] + b".") or package[1].startswith(_IN_DIRECTORY)
    )


def _tables(directory: bytes) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(directory)
        return {table: known[table] for table in _TABLES if isinstance(known.get(table), dict)}
    except (ValueError, AttributeError, RecursionError):
        # The compiler says what is wrong with it.
        return {}


def _index(patterns: Mapping[str, Any]) -> dict[str, Any]:
    by_shape: dict[str, dict[str, list[str]]] = {}
    lengths: set[tuple[int, int]] = set()
    fixed: set[str] = set()
    for pattern, templates in patterns.items():
        before, after = _shape(pattern)
        by_shape.setdefault(before, {}).setdefault(after, []).append(pattern)
        lengths.add((len(before), len(after)))
        fixed |= _fixed(templates)
    return {
        "count": len(patterns),
        "fixed": dict.fromkeys(sorted(fixed), True),
        "lengths": sorted(lengths),
        "patterns": by_shape,
    }


def _shape(pattern: str) -> tuple[str, str]:
    """What comes before the first word that stands for others, and after the last; all of it if there is none."""
    words = list(_WORD.finditer(pattern))
    return (pattern[: words[0].start()], pattern[words[-1].end() :]) if words else (pattern, "")


def _fixed(templates: Any) -> set[str]:
    """The teams that a pattern means whichever team a name has."""
    entries = templates if isinstance(templates, list) else []
    teams = [entry.get("team_id") for entry in entries if isinstance(entry, dict)]
    return {team for team in teams if isinstance(team, str) and not _WORD.fullmatch(team)}
