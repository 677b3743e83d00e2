"""Finds the names in the sources of a policy: ids, groups, roles, claims, teams, and the fields that rules read.

Nothing here decides. A name that is overlooked only leaves a question out, and one too many only asks one more.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from airflow_team_authz.opa.archive import BundleRefusedError, unpack
from airflow_team_authz.opa.compile import (
    CompileError,
    find_opa,
    is_shipped,
    merged,
    policy_files,
    run_opa,
    scratch_directory,
)

PLATFORM = ""
# Used by who looks at a package as a whole.
EVERYTHING = "*"
_SUBJECT = ("id", "team_ids", "groups", "roles", "claims", "dag_id", "task_id", "run_id")
_RESOURCE = ("id", "name", "uri", "group", "delivery")
_WHOLE = {
    (): {*(f"subject.{name}" for name in _SUBJECT), *(f"resource.{name}" for name in _RESOURCE)},
    ("subject",): {f"subject.{name}" for name in _SUBJECT},
    ("resource",): {f"resource.{name}" for name in _RESOURCE},
}
# What the shipped policy makes of a subject, and what it is made from.
_STANDING = {
    "team_ids": {"subject.team_ids"},
    "own_team_ids": {"subject.team_ids"},
    "team_roles": {"subject.team_ids", "subject.roles"},
    "platform_roles": {"subject.roles"},
    "common_roles": {"subject.roles"},
    "entries": {"subject.groups", "subject.roles", "subject.claims"},
}
_STANDING_PATH = ("data", "airflow", "authz", "standing")
_ENTRIES = {"allow", "deny"}
_SAME = {("eq",), ("equal",), ("internal", "member_2")}
# Built-in functions that take more than a name in full: what fits is found only if it is named, too.
_PATTERNS = {"regex", "glob"}
# Functions that take a name as it is written. What others make of a name need not be one that is tried.
_TWO_NAMES = "two names of one person"
_GROUP = "group"
_PLAIN = {
    "and", "assign", "eq", "equal", "internal.member_2", "internal.member_3", "minus", "neq", "object.get",
    "object.keys", "or",
}  # fmt: skip


class Names:
    """Names in one owner's package, or in the platform's part: values by field of the question (``resource.id``).

    A value of ``*`` is one that nobody has compared with anything: it may be for any field that the rules look at.
    """

    def __init__(self) -> None:
        self.values: dict[str, set[str]] = defaultdict(set)
        self.fields: set[str] = set()
        self.patterns = False
        # Types of which a resource has to be for the rule to apply; empty if that cannot be said.
        self.types: set[str] = set()
        # Helpers and data of the same package that are used.
        self.uses: set[str] = set()

    def of(self, field: str) -> set[str]:
        """The values that this field is to be tried with."""
        looked_at = any(one == field or one.startswith(f"{field}.") for one in self.fields)
        return self.values[field] | (self.values["*"] if looked_at else set())

    def claims(self) -> dict[str, set[str]]:
        """Values by the name of their claim."""
        prefix = "subject.claims."
        named = {field.removeprefix(prefix) for field in self.fields if field.startswith(prefix)}
        return {name: self.values[prefix + name] | self.values["*"] for name in sorted(named)}

    def add(self, other: Names) -> None:
        """These names and those of the other one."""
        self.fields |= other.fields
        self.uses |= other.uses
        self.patterns |= other.patterns
        for field, values in other.values.items():
            self.values[field] |= values


# A rule: the path of its Rego package, and its syntax tree as JSON.
RuleText = tuple[tuple[str, ...], str]


class _Looked(NamedTuple):
    """What a rule calls and declares, and for each of its conditions the fields and the helpers that it looks at."""

    name: str
    called: set[str]
    conditions: list[tuple[set[str], set[str]]]


class Package:
    """Names of a package: in each entry rule, and in the helpers and data that it uses."""

    def __init__(self) -> None:
        self.rules: list[Names] = []
        self.helpers: dict[str, Names] = defaultdict(Names)
        self._looked: dict[RuleText, _Looked] = {}

    def note(self, path: tuple[str, ...], rule: dict[str, Any], looked: _Looked) -> None:
        """Keep what a rule of the Rego package at this path looks at."""
        self._looked[path, json.dumps(rule, sort_keys=True)] = looked

    @property
    def used(self) -> set[RuleText]:
        """Rules that others may use: what they change, nobody sees in the others."""
        return {rule for rule, looked in self._looked.items() if looked.name not in _ENTRIES}

    @property
    def unclear(self) -> dict[RuleText, set[str]]:
        """By what rules do more than the names show that are tried: functions, or two names of one person."""
        found = {}
        declared = {(path, looked.name) for (path, _), looked in self._looked.items()}
        for (path, rule), looked in self._looked.items():
            # What the Rego package itself declares is looked at where it is declared.
            why = {name for name in looked.called - _PLAIN if (path, name) not in declared}
            if self._needs_two_names(looked):
                why.add(_TWO_NAMES)
            if why:
                found[path, rule] = why
        return found

    def _needs_two_names(self, looked: _Looked) -> bool:
        """Whether a group or a claim, and something else of the subject, have to be right: two conditions say so."""
        about = [{_about(field) for field in self._reached(*condition)} - {""} for condition in looked.conditions]
        about = [names for names in about if names]
        return len(about) > 1 and any(_GROUP in names for names in about)

    def _reached(self, fields: set[str], uses: set[str]) -> set[str]:
        whole = Names()
        whole.fields, whole.uses = {*fields}, {*uses}
        return self._with_helpers(whole).fields

    def together(self) -> list[Names]:
        """Names of each entry rule, with those of the helpers and data that it uses."""
        return [self._with_helpers(rule) for rule in self.rules]

    def _with_helpers(self, rule: Names) -> Names:
        found, new = joined(rule), {""}
        found.types = rule.types
        reached: set[str] = set()
        while new:
            reached |= new
            new = (set(self.helpers) if EVERYTHING in found.uses else found.uses & set(self.helpers)) - reached
            for name in new:
                found.add(self.helpers[name])
        return found


def joined(*parts: Names) -> Names:
    """All of them as one."""
    whole = Names()
    for part in parts:
        whole.add(part)
    return whole


class Sources:
    """The files of a policy, and what they name: ``packages`` by team, the platform's part under ``PLATFORM``."""

    def __init__(self, files: Mapping[str, bytes], opa: str | None = None) -> None:
        self.files = files
        whole = merged(files)
        tree = _tree(whole)
        self.roles: dict[str, Any] = tree.get("airflow", {}).get("roles", {})
        self.directory: dict[str, Any] = tree.get("airflow", {}).get("directory", {})
        self.packages: dict[str, Package] = defaultdict(Package)
        rego = sorted(
            name
            for name in whole
            if name.endswith(".rego") and not is_shipped(name) and not name.endswith("_test.rego")
        )
        for name, parsed in zip(rego, _parsed(whole, rego, opa), strict=True):
            _Reading(self.packages[_owner(name)], parsed).read()
        teams = tree.pop("teams", {})
        for owner, own in {PLATFORM: tree.get("airflow", {}).get("site", {}), **teams}.items():
            for key, value in own.items() if isinstance(own, dict) else ():
                self.packages[owner].helpers[key].values["*"] |= set(_texts(value))

    @property
    def teams(self) -> set[str]:
        """Every team that is named as one."""
        entries = (entry for _, _, entry in self.entries())
        teams = {name for name in self.packages if name != PLATFORM} | {
            str(e["team_id"]) for e in entries if e.get("team_id")
        }
        for names in (names for package in self.packages.values() for names in package.together()):
            teams |= names.values["resource.team_id"] | names.values["subject.team_ids"]
        return teams

    def entries(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Table, name and entry of each name that the directory has in full."""
        return directory_entries(self.directory)

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Table and pattern: ``groups``, ``airflow-<team>-<role>``."""
        for table in ("groups", "roles"):
            yield from ((table, pattern) for pattern in self.directory.get(f"{table.removesuffix('s')}_patterns") or {})


def directory_entries(directory: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Table, name and entry of each name that a directory has in full: ``groups``, ``claims.department``, …"""
    tables = {table: directory.get(table) or {} for table in ("groups", "roles")}
    tables |= {f"claims.{claim}": values for claim, values in (directory.get("claims") or {}).items()}
    for table, names in tables.items():
        for name, entries in names.items():
            yield from ((table, name, entry) for entry in entries)


def read_sources(policy: Path, opa: str | None = None) -> Sources:
    """The sources of a policy directory, or those that a bundle has with it.

    ``CompileError`` if they cannot be read.
    """
    return Sources(read_policy(policy), opa)


def read_policy(policy: Path) -> Mapping[str, bytes]:
    """The files of a policy directory that an engine loads, or those that a bundle has with it, by path.

    ``CompileError`` if they cannot be read.
    """
    try:
        return _files(policy)
    except (OSError, ValueError, BundleRefusedError) as error:
        raise CompileError(f"the policy {policy} cannot be read: {error}") from None


def _files(policy: Path) -> Mapping[str, bytes]:
    if policy.is_dir():
        return {path.relative_to(policy).as_posix(): path.read_bytes() for path in policy_files(policy)}
    held = unpack(policy.read_bytes())
    files = {name: text for name, text in held.items() if name.endswith(".rego") and not is_shipped(name)}
    data = json.loads(held.get("data.json", b"{}"))
    of_airflow = data.get("airflow", {})
    for part in sorted(set(of_airflow) - {"authz"}):
        files[f"airflow/{part}/data.json"] = json.dumps(of_airflow[part]).encode()
    for team, own in sorted(data.get("teams", {}).items()):
        files[f"teams/{team}/data.json"] = json.dumps(own).encode()
    return files


def _tree(files: Mapping[str, bytes]) -> dict[str, Any]:
    """All data, each file at the path of its directory, as OPA loads it."""
    tree: dict[str, Any] = {}
    for name in sorted(files):
        if name.endswith("data.json"):
            data = json.loads(files[name])
            for part in reversed(name.split("/")[:-1]):
                data = {part: data}
            tree = _joined(tree, data)
    return tree


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {key: _joined(one[key], value) if key in one else value for key, value in other.items()}
    return other


def _owner(name: str) -> str:
    parts = name.split("/")
    return parts[1] if parts[0] == "teams" and len(parts) > 2 else PLATFORM


def _parsed(files: Mapping[str, bytes], names: list[str], opa: str | None) -> list[dict[str, Any]]:
    if not names:
        return []
    program = find_opa(opa)
    with scratch_directory() as directory, ThreadPoolExecutor(4) as pool:
        for number, name in enumerate(names):
            (Path(directory) / f"{number}.rego").write_bytes(files[name])
        return list(pool.map(partial(_parse, program, Path(directory)), range(len(names))))


def _parse(opa: str, place: Path, number: int) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(run_opa([opa, "parse", "--format", "json", f"{number}.rego"], place))
    return tree


def _texts(value: Any) -> Iterator[str]:
    """Every text in data: also what is a key."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


class _Reading:
    """Collects from the syntax tree of one file what it names."""

    def __init__(self, package: Package, tree: dict[str, Any]) -> None:
        self._package = package
        self._names = Names()
        self._tree = tree
        self._own = tuple(str(part["value"]) for part in tree["package"]["path"])
        self._aliases: dict[str, tuple[str, ...]] = {}

    def read(self) -> None:
        for node in self._tree.get("imports") or []:
            path = _path(node["path"]["value"])
            self._aliases[node.get("alias") or path[-1]] = path
        for rule in self._tree.get("rules") or []:
            name = str(rule["head"].get("name") or rule["head"]["ref"][0]["value"])
            if name in _ENTRIES:
                self._names = Names()
                self._package.rules.append(self._names)
            else:
                self._names = self._package.helpers[name]
            self._rule(rule)
            looked = _Looked(name, set(_functions(rule)), [self._looked_at(part) for part in _conditions(rule)])
            self._package.note(self._own, rule, looked)
            if name in _ENTRIES and "else" not in rule:
                for part in rule.get("body") or []:
                    self._names.types |= self._types(part)

    def _looked_at(self, part: dict[str, Any]) -> tuple[set[str], set[str]]:
        """The fields that a condition is about, and the helpers that it uses."""
        fields: set[str] = set()
        before, self._names = self._names, Names()
        self._walk(part, fields, set())
        uses, self._names = self._names.uses, before
        for inner in _conditions(part):
            of_inner, used = self._looked_at(inner)
            fields |= of_inner
            uses |= used
        return fields, uses

    def _types(self, part: dict[str, Any]) -> set[str]:
        """The types that a condition of a rule is about: of one that is, or is in, what the condition spells out."""
        terms = part.get("terms")
        if (
            not isinstance(terms, list)
            or "with" in part
            or part.get("negated")
            or _path(terms[0]["value"]) not in _SAME
        ):
            return set()
        fields: set[str] = set()
        texts: set[str] = set()
        self._walk(terms[1:], fields, texts)
        return texts if fields == {"resource.type"} else set()

    def _rule(self, rule: dict[str, Any]) -> None:
        head = rule["head"]
        if not (head.get("name") in _ENTRIES and "key" in head and "value" not in head):
            self._expression({"terms": [head.get("key"), head.get("value"), *(head.get("args") or [])]})
        for part in rule.get("body") or []:
            self._expression(part)
        if "else" in rule:
            self._rule(
                {"head": {"name": "", **rule["else"]["head"]}, **{k: v for k, v in rule["else"].items() if k != "head"}}
            )

    def _expression(self, node: Any) -> None:
        """Adds the fields and the texts of one condition."""
        fields: set[str] = set()
        texts: set[str] = set()
        self._walk(node, fields, texts)
        self._names.fields |= fields
        for field in fields or {"*"}:
            self._names.values[field] |= texts

    def _walk(self, node: Any, fields: set[str], texts: set[str]) -> None:
        if isinstance(node, list):
            for inner in node:
                self._walk(inner, fields, texts)
        elif isinstance(node, dict) and node.get("type") == "string":
            texts |= {node["value"], node["value"].replace("*", "x")} - {""}
        elif isinstance(node, dict) and node.get("type") == "var":
            self._names.uses.add(str(node["value"]))
        elif isinstance(node, dict) and node.get("type") == "ref":
            self._reference(node["value"], fields, texts)
        elif isinstance(node, dict) and node.get("type") in {
            "setcomprehension",
            "arraycomprehension",
            "objectcomprehension",
        }:
            for part in node["value"].get("body") or []:
                self._expression(part)
            self._walk([value for key, value in node["value"].items() if key != "body"], fields, texts)
        elif isinstance(node, dict):
            for key, inner in node.items():
                if key not in {"type", "location", "with"}:
                    self._walk(inner, fields, texts)

    def _reference(self, parts: list[dict[str, Any]], fields: set[str], texts: set[str]) -> None:
        for part in parts[1:]:
            if part["type"] != "string":
                self._walk(part, fields, texts)
        path = _path(parts)
        path = (*self._aliases.get(path[0], path[:1]), *path[1:])
        self._names.patterns |= path[0] in _PATTERNS
        if path[0] == "input":
            fields |= _WHOLE.get(path[1:]) or {_field(path[1:])}
        elif path[:4] == _STANDING_PATH:
            fields |= set().union(*_STANDING.values()) if len(path) < 5 else _STANDING.get(path[4], set())
        elif path[0] == "data":
            shared = [one == other for one, other in zip(path, self._own, strict=False)]
            own = all(shared)
            self._names.uses.add(
                path[len(self._own)] if own and len(path) > len(self._own) else EVERYTHING if own else ""
            )
        else:
            self._names.uses.add(path[0])


def _conditions(node: Any) -> Iterator[dict[str, Any]]:
    """The conditions in the bodies of a rule, and of comprehensions in a condition."""
    if isinstance(node, list):
        for inner in node:
            yield from _conditions(inner)
    elif isinstance(node, dict):
        for key, inner in node.items():
            if key == "body" and isinstance(inner, list):
                yield from inner
            else:
                yield from _conditions(inner)


def _about(field: str) -> str:
    """What of the subject a field is, as far as people are tried with one of each; empty: it is of something else."""
    if field == "subject.groups" or field.startswith("subject.claims"):
        return _GROUP
    return "other" if field in {"subject.id", "subject.team_ids", "subject.roles"} else ""


def _functions(node: Any) -> Iterator[str]:
    """Names of the functions and operators that are called in a part of a syntax tree, but for those below ``data``."""
    if isinstance(node, list):
        for inner in node:
            yield from _functions(inner)
    elif isinstance(node, dict):
        terms = node.get("value") if node.get("type") == "call" else node.get("terms")
        if isinstance(terms, list) and terms and terms[0].get("type") == "ref":
            path = _path(terms[0]["value"])
            if path[0] != "data":
                yield ".".join(path)
        if node.get("type") == "templatestring":
            yield "a template string"
        for inner in node.values():
            yield from _functions(inner)


def _path(parts: list[dict[str, Any]]) -> tuple[str, ...]:
    """The names that a reference begins with, up to the first that is computed."""
    found: list[str] = []
    for part in parts:
        if part["type"] not in {"var", "string"} or (found and part["type"] == "var"):
            break
        found.append(str(part["value"]))
    return tuple(found) or ("",)


def _field(path: tuple[str, ...]) -> str:
    return ".".join(path[:3] if path[:2] == ("subject", "claims") else path[:2])
