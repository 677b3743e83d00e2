"""Finds rules without effect: those that read fields which no question has, and those in files which no engine loads.

Neither keeps a policy from being compiled, and a ``deny`` of that kind denies nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_team_authz.gate.codes import rule_code_findings, suspicious
from airflow_team_authz.gate.findings import WARNING, Finding, of_opa
from airflow_team_authz.gate.modules import ENTRIES, entries, entries_in_test, names_read
from airflow_team_authz.gate.no_effect import constants_of, no_effect
from airflow_team_authz.opa.compile import (
    CompileError,
    find_opa,
    is_shipped,
    policy_files,
    run_opa,
    scratch_directory,
    shipped_policies,
)

_MAX_PROBLEMS = 50
# A first look, since most tests need not be parsed; and the part of a package's name that all of its roots share.
_ENTRY = re.compile(rf"^[ \t]*(?:default[ \t]+)?(?:{'|'.join(sorted(ENTRIES))})\b".encode(), re.MULTILINE)
_PACKAGE = re.compile(
    r'(?:\s|#[^\n]*\n)*package\s+(?P<first>\w+)(?:\.(?P<word>\w+)|\[\s*(?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)\s*\])?',
    re.ASCII,
)
_METADATA = re.compile(rb"#([ \t]*)METADATA([ \t\r]*)$", re.MULTILINE)


def directory_findings(directory: Path, opa: str | None = None) -> list[Finding]:
    """Findings about the files of a policy directory, as an engine loads them.

    ``CompileError`` if it cannot be looked at, ``OSError`` if its files cannot be read.
    """
    return [*left_out(directory), *rule_findings(rego_files(directory), opa)]


def rego_files(directory: Path) -> dict[str, bytes]:
    """The Rego files of a policy directory, tests too, by their paths in it; ``OSError`` if one cannot be read."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in policy_files(directory, tests=True)
        if path.suffix == ".rego"
    }


def rule_findings(files: Mapping[str, bytes], opa: str | None = None) -> list[Finding]:
    """Findings about Rego files, by their paths in a policy directory. Shipped files are not checked.

    Whatever a file's own metadata says of schemas: the question has one. ``CompileError`` if the files cannot be
    checked.
    """
    own = {name: text for name, text in files.items() if name.endswith(".rego") and not is_shipped(name)}
    for name in own:
        # `opa` puts other letters in its place.
        if name != name.encode(errors="replace").decode():
            raise CompileError(f"the name of the file {name!a} is not UTF-8: rename the file")
    tests = {name: text for name, text in own.items() if name.endswith("_test.rego") and _ENTRY.search(text)}
    rules = {name: text for name, text in own.items() if not name.endswith("_test.rego")}
    if not rules and not tests:
        return []
    program = find_opa(opa)
    with scratch_directory() as directory:
        place = Path(directory)
        found = [*_in_tests(tests, place / "tests", program), *_against_schema(rules, place / "rules", program)]
        in_vain = list(_decides_nothing(rules, place / "written", program))
        if any(one.rule == "entry-rule" for one in in_vain):
            # The shipped policy reads them as sets, which the type checker tells of the shipped policy.
            found = [one for one in found if not is_shipped(one.file)]
        return found + in_vain


def warnings_of(files: Mapping[str, bytes], opa: str | None = None) -> list[Finding]:
    """Warnings about Rego that is probably not intended. They do not prevent publication."""
    rules = {name: text for name, text in files.items() if name.endswith(".rego") and not name.endswith("_test.rego")}
    with scratch_directory() as directory:
        found = _decides_nothing(rules, Path(directory), find_opa(opa))
        return [one for one in found if one.level == WARNING]


def _decides_nothing(rules: Mapping[str, bytes], place: Path, opa: str) -> Iterator[Finding]:
    """Rules that cannot have an effect, what no engine takes for reasons, and wrong codes; not of what does not parse.

    ``place`` is an empty directory, or none yet.
    """
    _write(place, rules)
    shown = _parsed(rules, place, opa)
    constants: dict[str, dict[str, Any]] = {}
    names: dict[str, set[str]] = {}
    for tree in shown.values():
        package = str(tree.get("package"))
        constants.setdefault(package, {}).update(constants_of(tree))
        names.setdefault(package, set()).update(names_read(tree))
    for name, tree in shown.items():
        package = str(tree.get("package"))
        known, read = constants[package], names[package]
        if any(True for _ in (*no_effect(name, tree, known), *entries(name, tree, read))):
            # Once more, now with the lines.
            located = _located(name, place, opa)
            yield from no_effect(name, located, known)
            yield from entries(name, located, read)
    yield from rule_code_findings({name: _located(name, place, opa) for name in sorted(suspicious(shown, rules))})


def _located(name: str, place: Path, opa: str) -> Any:
    """A file as ``opa parse`` shows it, with lines and METADATA."""
    return json.loads(run_opa([opa, "parse", "--format", "json", "--json-include", "locations", f"./{name}"], place))


def _parsed(rules: Mapping[str, bytes], place: Path, opa: str) -> dict[str, Any]:
    """Files as ``opa parse`` shows them, without lines: all by one process, since there may be thousands."""
    if not rules:
        return {}
    questions = place / "files.json"
    questions.write_text(json.dumps({name: text.decode(errors="replace") for name, text in rules.items()}))
    query = "{name: tree | some name, text in input; tree := rego.parse_module(name, text)}"
    told = run_opa([opa, "eval", "--format", "json", "--input", questions.name, query], place)
    trees: dict[str, Any] = json.loads(told)["result"][0]["expressions"][0]["value"]
    return trees


def _against_schema(rules: Mapping[str, bytes], place: Path, opa: str) -> Iterator[Finding]:
    roots = {name: _root(text) for name, text in rules.items()}
    help_ = "write `package` and its name on one line"
    yield from (
        Finding("check", name, 1, "its package cannot be read, so its rules are not checked", help_)
        for name, root in roots.items()
        if not root
    )
    shipped = shipped_policies()
    staged = {
        path.relative_to(shipped).as_posix(): path.read_bytes() for path in policy_files(shipped / "airflow/authz")
    }
    # Their own metadata may name other schemas, or the same once more.
    staged |= {name: _METADATA.sub(rb"#\1metadata\2", text) for name, text in rules.items()}
    for number, root in enumerate(sorted({root for root in roots.values() if root})):
        typed = f"# METADATA\n# scope: subpackages\n# schemas:\n#   - input: schema.input\npackage {root}\n"
        staged[f"schema-of-questions/{number}.rego"] = typed.encode()
    _write(place, staged)
    limits = ["--schema", str(shipped / "schemas"), "--capabilities", str(shipped / "capabilities.json")]
    try:
        run_opa([opa, "check", "--bundle", "--max-errors", str(_MAX_PROBLEMS), *limits, "."], place)
    except CompileError as error:
        if not error.problems:
            raise
        yield from of_opa("check", error.problems, "airflow")


def _root(text: bytes) -> str:
    """The part of a package's name that nothing of the shipped policy begins with; empty if there is none."""
    match = _PACKAGE.match(text.decode(errors="replace").removeprefix("\ufeff"))
    if match is None:
        return ""
    if match["first"] != "airflow":
        return match["first"]
    return f"airflow.{match['word']}" if match["word"] else f"airflow[{match['text']}]" if match["text"] else ""


def _in_tests(tests: Mapping[str, bytes], place: Path, opa: str) -> Iterator[Finding]:
    _write(place, tests)
    for name in tests:
        try:
            told = run_opa([opa, "parse", "--format", "json", "--json-include", "locations", f"./{name}"], place)
        except CompileError as error:
            yield from of_opa("check", error.problems, name)
        else:
            yield from entries_in_test(name, json.loads(told))


def left_out(directory: Path) -> Iterator[Finding]:
    """Findings about files that look like a part of the policy, and that no engine loads."""
    for part in ("airflow", "teams"):
        for folder, _, names in os.walk(directory / part):
            within = Path(folder).relative_to(directory)
            for name in sorted(names):
                file, suffix = (within / name).as_posix(), name.rpartition(".")[2]
                if any(one.startswith(".") for one in within.parts) and suffix == "rego":
                    told = "no engine loads it: it is in a hidden directory"
                    yield Finding("left-out", file, 1, told, "move it, or delete it")
                elif suffix in {"json", "yaml", "yml"} and name.rpartition(".")[0] not in {"data", "schema"}:
                    told = "no engine loads it, although `opa test` does: data is in data.json"
                    yield Finding("left-out", file, 1, told, f"move it into {(within / 'data.json').as_posix()}")


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(text)
