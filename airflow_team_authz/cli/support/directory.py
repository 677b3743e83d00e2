"""Mistakes in a policy directory's data that no compiler sees: undefined roles, impossible team ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec

from airflow_team_authz.cli.support.checks import Check
from airflow_team_authz.cli.support.vocabulary import nearest
from airflow_team_authz.opa.compile import shipped_policies
from airflow_team_authz.team_ids import FORM, is_team_id

TEAM = "<team>"
ROLE = "<role>"
_DIRECTORY = "airflow/directory/data.json"
_ROLES = "airflow/roles/data.json"
_EXACT = "groups or roles"


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    team_id: str | None
    role: str | msgspec.UnsetType = msgspec.UNSET


class _Template(msgspec.Struct, forbid_unknown_fields=True):
    team_id: str
    role: str | msgspec.UnsetType = msgspec.UNSET


class _Directory(msgspec.Struct, forbid_unknown_fields=True):
    groups: dict[str, list[_Entry]] = {}
    roles: dict[str, list[_Entry]] = {}
    claims: dict[str, dict[str, list[_Entry]]] = {}
    group_patterns: dict[str, list[_Template]] = {}
    role_patterns: dict[str, list[_Template]] = {}


class _Roles(msgspec.Struct):
    includes: dict[str, list[str]] = {}


def directory_checks(policy: Path) -> Iterator[Check]:
    """A failed check for each mistake, with its file and place; one good check if there is none."""
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
        yield Check("directory", True, f"{_told(directory)} lead somewhere")


def group_path_checks(policy: Path) -> Iterator[Check]:
    """Whether the directory's groups can be those of Keycloak, which names all of them by their paths, or none."""
    try:
        directory = _decode(policy / _DIRECTORY, _Directory)
    except ValueError:
        return
    names = [*directory.groups, *directory.group_patterns] if directory is not None else []
    paths = [name for name in names if name.startswith("/")]
    if not names:
        return
    if len(paths) not in {0, len(names)}:
        told = (
            f"{_DIRECTORY} names some groups as paths ({paths[0]}) and others not, and Keycloak's mapper gives one only"
        )
        help_ = f'look at "Full group path" of the mapper, and correct {policy / _DIRECTORY}'
        yield Check("groups", False, told, help_)
        return
    how, switch = ("as paths", "on") if paths else ("without paths", "off")
    told = f'{_DIRECTORY} names groups {how}, so "Full group path" of Keycloak\'s mapper has to be {switch}'
    yield Check("groups", True, told)


def _told(directory: _Directory) -> str:
    counts = {
        "groups": len(directory.groups),
        "roles": len(directory.roles),
        "values of claims": sum(map(len, directory.claims.values())),
        "patterns": len(directory.group_patterns) + len(directory.role_patterns),
    }
    return " and ".join(f"{count} {what}" for what, count in counts.items() if count or what in {"groups", "roles"})


def _problems(directory: _Directory, known: list[str] | None) -> Iterator[str]:
    tables = {"$.groups": directory.groups, "$.roles": directory.roles}
    tables |= {f"$.claims[{claim!r}]": values for claim, values in directory.claims.items()}
    for table, names in tables.items():
        for name, entries in names.items():
            for i, entry in enumerate(entries):
                yield from _entry_problems(entry, f"{table}[{name!r}][{i}]", known)
    for table, patterns in (
        ("$.group_patterns", directory.group_patterns),
        ("$.role_patterns", directory.role_patterns),
    ):
        for pattern, templates in patterns.items():
            yield from _pattern_problems(pattern, f"{table}[{pattern!r}]", known)
            for i, template in enumerate(templates):
                yield from _template_problems(pattern, template, f"{table}[{pattern!r}][{i}]", known)


def _pattern_problems(pattern: str, place: str, known: list[str] | None) -> Iterator[str]:
    words = [word for word in (TEAM, ROLE) if word in pattern]
    if not words:
        yield f"the pattern has neither {TEAM} nor {ROLE} in it - at `{place}`: a name in full belongs into {_EXACT}"
    if any(pattern.count(word) > 1 for word in words):
        yield f"the pattern has the same word in it twice, which fits nothing - at `{place}`"
    if TEAM + ROLE in pattern or ROLE + TEAM in pattern:
        yield f"nothing is between {TEAM} and {ROLE}, so a name can be read in several ways - at `{place}`"
    elif len(words) == 2:
        for role, other in _confused(pattern, known or ()):
            yield (
                f"a name with the role {other!r} can be read as one with {role!r} too, and then says nothing "
                f"- at `{place}`: name such groups in full, in {_EXACT}"
            )


def _confused(pattern: str, roles: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Roles of which one, by the pattern, looks like the other with a longer team id."""
    _, between, _ = re.split(f"{TEAM}|{ROLE}", pattern, maxsplit=2)
    last = pattern.index(TEAM) < pattern.index(ROLE)
    for role, other in permutations(roles, 2):
        short, long = (between + role, between + other) if last else (role + between, other + between)
        more = long.removesuffix(short) if last else long.removeprefix(short)
        if more != long and re.fullmatch("[a-zA-Z0-9_-]+", more):
            yield role, other


def _template_problems(pattern: str, template: _Template, place: str, known: list[str] | None) -> Iterator[str]:
    if template.team_id == TEAM and TEAM not in pattern:
        yield f"the pattern has no {TEAM} in it - at `{place}.team_id`"
    if template.team_id != TEAM and not is_team_id(template.team_id):
        yield f"{template.team_id!r} is neither {TEAM} nor a team id - at `{place}.team_id`"
    if template.role == ROLE and ROLE not in pattern:
        yield f"the pattern has no {ROLE} in it - at `{place}.role`"
    if known is not None and isinstance(template.role, str) and template.role not in {*known, ROLE}:
        yield f"the role {template.role!r} is unknown - at `{place}.role`: {nearest(template.role, known)}"


def _entry_problems(entry: _Entry, place: str, known: list[str] | None) -> Iterator[str]:
    if entry.team_id is not None and not is_team_id(entry.team_id):
        yield f"{entry.team_id!r} is not a team id ({FORM}) - at `{place}.team_id`"
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
