"""Whether both engines read a constant pattern alike, and how much of its time Wasm takes to compile it.

Wasm compiles a pattern in each evaluation anew, and what repeats as often as it may: `.{1,1000}` takes more than a
whole decision may.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from airflow_team_authz.bundles.archive import unpack
from airflow_team_authz.bundles.findings import Finding
from airflow_team_authz.bundles.rules import Pattern
from airflow_team_authz.compile import ENTRYPOINTS
from airflow_team_authz.model import EngineError
from airflow_team_authz.wasm import FUEL_BASE, FUEL_PER_TEAM, Policy, compiled, start

# Half of what a question about another team more may take: all patterns of a package together.
FUEL = FUEL_PER_TEAM // 2
_ALL = 100 * FUEL_BASE
_SAMPLES = ("", "x", "prod_1", "a/b.c")
_TRY = """package airflow.authz

decisions := [[i, m] | some i, q in input.tried; m := matched(q)]

matched(q) := regex.match(q.pattern, q.text) if q.builtin == "regex.match"

matched(q) := glob.match(q.pattern, q.delimiters, q.text) if q.builtin == "glob.match"

decision := {}

allowed := []

whoami := {}
"""

# A policy, and the question on its standard input: what ``opa eval`` prints.
Evaluate = Callable[[str, str], str]


def pattern_findings(patterns: Iterable[Pattern], texts: set[str], opa: str, evaluate: Evaluate) -> Iterator[Finding]:
    """Every pattern that is no good; ``texts`` are such as it may be tried on."""
    listed = list(patterns)
    asked = [_question(pattern, [*_SAMPLES, pattern.text, *sorted(texts)[:20]]) for pattern in listed]
    by_opa = [_answer(evaluate(_TRY, question)) for question in asked]
    by_wasm, fuel = zip(*(_in_wasm(question, opa) for question in asked), strict=True) if asked else ((), ())
    left = FUEL
    # The cheap ones first: what there is no fuel left for is what takes most.
    for i in sorted(range(len(listed)), key=lambda i: fuel[i]):
        left -= fuel[i]
        pattern, told = listed[i], ""
        if left < 0:
            told = "takes Wasm too long to compile, with the others of the package"
        if by_opa[i] != by_wasm[i] or len(by_opa[i]) < len(_SAMPLES) or not pattern.text.isascii():
            told = "is no good, or not the same to both engines"
        if told:
            help_ = "use ASCII syntax of https://github.com/google/re2/wiki/Syntax, repeat less, or compare texts"
            yield Finding("pattern", pattern.file, pattern.line, f"the pattern {pattern.text[:60]!r} {told}", help_)


def _question(pattern: Pattern, texts: list[str]) -> str:
    tried = {"builtin": pattern.builtin, "pattern": pattern.text, "delimiters": pattern.delimiters}
    return json.dumps({"tried": [tried | {"text": text} for text in texts]})


def _answer(told: str) -> list[Any]:
    try:
        answers = json.loads(told)["result"][0]["expressions"][0]["value"]
    except (ValueError, LookupError, TypeError):
        return []
    return list(answers)


def _in_wasm(question: str, opa: str) -> tuple[list[Any], int]:
    machine = start(_tried(opa))
    try:
        return list(json.loads(bytes(machine.evaluate("decisions", question.encode(), _ALL)))), machine.fuel_used
    except EngineError:
        return [], _ALL


@cache
def _tried(opa: str) -> Policy:
    """The policy that tries patterns, compiled once in a process: it takes half a second."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "try.rego").write_text(_TRY)
        named = [argument for entrypoint in ENTRYPOINTS for argument in ("--entrypoint", entrypoint)]
        command = [opa, "build", "--target", "wasm", *named, "try.rego"]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)  # noqa: S603 - our own arguments
        return compiled(unpack((Path(directory) / "bundle.tar.gz").read_bytes())["policy.wasm"], quick=True)
