"""Codes of rules: ``custom.code`` in a rule's METADATA, with which each of its reasons begins.

A reason carries its code in its own text, so the code reaches every record and answer by itself: no engine has to look
anything up, and no bundle has another form.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from airflow_team_authz.gate.findings import WARNING, Finding
from airflow_team_authz.gate.rego_ast import Node, operator, row
from airflow_team_authz.model import CODE, code_of

_RULES = {"allow", "deny"}
# A first look at METADATA, without OPA.
_WRITTEN = re.compile(r"^[ \t]*#.*?\bcode:[ \t]*[\"']?([^\s\"',}]+)", re.MULTILINE)
_SCOPE = re.compile(r"^[ \t]*#[ \t]*scope:", re.MULTILINE)


class _Named(NamedTuple):
    file: str
    line: int


def rule_code_findings(trees: Mapping[str, Node]) -> Iterator[Finding]:
    """Findings about codes in files of rules, as ``opa parse --json-include locations`` shows these.

    A code is unique among all rules of a team, and among those of the site.
    """
    known: dict[str, dict[str, _Named]] = defaultdict(dict)
    for name in sorted(trees):
        tree = trees[name]
        yield from _of_no_rule(name, tree)
        for rule in tree.get("rules") or []:
            yield from _of_rule(name, rule, known[_owner(tree)])


def suspicious(trees: Mapping[str, Node], files: Mapping[str, bytes]) -> set[str]:
    """The files whose codes need a closer look; ``trees`` have neither places nor METADATA."""
    said = {name: list(filter(None, map(code_of, _starts(tree)))) for name, tree in trees.items()}
    texts = {name: files[name].decode(errors="replace") for name in trees}
    written = {name: _WRITTEN.findall(text) for name, text in texts.items()}
    wrong = {name for name in trees if said[name] != written[name] or (said[name] and _SCOPE.search(texts[name]))}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, tree in trees.items():
        counts[_owner(tree)].update(written[name])
    wrong |= {name for name in trees if any(counts[_owner(trees[name])][code] > 1 for code in written[name])}
    owners = {_owner(trees[name]) for name in wrong}
    return {name for name in trees if _owner(trees[name]) in owners and (said[name] or written[name])}


def code_in(rule: Node) -> str:
    """The code that a rule's own METADATA gives it; empty if there is none."""
    codes = (_code(note) for note in rule.get("annotations") or [] if note.get("scope") == "rule")
    return next(filter(None, codes), "")


def _code(note: Mapping[str, Any]) -> str:
    custom = note.get("custom")
    code = custom.get("code") if isinstance(custom, dict) else None
    return "" if code is None else str(code)


def _of_no_rule(name: str, tree: Node) -> Iterator[Finding]:
    own = [note for rule in tree.get("rules") or [] if _is_entry(rule) for note in rule.get("annotations") or []]
    places = {row(note, 1) for note in own if note.get("scope") == "rule"}
    for note in tree.get("annotations") or []:
        if (code := _code(note)) and row(note, 1) not in places:
            told = f"the code {code} is not that of one rule `allow` or `deny`"
            yield Finding("code", name, row(note, 1), told, "write it above such a rule, without a scope")


def _of_rule(name: str, rule: Node, known: dict[str, _Named]) -> Iterator[Finding]:
    if not _is_entry(rule):
        return
    line, code, start = row(rule, row(rule["head"], 1)), code_in(rule), _start(rule)
    if not code:
        if (said := code_of(start)) and said not in map(_code, rule.get("annotations") or []):
            told = f"its reason begins with {said}, and its METADATA does not name this code"
            yield Finding("code", name, line, told, f"write `# custom: {{code: {said}}}` into its METADATA", WARNING)
    elif not CODE.fullmatch(code):
        told = f"{code!r} is not a code"
        yield Finding("code", name, line, told, "write capital letters, digits and hyphens, such as ALPHA-1")
    elif code in known:
        first = known[code]
        told = f"{code} is the code of {first.file}:{first.line} too"
        yield Finding("code", name, line, told, "give each rule a code of its own")
    else:
        known[code] = _Named(name, line)
        if code_of(start) != code:
            told = f"its reason does not begin with its code {code}"
            yield Finding("code", name, line, told, f'write the reason as a text that begins with "{code}: "')


def _owner(tree: Node) -> str:
    path = [str(part.get("value")) for part in (tree.get("package") or {}).get("path") or []]
    return ".".join(path[1:3])


def _is_entry(rule: Node) -> bool:
    reference = rule["head"].get("ref") or [{}]
    return str(rule["head"].get("name") or reference[0].get("value")) in _RULES


def _starts(tree: Node) -> Iterator[str]:
    yield from (_start(rule) for rule in tree.get("rules") or [] if _is_entry(rule))


def _start(rule: Node) -> str:
    """The constant text that every reason of a rule begins with; empty if nobody can say."""
    return _constant(rule["head"].get("key") or {}, rule.get("body") or [])


def _constant(term: Node, body: list[Node]) -> str:
    looks: dict[str, Callable[[Any], str]] = {
        "string": str,
        "templatestring": lambda value: _constant((value.get("parts") or [{}])[0], []),
        "var": lambda name: next((_constant(value, []) for value in _assigned(str(name), body)), ""),
    }
    look = looks.get(str(term.get("type")))
    return look(term["value"]) if look else ""


def _assigned(name: str, body: list[Node]) -> Iterator[Node]:
    for expression in body:
        terms = expression.get("terms")
        if not isinstance(terms, list) or len(terms) != 3 or operator(terms[0]) not in {"assign", "eq"}:
            continue
        if terms[1].get("value") == name:
            yield terms[2]
