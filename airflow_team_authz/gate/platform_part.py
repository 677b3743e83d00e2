"""Checks the platform's own part before publication: airflow/site, roles and directory, with tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from airflow_team_authz.gate.findings import WARNING, Finding, of_opa
from airflow_team_authz.gate.modules import Pattern, patterns_in
from airflow_team_authz.gate.patterns import difference
from airflow_team_authz.gate.policy_files import rule_findings
from airflow_team_authz.opa.archive import pack
from airflow_team_authz.opa.compile import (
    CompileError,
    check_ownership,
    find_opa,
    is_shipped,
    merged,
    policy_files,
    run_opa,
    scratch_directory,
    shipped_policies,
)

_TESTED = ("--bundle", "--format", "json", "--timeout", "30s")
_TYPED = {"airflow/directory/data.json": "directory", "airflow/roles/data.json": "roles"}


def check_platform(files: Mapping[str, bytes], opa: str | None = None) -> list[Finding]:
    """Everything that is wrong with the files of a platform's policy directory (``airflow/**``), merged with the
    shipped policy: data against its schema, strict check, packages, tests. None: it may be published.
    """
    found = list(_data(files))
    with scratch_directory() as directory:
        staged = Path(directory)
        tests = {name: text for name, text in files.items() if name.endswith("_test.rego")}
        for name, content in (merged(files) | tests).items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(content)
        program = find_opa(opa)
        found += _rego(staged, program, bool(tests))
        # Also those whose metadata names no schema.
        found += [one for one in rule_findings(files, opa) if one.level != WARNING] if not found else []
        rules = [name for name in files if name.endswith(".rego") and name not in tests]
        return found + (list(_patterns(staged, rules, program)) if not found else [])


def failing_tests(platform: Mapping[str, bytes], teams: Mapping[str, bytes], opa: str | None = None) -> str:
    """Output of `opa test` if the platform's own tests (packages `airflow.…`) fail in the policy of all teams."""
    tests = {name: text for name, text in platform.items() if name.endswith("_test.rego")}
    if not tests:
        return ""
    with scratch_directory() as directory:
        (Path(directory) / "whole.tar.gz").write_bytes(pack(merged({**platform, **teams}) | tests, level=1))
        try:
            # A team's rule may be called test_… without being one.
            run_opa([find_opa(opa), "test", *_TESTED, "--run", r"^data\.airflow\b", "whole.tar.gz"], Path(directory))
        except CompileError as error:
            return str(error)[:300]
    return ""


def _data(files: Mapping[str, bytes]) -> Iterator[Finding]:
    import jsonschema

    for name in files:
        if name.endswith((".yaml", ".yml")):
            told = "bundles have data as JSON"
            yield Finding("data-place", name, 1, told, f"move it into {name.rpartition('/')[0]}/data.json")
    for name, schema in _TYPED.items():
        if name not in files:
            continue
        rules = json.loads((shipped_policies() / "schemas" / f"{schema}.json").read_bytes())
        way_out = f"see policies/schemas/{schema}.json of the package for what may be in it"
        try:
            problems = list(jsonschema.Draft202012Validator(rules).iter_errors(json.loads(files[name])))
        except (ValueError, RecursionError) as error:
            yield Finding("data-invalid", name, 1, f"it is not JSON: {error}", "correct the file")
            continue
        for problem in problems:
            place = "/".join(map(str, problem.absolute_path)) or "the whole"
            yield Finding("data-invalid", name, 1, f"{place}: {problem.message[:200]}", way_out)


def _rego(staged: Path, opa: str, tested: bool) -> Iterator[Finding]:
    shipped = shipped_policies()
    limits = ["--schema", str(shipped / "schemas"), "--capabilities", str(shipped / "capabilities.json")]
    try:
        run_opa([opa, "check", "--bundle", "--strict", *limits, "."], staged)
        check_ownership(staged, opa)
    except CompileError as error:
        yield from _findings("check", error)
        return
    if tested:
        try:
            run_opa([opa, "test", *_TESTED, "."], staged)
        except CompileError as error:
            yield from _findings("test-failed", error)


def _patterns(staged: Path, rules: list[str], opa: str) -> Iterator[Finding]:
    """The constant patterns of the platform's own rules that the engines do not read alike."""
    patterns: list[Pattern] = []
    for name in rules:
        told = run_opa([opa, "parse", "--format", "json", "--json-include", "locations", name], staged)
        patterns += patterns_in(json.loads(told), name)

    def evaluate(policy: str, question: str) -> str:
        with scratch_directory() as place:
            (Path(place) / "try.rego").write_text(policy)
            (Path(place) / "question.json").write_text(question)
            shown = ("--format", "json", "--input", "question.json", "--data", "try.rego")
            try:
                return run_opa([opa, "eval", *shown, "data.airflow.authz.decisions"], Path(place))
            except CompileError:
                return ""

    for pattern in {pattern[:3]: pattern for pattern in patterns}.values():
        told, help_ = difference(pattern, (), opa, evaluate)
        if told:
            yield Finding("pattern", pattern.file, pattern.line, f"the pattern {pattern.text[:60]!r} {told}", help_)


def _findings(rule: str, error: CompileError) -> Iterator[Finding]:
    yield from of_opa(rule, error.problems, "airflow")
    if not error.problems:
        yield Finding(rule, "airflow", 1, str(error)[:1000], "correct the file that it names")


def read_platform(directory: Path) -> dict[str, bytes]:
    """The platform's own files of a policy directory: rules and their tests, role table, directory, data.

    The same that an engine loads which is given the directory, and the tests. ``CompileError`` if they cannot be read.
    """
    root = directory / "airflow"
    if not root.is_dir():
        return {}
    try:
        names = {path.relative_to(directory).as_posix(): path for path in policy_files(root, tests=True)}
        return {name: path.read_bytes() for name, path in names.items() if not is_shipped(name)}
    except OSError as error:
        raise CompileError(f"the policy in {directory} cannot be read: {error}") from None
