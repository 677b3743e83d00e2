"""Mistakes in a policy directory's data that no compiler sees: roles that nobody has defined, impossible team ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from airflow_team_authz.cli.checks import Check
from airflow_team_authz.cli.words import TEAM_ID, nearest
from airflow_team_authz.compile import shipped_policies

_DIRECTORY = "airflow/directory/data.json"
_ROLES = "airflow/roles/data.json"


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    team_id: str | None
    role: str | msgspec.UnsetType = msgspec.UNSET


class _Directory(msgspec.Struct, forbid_unknown_fields=True):
    groups: dict[str, list[_Entry]] = {}
    roles: dict[str, list[_Entry]] = {}


class _Roles(msgspec.Struct):
    includes: dict[str, list[str]] = {}


def directory_checks(policy: Path) -> Iterator[Check]:
    """One failed check a mistake, with its file and place; one good check if there is none."""
    help_ = f"correct {policy / _DIRECTORY}"
    try:
        directory = _decode(policy / _DIRECTORY, _Directory)
        roles = _decode(_roles_file(policy), _Roles)
    except ValueError as error:
        yield Check("directory", False, str(error), help_)
        return
    if directory is None:
        yaml = any((policy / _DIRECTORY).with_suffix(suffix).exists() for suffix in (".yaml", ".yml"))
        why = "is YAML, which is not looked into" if yaml else "does not exist: groups give no team and no role"
        yield Check("directory", True, f"{_DIRECTORY} {why}")
        return
    problems = [*_problems(directory, list(roles.includes) if roles else None)]
    yield from (Check("directory", False, f"{_DIRECTORY}: {problem}", help_) for problem in problems)
    if not problems:
        yield Check(
            "directory", True, f"{len(directory.groups)} groups and {len(directory.roles)} roles lead somewhere"
        )


def _problems(directory: _Directory, known: list[str] | None) -> Iterator[str]:
    for kind, table in (("groups", directory.groups), ("roles", directory.roles)):
        for name, entries in table.items():
            for i, entry in enumerate(entries):
                yield from _entry_problems(entry, f"$.{kind}[{name!r}][{i}]", known)


def _entry_problems(entry: _Entry, place: str, known: list[str] | None) -> Iterator[str]:
    if entry.team_id is not None and not TEAM_ID.fullmatch(entry.team_id):
        yield f"{entry.team_id!r} is no team id (3 to 50 of a-z, A-Z, 0-9, _ and -) - at `{place}.team_id`"
    if known is not None and isinstance(entry.role, str) and entry.role not in known:
        yield f"the role {entry.role!r} is unknown - at `{place}.role`: {nearest(entry.role, known)}"
    if entry.team_id is None and entry.role is msgspec.UNSET:
        yield f"it gives neither a team nor a role - at `{place}`"


def _roles_file(policy: Path) -> Path:
    own = policy / _ROLES
    return own if own.parent.exists() else shipped_policies() / _ROLES


def _decode(file: Path, type_: Any) -> Any:
    """Content of a data file, ``None`` if it does not exist; ``ValueError`` with its place if it is wrong."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=type_)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{file}: {error}") from None
