"""The gate: what a team may publish. All that is wrong is told at once.

The shipped policy, schemas and capabilities are this package's own, whatever a repository holds. What is looked at may
be hostile: it is parsed and run by ``opa`` in a directory of its own, with limits on time and memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from airflow_team_authz.gate.codes import rule_code_findings
from airflow_team_authz.gate.findings import WARNING, Finding, of_opa
from airflow_team_authz.gate.measures import code_findings, data_findings
from airflow_team_authz.gate.modules import (
    MAX_PATTERNS,
    Module,
    all_patterns,
    module_findings,
    only_in_tests,
    too_deep,
)
from airflow_team_authz.gate.no_effect import constants_of, no_effect
from airflow_team_authz.gate.operand_types import operand_findings
from airflow_team_authz.gate.package_files import Data, layout_findings, read_package
from airflow_team_authz.gate.patterns import pattern_findings
from airflow_team_authz.opa.archive import digest, unpack
from airflow_team_authz.opa.compile import (
    ENTRYPOINT_OPTIONS,
    CompileError,
    find_opa,
    functions,
    merged,
    run_opa,
    scratch_directory,
    shipped_policies,
)
from airflow_team_authz.opa.errors import in_one_text, problems
from airflow_team_authz.opa.wasm import trouble_with
from airflow_team_authz.team_ids import is_team_id

__all__ = ["check_package", "read_package"]

MIN_COVERAGE = 90
_SECONDS = 30
_TEST_SECONDS = 10
_MEMORY_BYTES = 4 * 1024**3
# What OPA runs parameterized tests by, beside what policies may call.
_FOR_TESTS = ("internal.test_case", "internal.print", "print", "trace")


# Of the last platform's part and other teams.
_WITHOUT: dict[str, bytes] = {}


class Done(NamedTuple):
    """The output of ``opa``, and its exit code; ``None`` if it was stopped for taking too much time or memory."""

    code: int | None
    out: str
    err: str


def check_package(
    files: Mapping[str, bytes], team_id: str, platform: Mapping[str, bytes] | None = None, opa: str | None = None
) -> list[Finding]:
    """Everything that is wrong with a team's package, by file and line; nothing: it may be published.

    ``files`` are its Rego, ``data.json`` and ``schema.json``, by their paths in a policy directory. ``platform`` are
    those of the platform's policy directory, and of other teams, that it is merged with; else the shipped policy alone
    is. ``CompileError`` if the check itself cannot be made.
    """
    program = find_opa(opa)
    found = list(layout_findings(files, team_id))
    data = Data(files, team_id)
    found += data.findings
    # What has a bad name or is not text would be an error of opa's in words of its own.
    if any(finding.rule in {"team-id", "file-name", "foreign-file", "not-text", "too-large"} for finding in found):
        return sorted(set(found), key=_order)
    try:
        with scratch_directory() as directory:
            check = _Check(Path(directory), program, files, team_id, platform or {}, data)
            found += check.findings()
    except (CompileError, OSError):
        raise
    except Exception as error:
        # What nobody has thought of is no reason to publish, nor to hold up other teams.
        raise CompileError(f"the gate fails at the package of {team_id}: {error!r}") from error
    return sorted(set(found), key=_order)


def _order(finding: Finding) -> tuple[str, int, str, str]:
    return finding.file, finding.line, finding.rule, finding.message


class _Check:
    """Checks one package in a directory of its own."""

    def __init__(
        self, place: Path, opa: str, files: Mapping[str, bytes], team_id: str, platform: Mapping[str, bytes], data: Data
    ) -> None:
        self._place, self._opa, self._team_id, self._data = place, opa, team_id, data
        self._root = f"teams/{team_id}"
        self._own = {name: text for name, text in files.items() if name.endswith((".rego", "data.json"))}
        self._platform = {name: text for name, text in platform.items() if not name.startswith(f"{self._root}/")}
        self._rules = [name for name in self._own if name.endswith(".rego") and not name.endswith("_test.rego")]
        self._shipped = shipped_policies()

    def findings(self) -> Iterator[Finding]:
        """All that opa, and who reads what it has parsed, find."""
        _write(self._place / "own", self._own)
        with ThreadPoolExecutor(4) as pool:
            parsed = list(pool.map(self._parse, sorted(name for name in self._own if name.endswith(".rego"))))
            modules = [module for module in parsed if isinstance(module, Module)]
            broken = [finding for found in parsed if isinstance(found, list) for finding in found]
            names = {module.package: set[str]() for module in modules}
            for module in modules:
                # What only tests declare is not there when it decides.
                names[module.package] |= set() if module.name.endswith("_test.rego") else module.rule_names
            yield from (finding for module in modules for finding in module.findings(names[module.package]))
            yield from module_findings(modules)
            yield from only_in_tests(modules, self._team_id)
            yield from _in_vain(modules)
            keys = set().union(*(module.keys for module in modules))
            broken += self._data.key_findings(keys)
            yield from broken
            if not broken:
                self._stage(modules, keys)
                steps: list[Callable[[], Iterable[Finding]]] = [self._format, self._merged]
                steps += [lambda: self._typed(modules), lambda: self._tests(modules), lambda: self._patterns(modules)]
                steps.append(lambda: data_findings(self._data.file, self._data.value, self._opa))
                if self._platform_tests():
                    steps.append(self._platform_still_passes)
                later = [finding for found in pool.map(lambda step: list(step()), steps) for finding in found]
                # What does not pass the checker does not compile either, which is no news.
                unchecked = any(finding.rule == "check" for finding in later)
                yield from (one for one in later if one.rule == "check" or not (unchecked and "rego_" in one.message))
        if self._untyped(modules):
            told = "rules read the team's data, and nothing says of which types it is"
            help_ = f"write {self._root}/schema.json, a JSON Schema of data.json"
            yield Finding("schema-missing", self._data.schema_file, 1, told, help_)

    def _untyped(self, modules: list[Module]) -> bool:
        rules = {name for module in modules for name in (*module.package[2:3], *module.rule_names)}
        read = {name for module in modules for name in module.own_names} - rules
        return bool(read and self._data.value and not self._data.typed)

    def _stage(self, modules: list[Module], keys: set[str]) -> None:
        """The whole policy with this team's part, without anybody's tests but the team's; and the schemas."""
        self._others = merged(self._platform)
        _write(self._place / "policy", {**self._others, **self._own})
        decides = {name: text for name, text in self._own.items() if not name.endswith("_test.rego")}
        _write(self._place / "merged", {**self._others, **decides})
        schemas = {f"{path.stem}.json": path.read_bytes() for path in (self._shipped / "schemas").glob("*.json")}
        schemas["question.json"] = _question(schemas["input.json"], set().union(*(module.texts for module in modules)))
        own_data = self._data.for_opa(keys)
        typed_data = {f"own/{name}.json": json.dumps(part).encode() for name, part in own_data.items()}
        _write(self._place / "schemas", schemas | typed_data)
        # Types for the team's rules, whatever their own metadata says.
        own = _reference(self._team_id)
        typed = "\n".join(
            [
                "# METADATA", "# scope: subpackages", "# schemas:", "#   - input: schema.question",
                "#   - data.airflow.roles: schema.roles",
                *(f"#   - data.{own}.{name}: schema.own.{name}" for name in own_data), "package teams", "",
            ]
        )  # fmt: skip
        rules = {name: self._own[name] for name in self._rules}
        others = {name: text for name, text in self._others.items() if name.startswith("airflow/authz/")}
        _write(self._place / "typed", {**others, **rules, "typed.rego": typed.encode()})
        (self._place / "tests.json").write_text(json.dumps(_test_capabilities(self._opa)))

    def _parse(self, name: str) -> Module | list[Finding]:
        done = self._run("own", "parse", "--format", "json", "--json-include", "locations,comments", name)
        try:
            tree = json.loads(done.out) if done.code == 0 else {}
        except (ValueError, RecursionError):
            tree = None
        if tree is None or too_deep(tree):
            return [Finding("too-deep", name, 1, "it is nested too deeply", "split it into several rules")]
        if done.code == 0:
            return Module(name, tree, self._team_id)
        if done.code is None:
            return [Finding("parse", name, 1, "parsing it takes too long", "make it simpler")]
        return list(self._told("parse", done, name))

    def _format(self) -> Iterator[Finding]:
        done = self._run("own", "fmt", "--list", ".")
        for name in done.out.split():
            yield Finding("format", name.removeprefix("./"), 1, "it is not formatted", "run `opa fmt --write`")

    def _typed(self, modules: list[Module]) -> Iterator[Finding]:
        schemas = ["--schema", str(self._place / "schemas")]
        capabilities = self._shipped / "capabilities.json"
        limits = [*schemas, "--capabilities", str(capabilities)]
        done = self._run("typed", "check", "--strict", "--max-errors", "50", *limits, ".")
        if done.code != 0:
            yield from self._told("check", done, self._root)
        if done.code != 0 or self._untyped(modules):
            return

        def check(probed: dict[str, str], known: dict[str, Any]) -> str:
            _write(self._place / "typed", {name: text.encode() for name, text in probed.items()})
            (self._place / "probes.json").write_text(json.dumps(known))
            limits = [*schemas, "--capabilities", str(self._place / "probes.json")]
            return self._run("typed", "check", "--max-errors", "100000", *limits, ".").err

        sources = {name: self._own[name].decode() for name in self._rules}
        yield from operand_findings(modules, sources, json.loads(capabilities.read_bytes()), check)

    def _tests(self, modules: list[Module]) -> Iterator[Finding]:
        tests = [name for name in self._own if name.endswith("_test.rego")]
        help_ = f"write rules test_… in {self._root}/{self._team_id}_test.rego"
        if not tests:
            yield Finding("no-tests", self._root, 1, "there are no tests", help_)
            return
        limits = ["--capabilities", str(self._place / "tests.json"), "--timeout", f"{_TEST_SECONDS // 2}s"]
        command = ["test", "--bundle", "--format", "json", *limits, "."]
        with ThreadPoolExecutor(2) as pool:
            covering = pool.submit(self._run, "policy", *command, "--coverage", seconds=_TEST_SECONDS)
            done = self._run("policy", *command, seconds=_TEST_SECONDS)
        try:
            results = json.loads(done.out)
        except (ValueError, RecursionError):
            if done.code is None:
                yield Finding(
                    "test-failed", tests[0], 1, "the tests take too long or too much memory", "make them smaller"
                )
            else:
                yield from self._told("test-failed", done, tests[0])
            return
        own = [result for result in results if str(result.get("location", {}).get("file", "")).lstrip("./") in tests]
        if not sum(_cases(result, modules) for result in own):
            yield Finding("no-tests", tests[0], 1, "no test ran", help_)
        failed = [problem for problem in problems(done.out) if problem.file in tests]
        yield from of_opa("test-failed", failed, tests[0])
        if not failed:
            yield from self._coverage(covering.result())

    def _coverage(self, done: Done) -> Iterator[Finding]:
        try:
            reports = json.loads(done.out)["files"]
        except (ValueError, KeyError):
            yield from self._told("coverage", done, self._root)
            return
        reports = {name.lstrip("./"): report for name, report in reports.items()}
        covered = uncovered = 0
        lines = []
        for name in self._rules:
            report = reports.get(name, {})
            covered += _lines(report.get("covered"))
            lines += [(name, part["start"]["row"]) for part in report.get("not_covered") or []]
            uncovered += _lines(report.get("not_covered"))
        share = 100 * covered / (covered + uncovered) if covered + uncovered else 100.0
        if share < MIN_COVERAGE:
            for name, line in lines:
                told = f"no test comes here; {share:.0f} % of the lines are covered"
                yield Finding("coverage", name, line, told, f"test {MIN_COVERAGE} % of the lines")

    def _merged(self) -> Iterator[Finding]:
        """Together with the platform and other teams, for both engines."""
        done, wasm = self._as_wasm("merged")
        if done.code != 0:
            yield from self._told("merged", done, self._root)
        elif trouble := trouble_with(wasm):
            yield Finding(
                "merged", self._root, 1, f"no engine can run it as Wasm: {trouble[:200]}", "split large rules"
            )
        else:
            yield from code_findings(self._root, self._without(), wasm)

    def _as_wasm(self, place: str) -> tuple[Done, bytes]:
        shared = ["--capabilities", str(self._shipped / "capabilities.json"), "--bundle", "."]
        out = self._place / f"{place}.tar.gz"
        done = self._run(place, "build", "--target", "wasm", *shared, *ENTRYPOINT_OPTIONS, "--output", str(out))
        return done, unpack(out.read_bytes())["policy.wasm"] if done.code == 0 else b""

    def _without(self) -> bytes:
        """The Wasm of all others, the same for all packages that are checked beside them."""
        named = digest(self._others)
        if named not in _WITHOUT:
            _write(self._place / "without", self._others)
            _, wasm = self._as_wasm("without")
            _WITHOUT.clear()
            _WITHOUT[named] = wasm
        return _WITHOUT[named]

    def _platform_tests(self) -> dict[str, bytes]:
        return {
            name: text
            for name, text in self._platform.items()
            if name.endswith("_test.rego") and name[:8] == "airflow/"
        }

    def _platform_still_passes(self) -> Iterator[Finding]:
        own = {name: text for name, text in self._own.items() if not name.endswith("_test.rego")}
        _write(self._place / "whole", {**self._others, **own, **self._platform_tests()})
        limits = ["--capabilities", str(self._place / "tests.json")]
        shown = ("--format", "json", "--timeout", f"{_SECONDS}s")
        done = self._run("whole", "test", "--bundle", *shown, *limits, ".")
        if done.code != 0:
            told = f"with it, the platform's own tests fail: {in_one_text(done.err or done.out)[:300]}"
            yield Finding("platform-tests", self._root, 1, told, "ask the platform team which rule of yours they meet")

    def _patterns(self, modules: list[Module]) -> Iterator[Finding]:
        texts = set().union(*(module.texts for module in modules))

        def evaluate(policy: str, question: str) -> str:
            _write(self._place / "patterns", {"try.rego": policy.encode(), "question.json": question.encode()})
            shown = ("--format", "json", "--input", "question.json", "--data", "try.rego")
            return self._run("patterns", "eval", *shown, "data.airflow.authz.decisions").out

        patterns = all_patterns(modules)
        if len(patterns) <= MAX_PATTERNS:
            yield from pattern_findings(patterns, texts, self._opa, evaluate)

    def _told(self, rule: str, done: Done, otherwise: str) -> Iterator[Finding]:
        """OPA's findings, by file and line; a finding in a file of others names the package."""
        if done.code is None:
            yield Finding(rule, otherwise, 1, "it takes too long or too much memory", "make it simpler")
        elif found := problems(done.err or done.out, functions()):
            yield from of_opa(rule, found, otherwise, self._own)
        else:
            told = in_one_text(done.err or done.out)[:300] or "opa refuses it"
            yield Finding(rule, otherwise, 1, told, "run `opa check --strict .` in the directory")

    def _run(self, place: str, *arguments: str, seconds: int = _SECONDS) -> Done:
        """Run ``opa`` on what strangers wrote: unlike ``run_opa``, with limits and without our environment."""
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments, no shell
                [self._opa, *arguments],
                cwd=self._place / place,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
                # Nothing of the environment: a policy under test has no business there.
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "HOME": str(self._place),
                    "GOMAXPROCS": "2",
                    "GOGC": "400",
                    "GOMEMLIMIT": "2GiB",
                },
                preexec_fn=_limit,
            )
        except subprocess.TimeoutExpired:
            return Done(None, "", "")
        except OSError as error:
            raise CompileError(f"cannot run {self._opa}: {error}") from error
        if done.returncode < 0 or "out of memory" in done.stderr or "cannot allocate memory" in done.stderr:
            return Done(None, "", "")
        return Done(done.returncode, done.stdout, done.stderr)


def _in_vain(modules: list[Module]) -> Iterator[Finding]:
    """Rules that certainly have no effect, and wrong codes; for warnings see ``policy_files.warnings_of``."""
    rules = [module for module in modules if not module.name.endswith("_test.rego")]
    yield from (
        one for one in rule_code_findings({module.name: module.tree for module in rules}) if one.level != WARNING
    )
    for module in rules:
        others = [constants_of(other.tree) for other in rules if other.package == module.package]
        known = {name: value for constants in others for name, value in constants.items()}
        yield from (one for one in no_effect(module.name, module.tree, known) if one.level != WARNING)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _question(schema: bytes, texts: set[str]) -> bytes:
    """The schema of questions for a team's rules: about its own resources. OPA's checker knows only names of claims."""
    question: dict[str, Any] = json.loads(schema)
    properties = question["properties"]
    claims = properties["subject"]["properties"]["claims"]
    further = claims["additionalProperties"]
    claims.update(additionalProperties=False, properties=dict.fromkeys(sorted(texts | {""}), further))
    properties["resource"]["properties"]["team_id"] = {"type": "string"}
    return json.dumps(question).encode()


def _cases(result: dict[str, Any], modules: list[Module]) -> int:
    """Cases of one rule: a rule ``test_x[note]`` has one for each note, and none if nothing has a note."""
    if result.get("skip"):
        return 0
    if "sub_results" in result:
        return len(result["sub_results"])
    heads = (rule["head"].get("ref") or [] for module in modules for rule in module.rules)
    return 0 if any(len(head) > 1 and head[0].get("value") == result["name"] for head in heads) else 1


def _lines(parts: Any) -> int:
    return sum(part["end"]["row"] - part["start"]["row"] + 1 for part in parts or [])


def _reference(team_id: str) -> str:
    return f'teams["{team_id}"]' if is_team_id(team_id) else "teams.nobody"


@cache
def _test_capabilities(opa: str) -> dict[str, Any]:
    """Capabilities of tests: those of policies, and the built-ins that OPA turns tests into."""
    ours: dict[str, Any] = json.loads((shipped_policies() / "capabilities.json").read_bytes())
    current = json.loads(run_opa([opa, "capabilities", "--current"]))
    more = [builtin for builtin in current["builtins"] if builtin["name"] in _FOR_TESTS]
    return ours | {"builtins": sorted(ours["builtins"] + more, key=lambda builtin: str(builtin["name"]))}
