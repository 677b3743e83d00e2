"""Checks a team's package before anybody parses it: its files, their sizes, and the form of its data."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from airflow_team_authz.gate.findings import Finding
from airflow_team_authz.team_ids import FORM, is_team_id

# As Airflow has it for team names.
MAX_FILES = 64
MAX_REGO_BYTES = 256 * 1024
MAX_DATA_BYTES = 1024 * 1024
MAX_DEPTH = 16
_MAX_TEXT = 1_000
_MAX_ENUM = 100
_MAX_PROBLEMS = 100
_MAX_PROPERTIES = 50_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_IDENTIFIER = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_DATA = {"data.json", "data.yaml", "data.yml"}
# Letters that are shown as nothing, beside the categories: controls, formats (https://trojansource.codes), line breaks.
_BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_LINK = "link to somewhere else"
_TYPES = {"string", "number", "integer", "boolean", "null", "array", "object"}
_KEYWORDS = {
    "type", "properties", "additionalProperties", "required", "items", "enum", "const", "title", "description",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "examples",
}  # fmt: skip


def read_package(directory: Path, team_id: str) -> dict[str, bytes]:
    """The files of a team's package in a repository, by path from its root: Rego, data and its schema.

    Links are not followed, and read as what ``check_package`` refuses. Other files, such as a README, are left out.
    """
    root = directory / "teams" / team_id
    if root.is_symlink() or root.parent.is_symlink():
        return {f"teams/{team_id}/.link": _LINK.encode()}
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            files[f"{name}.link" if path.suffix else f"{name}/.link"] = _LINK.encode()
        elif path.is_file() and (path.suffix == ".rego" or path.name in _DATA or path.name == "schema.json"):
            with path.open("rb") as file:
                files[name] = file.read(MAX_DATA_BYTES + 1)
    return files


def layout_findings(files: Mapping[str, bytes], team_id: str) -> Iterator[Finding]:
    """Everything that is wrong with names, sizes and texts."""
    root = f"teams/{team_id}"
    if not is_team_id(team_id):
        yield Finding("team-id", root[:80], 1, f"{team_id[:60]!r} is not a team id", f"it is {FORM}")
    if not any(name.endswith(".rego") for name in files):
        yield Finding("no-rules", root, 1, "there is no Rego file", f"write {root}/{team_id}.rego")
    if len(files) > MAX_FILES:
        yield Finding("too-large", root, 1, f"there are {len(files)} files", f"{MAX_FILES} may be published")
    rego = sum(len(text) for name, text in files.items() if name.endswith(".rego"))
    if rego > MAX_REGO_BYTES:
        yield Finding("too-large", root, 1, f"its Rego has {rego:,} bytes", f"{MAX_REGO_BYTES:,} may be published")
    for name, content in sorted(files.items()):
        yield from _file_findings(name, content, root)


def _file_findings(name: str, content: bytes, root: str) -> Iterator[Finding]:
    shown, file = name[:200], name.rpartition("/")[2]
    parts = name.split("/")
    if not name.startswith(f"{root}/"):
        yield Finding("foreign-file", shown, 1, "it is not a file of the team", f"a team's files are in {root}")
    elif (
        any(not _NAME.fullmatch(part) for part in parts[2:])
        or any(part.endswith((".rego", ".json")) for part in parts[2:-1])
        or len(parts) > 6
    ):
        help_ = "use a-z, A-Z, 0-9, _, . and -, not more than four directories deep; links are not followed"
        yield Finding("file-name", shown, 1, "its name is not plain, or it is a link", help_)
    elif file in _DATA and name != f"{root}/data.json":
        yield Finding("data-place", shown, 1, "data is in one place and form", f"move it into {root}/data.json")
    elif not file.endswith(".rego") and name not in {f"{root}/data.json", f"{root}/schema.json"}:
        yield Finding(
            "foreign-file", shown, 1, "it is no part of a package", "a package is Rego, data.json and schema.json"
        )
    if file.endswith(".json") and len(content) > MAX_DATA_BYTES:
        yield Finding("too-large", shown, 1, f"it has {len(content):,} bytes", f"{MAX_DATA_BYTES:,} may be published")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        yield Finding("not-text", shown, line, "it is not UTF-8", "save it as UTF-8")
        return
    hidden = next((at for at, letter in enumerate(text) if _is_hidden(letter)), None)
    if file.endswith(".rego") and hidden is not None:
        line = text[:hidden].count("\n") + 1
        told = f"it holds the invisible character U+{ord(text[hidden]):04X}"
        yield Finding("not-text", shown, line, told, "take it out: it shows other text than what decides")


def _is_hidden(letter: str) -> bool:
    if letter.isascii():
        return not (letter.isprintable() or letter in "\t\n")
    return unicodedata.category(letter) in _HIDDEN or letter in _BLANKS


class Data:
    """A team's data and the schema that types it."""

    def __init__(self, files: Mapping[str, bytes], team_id: str) -> None:
        self.file, self.schema_file = f"teams/{team_id}/data.json", f"teams/{team_id}/schema.json"
        self.findings: list[Finding] = []
        self.value: Any = self._load(files, self.file, {})
        self.schema: Any = self._load(files, self.schema_file, None)
        self.typed = self.schema is not None
        if not self.findings:
            self.findings += self._check()

    def for_opa(self, keys: set[str]) -> dict[str, dict[str, Any]]:
        """The schema of each value by its name, as OPA's type checker understands it, which does not look into
        ``additionalProperties``: it is told of the ``keys`` that rules read, and of any other. Each on its own, since
        rules have a place beside them.
        """
        if not self.typed or self.findings:
            return {}
        closed = _closed(self.schema, {"", *keys})["properties"]
        return {name: part for name, part in closed.items() if _IDENTIFIER.fullmatch(name)}

    def key_findings(self, keys: set[str]) -> Iterator[Finding]:
        """A finding if ``for_opa`` would become too large with these keys."""
        if self.typed and not self.findings and (len(keys) + 1) ** _maps(self.schema) > _MAX_PROPERTIES:
            help_ = "have fewer maps in maps, or read them by variables"
            yield Finding("too-large", self.schema_file, 1, "it has too many maps in maps", help_)

    def _load(self, files: Mapping[str, bytes], name: str, missing: Any) -> Any:
        if name not in files or len(files[name]) > MAX_DATA_BYTES:
            return missing
        try:
            value = json.loads(files[name], object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
            problem = next(_odd(value), None)
        except (ValueError, RecursionError) as error:
            value, problem = missing, f"it is not JSON: {str(error)[:200]}"
        if problem is None and not isinstance(value, dict):
            problem = "it is no JSON object"
        if problem is not None:
            self.findings.append(Finding("data-invalid", name, 1, problem, "correct the file"))
            return missing
        return value

    def _check(self) -> Iterator[Finding]:
        for key in sorted({"allow", "deny"} & self.value.keys()):
            help_ = f"write a rule `{key} contains` that reads data under another name"
            yield Finding("data-decides", self.file, 1, f"{key} is data, and only rules may decide", help_)
        for key in sorted(key for key in self.value if not _IDENTIFIER.fullmatch(key)):
            help_ = "begin with a letter; use letters, digits and _, and put what is called otherwise one level deeper"
            yield Finding("data-key", self.file, 1, f"{key[:60]!r} is no name that rules can be typed by", help_)
        if not isinstance(self.value.get("default_pool", ""), str):
            yield Finding("default-pool", self.file, 1, "default_pool is no text", "name a pool")
        if not self.typed:
            return
        help_ = (
            "give each value one type; say the items of arrays, and additionalProperties of objects: false or a schema"
        )
        untyped = [Finding("schema-untyped", self.schema_file, 1, told, help_) for told in _untyped(self.schema, "it")]
        yield from untyped
        if not untyped:
            import jsonschema

            schema = {name: part for name, part in self.schema.items() if name != "$schema"}
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
            except jsonschema.SchemaError as error:
                told = f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
                yield Finding("data-invalid", self.schema_file, 1, told, "see https://json-schema.org")
                return
            for problem in islice(jsonschema.Draft202012Validator(schema).iter_errors(self.value), _MAX_PROBLEMS):
                place = "/".join(map(str, problem.absolute_path)) or "the whole"
                told = f"{place}: {problem.message[:200]}"
                yield Finding("data-invalid", self.file, 1, told, f"correct it, or {self.schema_file}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    (most,) = Counter(name for name, _ in pairs).most_common(1) or [("", 0)]
    if most[1] > 1:
        raise ValueError(f"the key {most[0][:60]!r} is there twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _odd(value: Any, depth: int = 0) -> Iterator[str]:
    """Values that the two engines may read differently."""
    if depth > MAX_DEPTH:
        yield f"it is nested deeper than {MAX_DEPTH}"
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _odd(part, depth + 1)
    elif isinstance(value, int) and abs(value) > 2**53:
        yield f"the number {str(value)[:30]} is too large to be exact"
    elif isinstance(value, float):
        yield f"the number {value} is no integer, and the engines may print it differently"
    elif isinstance(value, str) and len(value) > _MAX_TEXT:
        yield f"a text has {len(value):,} characters, and {_MAX_TEXT:,} may be"
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        yield "a text holds half a character"


def _untyped(schema: Any, place: str) -> Iterator[str]:
    """The places of a schema that do not fix the type of a value."""
    if not isinstance(schema, dict) or not isinstance(schema.get("type"), str) or schema["type"] not in _TYPES:
        yield f"{place} has no type, or several"
        return
    for word in sorted(schema.keys() - _KEYWORDS - ({"$schema"} if place == "it" else set())):
        yield f"{place} uses {word[:40]}, which OPA's type checker does not know"
    if isinstance(schema.get("enum"), list) and len(schema["enum"]) > _MAX_ENUM:
        yield f"{place} has more than {_MAX_ENUM} values in its enum"
    if schema["type"] == "array":
        yield from _untyped(schema.get("items"), f"{place}/items")
    if schema["type"] == "object":
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        if not isinstance(properties, dict):
            yield f"{place}/properties is no object"
            return
        for name, part in properties.items():
            yield from _untyped(part, f"{place}/{name}")
        if others is not False:
            yield from _untyped(others, f"{place}/additionalProperties")


def _maps(schema: dict[str, Any]) -> int:
    """How many maps are in each other, such as of a map of lists of maps."""
    further = schema.get("additionalProperties")
    parts = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    inside = max(map(_maps, parts), default=0)
    return max(inside, 1 + _maps(further)) if isinstance(further, dict) else inside


def _closed(schema: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """The schema with what it says of further properties said of each of these."""
    if schema["type"] == "array":
        return {"type": "array", "items": _closed(schema["items"], keys)}
    if schema["type"] != "object":
        return {"type": schema["type"]}
    properties = dict(schema.get("properties", {}))
    if isinstance(schema.get("additionalProperties"), dict):
        properties = dict.fromkeys(sorted(keys), schema["additionalProperties"]) | properties
    closed = {name: _closed(part, keys) for name, part in properties.items()}
    return {"type": "object", "additionalProperties": False, "properties": closed}
