"""Whether both engines read a constant pattern alike, and how much of its time Wasm takes to compile it.

Both engines try each pattern on texts that are made from the pattern itself: such as it matches, or nearly, with line
breaks, delimiters and odd letters where it takes any. Wasm compiles a pattern in each evaluation anew, and what repeats
as often as it may: `.{1,1000}` takes more than a whole decision may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from airflow_team_authz.gate.findings import Finding
from airflow_team_authz.gate.modules import Pattern
from airflow_team_authz.model import EngineError
from airflow_team_authz.opa.archive import unpack
from airflow_team_authz.opa.compile import ENTRYPOINT_OPTIONS, run_opa, scratch_directory
from airflow_team_authz.opa.wasm import FUEL_BASE, FUEL_PER_TEAM, Policy, compiled, start

# Half of what a question about another team more may take: all patterns of a package together.
FUEL = FUEL_PER_TEAM // 2
_ALL = 100 * FUEL_BASE
# What a pattern costs is measured on these.
_SAMPLES = ("", "x", "prod_1", "a/b.c")
# What stands where a pattern takes any letter, or many: line breaks of all kinds, delimiters, no letter, long texts,
# letters of more than one byte, and such as have an odd capital.
_ANY = (
    "", "x", "X", "\n", "x\n", "\nx", "x\ny", "\r", "\r\n", "\t", " ", "\v", "\f", "\0", "\x1b", "\x7f", "\x85",
    "\xa0", "\u2028", "\u2029", "\u200b", "\ufeff", "\ufffd", "é", "e\u0301", "\u017f", "\u212a", "İ", "ß", "🚀",
    "9", "\u0661", *"_-^$|()[]{}*?+!\\'\"#@,./:", "..", "x.y", "x/y", "x:y", "x" * 1_000, "x\n" * 500,
)  # fmt: skip
_PARTS = {
    "glob.match": re.compile(
        r"(?P<any>\*+|\?)|\{(?P<either>[^{}]*)\}|\[(?P<not>[!^]?)(?P<first>.)[^\]]*\]|\\(?P<plain>.)"
    ),
    "regex.match": re.compile(
        r"(?P<none>\^|\$|\\[AzbBQE]|\(\?[a-zA-Z-]+\)|\(\?P?<\w+>|\(\?[a-zA-Z-]*:|[()]|[*+?]\??|\{\d+(?:,\d*)?\}\??)"
        r"|\[(?P<not>\^?)(?P<first>\[:\^?\w+:\]|\\.|.)(?:\\.|[^\]\\])*\]"
        r"|(?P<any>\.|\\[WSDPC])|\\(?P<class>p\{?\w+\}?|[wsd])|\\(?P<plain>.)"
    ),
}
# The first alternative of a group.
_GROUP = re.compile(r"(\((?:\?[^:)>]*[:>])?)([^()|]*)\|[^()]*\)")
_OF_CLASS = {"s": " ", "d": "1"}
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
    further = sorted(texts)[:20]
    fuel = [_in_wasm(_question(pattern, [*_SAMPLES, pattern.text, *further]), opa)[1] for pattern in listed]
    left = FUEL
    # The cheap ones first: what there is no fuel left for is what takes most.
    for i in sorted(range(len(listed)), key=lambda i: fuel[i]):
        left -= fuel[i]
        pattern = listed[i]
        told, help_ = difference(pattern, further, opa, evaluate)
        if not told and left < 0:
            told = "takes Wasm too long to compile, with the others of the package"
            help_ = "repeat less, or compare texts: startswith, endswith, contains"
        if told:
            yield Finding("pattern", pattern.file, pattern.line, f"the pattern {pattern.text[:60]!r} {told}", help_)


def difference(pattern: Pattern, texts: Iterable[str], opa: str, evaluate: Evaluate) -> tuple[str, str]:
    """The reason why the engines read a pattern differently, and the way out; empty if they read it alike."""
    tried = list(dict.fromkeys([*_SAMPLES, pattern.text, *texts, *samples(pattern)]))
    question = _question(pattern, tried)
    by_opa, by_wasm = _answer(evaluate(_TRY, question)), _in_wasm(question, opa)[0]
    if len(by_opa) < len(tried) or not pattern.text.isascii():
        return "is no good", "use the ASCII syntax of https://github.com/google/re2/wiki/Syntax"
    if by_opa == by_wasm:
        return "", ""
    differs = next((i for i, pair in enumerate(by_opa) if pair not in by_wasm), 0)
    told = f"does not mean the same to both engines, for {tried[differs][:30]!r}"
    if pattern.builtin == "glob.match":
        return told, "in Wasm ** and null delimiters match no line break: write startswith, endswith, contains, or *"
    return told, "use the ASCII syntax of https://github.com/google/re2/wiki/Syntax, or compare texts"


def samples(pattern: Pattern) -> list[str]:
    """Texts that a pattern matches, or nearly: with each of many odd texts in the place of what it leaves open."""
    made, text = [], pattern.text
    if pattern.builtin == "regex.match":
        text = _GROUP.sub(r"\1\2)", text)
    for filling in _ANY:
        fits = _PARTS[pattern.builtin].sub(lambda part: _filled(part, filling), text)  # noqa: B023 - called here
        # Of alternatives each on its own, if they are not within something.
        made += fits.split("|") if pattern.builtin == "regex.match" else [fits]
        made += [filling + fits, fits + filling]
    return [*made, made[0].upper(), made[0].lower()]


def _filled(part: re.Match[str], filling: str) -> str:
    found = part.groupdict()
    if found.get("class"):
        return _OF_CLASS.get(found["class"], "a")
    if found.get("either") is not None:
        return str(found["either"]).partition(",")[0]
    if found.get("any") or found.get("not"):
        return filling
    first = found.get("first") or found.get("plain") or ""
    return first if len(first) < 2 else "a"


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
    machine = start(trying_policy(opa))
    try:
        return list(json.loads(bytes(machine.evaluate("decisions", question.encode(), _ALL)))), machine.fuel_used
    except EngineError:
        return [], _ALL


@cache
def trying_policy(opa: str) -> Policy:
    """The policy that tries patterns, compiled once in a process: it takes half a second."""
    with scratch_directory() as directory:
        (Path(directory) / "try.rego").write_text(_TRY)
        run_opa([opa, "build", "--target", "wasm", *ENTRYPOINT_OPTIONS, "try.rego"], Path(directory))
        return compiled(unpack((Path(directory) / "bundle.tar.gz").read_bytes())["policy.wasm"], quick=True)
