"""Refuses rules that OPA and Wasm evaluate differently, so that both engines decide the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from airflow_team_authz.gate.rego_ast import SCALARS, Node, names, operator, row

_EXACT = 2**53
_COMPUTE = "compare numbers as they are"
# OPA 1.22.2 beside its own Wasm: other results, errors of one of the two, or no end.
_CALLS = {
    **dict.fromkeys(("abs", "ceil", "floor", "mul", "plus", "product", "round", "sum"), _COMPUTE),
    "json.is_valid": "look at texts as they are",
    "json.marshal": "take the texts and numbers out of the value that matter",
    "object.union_n": "use object.union, or an object comprehension",
}
# In Wasm a glob is a regular expression in which these mean something.
_GLOB = re.compile(r"[A-Za-z0-9 _.,:;/@#=~%&<>\"'!?*{}\[\]-]*")
_DELIMITER = re.compile(r"[./:_,@#-]")
# Wasm looks at sets and objects in no order. Of an array that these are given, the order does not matter.
_ANY_ORDER = {"sort", "count", "max", "min", "internal.member_2"}


class Difference(NamedTuple):
    """Something that engines do not do alike."""

    line: int
    message: str
    help: str


def differences(tree: Any) -> Iterator[Difference]:
    """All in a rule; the tree is one of ``opa parse``."""
    todo, ordered = [(tree, 1, True)], True
    while todo:
        node, line, ordered = todo.pop()
        if isinstance(node, list):
            todo += [(part, line, True) for part in node]
            continue
        if not isinstance(node, dict):
            continue
        line = row(node, line)
        kind, value = node.get("type"), node.get("value")
        if kind == "number" and not (isinstance(value, int) and abs(value) <= _EXACT):
            yield Difference(line, f"{value} is no exact integer", "write one of 15 digits at most")
        if kind == "arraycomprehension" and ordered:
            help_ = "write sort([…]), or a set: engines look at sets and objects in different orders"
            yield Difference(line, "an array is made in the order in which an engine finds its items", help_)
        if any(_is_computed_set(part) for part in _looked_through(node)):
            help_ = "give the set a name first (s := {…}), or use an array"
            yield Difference(line, "an OPA looks at equal items of a set that is written in place twice", help_)
        if "domain" in node and not names(node.get("key")) - {"_"}:
            # Every item counts alike, whichever comes first.
            todo.append((node["domain"], line, False))
            node = {key: part for key, part in node.items() if key != "domain"}
        call = value if kind == "call" else node.get("terms")
        if isinstance(call, list) and call:
            name, operands = operator(call[0]), call[1:]
            yield from (Difference(line, message, help_) for message, help_ in _of_call(name, operands))
            todo += [(operand, line, name not in _ANY_ORDER) for operand in operands]
        else:
            todo += [(part, line, True) for key, part in node.items() if key != "location"]


def _looked_through(node: Node) -> list[Node]:
    """Collections that `some … in`, `every` and references iterate over."""
    found = [symbol["value"][-1] for symbol in node.get("symbols") or [] if symbol.get("type") == "call"]
    found += [node["domain"]] if "domain" in node else []
    return found + ((node.get("value") or [])[:1] if node.get("type") == "ref" else [])


def _is_computed_set(term: Node) -> bool:
    return term.get("type") == "set" and any(part.get("type") not in SCALARS for part in term.get("value") or [])


def _of_call(name: str, operands: list[Node]) -> Iterator[tuple[str, str]]:
    if name in _CALLS:
        yield f"it computes by {name}", _CALLS[name]
    if name == "replace" and not (len(operands) > 1 and operands[1].get("type") == "string" and operands[1]["value"]):
        yield "it may replace the empty text, of which Wasm finds no end", "write what is replaced as a constant"
    if name == "strings.replace_n":
        pairs = operands[0].get("value") if operands and operands[0].get("type") == "object" else None
        if not pairs or any(key.get("type") != "string" or not key["value"] for key, _ in pairs):
            yield "it may replace the empty text, of which Wasm finds no end", "write an object of constant keys"
    if name == "glob.match":
        pattern, delimiters = operands[0], operands[1] if len(operands) > 1 else {}
        if pattern.get("type") == "string" and not _GLOB.fullmatch(str(pattern["value"])):
            yield "engines read its pattern differently", "use letters, digits, ?, *, [], {} and plain punctuation"
        for part in (delimiters.get("value") or []) if delimiters.get("type") == "array" else []:
            if part.get("type") == "string" and not _DELIMITER.fullmatch(str(part["value"])):
                yield f"{part['value']!r} is no delimiter of both engines", "use one of . / : _ , @ # -"
