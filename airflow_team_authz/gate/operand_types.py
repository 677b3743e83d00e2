"""Proof that every operand of a team's built-ins has a type that the built-in accepts.

OPA's checker lets a call pass if an operand *may* have the right type; a value of another type then is an error on an
OPA server, and no value in Wasm. So each operand is checked once more, as that of a probe: a function that takes every
type but the right one. Where the checker refuses the probe, the operand cannot have another type.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from airflow_team_authz.gate.findings import Finding
from airflow_team_authz.gate.modules import Module, rule_name
from airflow_team_authz.gate.rego_ast import SCALARS, Node, bound, names, operator, plain

Type = dict[str, Any]
# Files with probes in them, and the capabilities that declare these: what OPA's checker says.
Checker = Callable[[dict[str, str], Type], str]

_ANY: Type = {"type": "any"}
_EVERY_TYPE: dict[str, Type] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "array": {"type": "array", "dynamic": _ANY},
    "set": {"type": "set", "of": _ANY},
    "object": {"type": "object", "dynamic": {"key": _ANY, "value": _ANY}},
}
# What engines write alike, as a reason or in a text.
_SCALAR: Type = {"type": "any", "of": [_EVERY_TYPE[kind] for kind in ("string", "number", "boolean", "null")]}
_GUARDS = {f"is_{kind}": kind for kind in _EVERY_TYPE}
_SETS = {"args": [_EVERY_TYPE["set"]] * 2, "result": _EVERY_TYPE["set"], "type": "function"}
# What of a term is looked at in its own way.
_WALKED = {"location", "body", "domain", "else"}
# Built-ins that hand on what they are given, of which OPA does not say that it has the same type still.
_HANDED_ON = {"and": 1, "array.concat": 2, "array.reverse": 1, "array.slice": 1, "minus": 1, "or": 2, "sort": 1}
_OPENING = re.compile(r"[)\s]*\{")
_REFUSED = re.compile(r"probe\.p(\d+): invalid argument")


class Place(NamedTuple):
    """Where a term is, and how it is written."""

    file: str
    row: int
    column: int
    text: str


class Operand(NamedTuple):
    """A term of a call, where it is, and the type that it has to have; ``argument``: it is one of a function's own."""

    place: Place
    callee: str
    type: str
    argument: tuple[str, int] | None


class Guard(NamedTuple):
    """The type of a term that earlier lines of the body prove: ``is_string(x)``."""

    kind: str
    term: str
    names: frozenset[str]


class Knowledge(NamedTuple):
    """Knowledge at the place of a term: types from guards, and the terms that variables stand for."""

    guards: frozenset[Guard] = frozenset()
    terms: Mapping[str, tuple[Node, Knowledge]] = {}

    def inside(self, hidden: set[str]) -> Knowledge:
        """The same in a body that has variables of its own."""
        guards = frozenset(guard for guard in self.guards if not guard.names & hidden)
        return Knowledge(guards, {name: term for name, term in self.terms.items() if name not in hidden})

    def after(self, expression: Node) -> Knowledge:
        """And after an expression of the body."""
        terms = expression.get("terms")
        if not isinstance(terms, list) or expression.get("negated") or expression.get("with"):
            return self
        called, *operands = terms
        name = operator(called)
        if name in _GUARDS and len(operands) == 1:
            guard = Guard(_GUARDS[name], json.dumps(plain(operands[0])), frozenset(names(operands[0])))
            return self._replace(guards=self.guards | {guard})
        if name == "assign" and operands[0].get("type") == "var":
            return self._replace(terms={**self.terms, str(operands[0]["value"]): (operands[1], self)})
        return self

    def says(self, term: Node, type_: Type) -> bool:
        """Whether a guard has said that the term has the type."""
        told = json.dumps(plain(term))
        return any(guard.term == told and _EVERY_TYPE[guard.kind] in _members(type_) for guard in self.guards)


def operand_findings(
    modules: list[Module], sources: Mapping[str, str], capabilities: Mapping[str, Any], check: Checker
) -> Iterator[Finding]:
    """Every operand of which no type can be proven. ``sources``: the text of each module, by its name."""
    # Of what a team may subtract, which is sets: OPA declares numbers too.
    builtins = [one | ({"decl": _SETS} if one["name"] == "minus" else {}) for one in capabilities["builtins"]]
    collected = _Collected(modules, builtins)
    pending, refused = collected.operands(), list[Operand]()
    while pending:
        # One at a place, since a probe has the type that it asks for.
        round_ = list({operand.place: operand for operand in pending}.values())
        probes = [{"name": f"probe.p{i}", "decl": _probe(operand.type)} for i, operand in enumerate(round_)]
        probed = {name: _edited(text, _edits(text, name, round_, collected.every)) for name, text in sources.items()}
        told = check(probed, {**capabilities, "builtins": builtins + probes})
        # What a refused probe hands on has no type for what comes after it, which is proven in the next round. Where no
        # probe is refused, none of them can be.
        proven = {round_[int(number)] for number in _REFUSED.findall(told)}
        refused += [] if proven else round_
        done = proven or set(round_)
        pending = [operand for operand in pending if operand not in done]
    for operand in refused:
        term, type_ = operand.place.text[:60], json.loads(operand.type)
        kinds = [member["type"] for member in _members(type_)]
        told = f"{term} may have another type than {operand.callee} takes, {_told(type_)}"
        is_ = f"is_{'array' if 'array' in kinds else kinds[0]}({term})"
        help_ = f"read a value of one type, or write {is_} before it, in the same body"
        yield Finding("operand-type", operand.place.file, operand.place.row, told, help_)


class _Collected:
    """The operands of all rules. What a function demands of its arguments is demanded of each call of it."""

    def __init__(self, modules: list[Module], builtins: list[Node]) -> None:
        self._modules = [module for module in modules if not module.name.endswith("_test.rego")]
        self._definitions = Counter(
            (module.package, rule_name(rule)) for module in self._modules for rule in module.rules
        )
        self._builtins = {one["name"]: _nameless(one["decl"].get("args") or []) for one in builtins}
        # Of a set, engines take texts in different orders.
        self._builtins["concat"] = [_EVERY_TYPE["string"], _EVERY_TYPE["array"] | {"dynamic": _EVERY_TYPE["string"]}]
        self._demands: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._file = self._function = ""
        self._arguments: dict[str, int] = {}
        self._known = Knowledge()
        self._seen: set[tuple[str, int, str]] = set()
        # Each `every`, and what it looks at.
        self.every: dict[Place, Place] = {}

    def operands(self) -> list[Operand]:
        """Operands that need a proof of their type. The search ends, since Rego's functions are not recursive."""
        while True:
            self._seen.clear()
            found = dict.fromkeys(operand for module in self._modules for operand in self._module(module))
            before = sum(map(len, self._demands.values()))
            for operand in found:
                if operand.argument:
                    self._demands[operand.argument].add(operand.type)
            if sum(map(len, self._demands.values())) == before:
                return [operand for operand in found if not operand.argument]

    def _module(self, module: Module) -> Iterator[Operand]:
        self._file = module.name
        # A rule that has one definition, in whichever file, is what it is defined as.
        self._known = Knowledge(
            terms={
                name: (rule["head"]["value"], _entered(rule, Knowledge())[0])
                for rule in module.rules
                if self._definitions[module.package, name := rule_name(rule)] == 1
                and rule["head"].keys() & {"value", "key", "args"} == {"value"}
                and not (rule.get("else") or rule.get("default") or len(rule["head"]["ref"]) > 1)
            }
        )
        for rule in module.rules:
            reference = rule["head"].get("ref") or [{}]
            self._function = str(reference[-1].get("value"))
            yield from self._rule(rule)

    def _rule(self, rule: Node) -> Iterator[Operand]:
        arguments = rule["head"].get("args") or []
        inside = _closures(rule)
        self._arguments = {
            str(argument["value"]): i
            for i, argument in enumerate(arguments)
            if argument.get("type") == "var" and argument["value"] not in inside
        }
        known = self._known.inside(names(arguments))
        yield from self._terms(rule, known)
        if self._function in {"allow", "deny"} and "key" in rule["head"]:
            yield from self._demanded("a reason", rule["head"]["key"], _SCALAR, _entered(rule, known)[0])
        if rule.get("else"):
            yield from self._rule({"head": {"args": arguments}} | rule["else"])

    def _terms(self, node: Any, known: Knowledge) -> Iterator[Operand]:
        if isinstance(node, list):
            for part in node:
                yield from self._terms(part, known)
        if not isinstance(node, dict):
            return
        call = node.get("value") if node.get("type") == "call" else node.get("terms")
        if isinstance(call, list):
            yield from self._call(call, known)
        if node.get("type") == "templatestring":
            for part in node["value"]["parts"]:
                if "terms" in part:
                    yield from self._demanded("a text", _whole(part), _SCALAR, known)
        if "domain" in node:
            # What `every` looks at is not in its body.
            yield from self._terms(node["domain"], known)
            self.every[_place(self._file, node)] = _place(self._file, node["domain"])
        known, expressions = _entered(node, known)
        for expression, before in expressions:
            yield from self._terms(expression, before)
        yield from self._terms([part for key, part in node.items() if key not in _WALKED], known)

    def _call(self, call: list[Node], known: Knowledge) -> Iterator[Operand]:
        name = operator(call[0])
        for position, term in enumerate(call[1:]):
            for type_ in self._types(name, position):
                yield from self._demanded(name, term, type_, known)

    def _demanded(self, callee: str, term: Node, type_: Type, known: Knowledge) -> Iterator[Operand]:
        """The demand that a term has a type, passed on to the terms that it consists of."""
        todo = [(term, type_, known)]
        while todo:
            term, type_, known = todo.pop()
            kind, value, told = str(term.get("type")), term.get("value"), json.dumps(type_, sort_keys=True)
            if (callee, id(term), told) in self._seen or known.says(term, type_) or _is_constant(term, type_):
                continue
            self._seen.add((callee, id(term), told))
            if kind == "var" and value in known.terms:
                term, known = known.terms[str(value)]
                todo.append((term, type_, known))
            elif parts := _parts(term, type_):
                known, _ = _entered(value if isinstance(value, dict) else {}, known)
                todo += [(part, inner, known) for part, inner in parts if _complement(inner)]
            else:
                argument = self._arguments.get(str(value)) if kind == "var" else None
                whose = None if argument is None else (self._function, argument)
                yield Operand(_place(self._file, term), callee, told, whose)

    def _types(self, name: str, position: int) -> list[Type]:
        # A function may have the name of a built-in.
        declared = [type_ for type_ in self._builtins.get(name, [])[position : position + 1] if _complement(type_)]
        return declared + [json.loads(type_) for type_ in sorted(self._demands[name.rpartition(".")[2], position])]


def _whole(expression: Node) -> Node:
    """An expression in a template as the term that it is."""
    terms: Any = expression["terms"]
    return {"type": "call", "value": terms, "location": expression["location"]} if isinstance(terms, list) else terms


def _nameless(types: Any) -> Any:
    """Without the names and descriptions that operands have beside their types."""
    if isinstance(types, dict):
        return {key: _nameless(part) for key, part in types.items() if key not in {"name", "description"}}
    return [_nameless(part) for part in types] if isinstance(types, list) else types


def _entered(node: Node, known: Knowledge) -> tuple[Knowledge, list[tuple[Node, Knowledge]]]:
    """Knowledge after the body of a rule, comprehension or `every`; its expressions, each with that before it."""
    body = node.get("body")
    if not isinstance(body, list):
        return known, []
    known = known.inside(bound(body) | names([node.get("key"), node.get("value")] if "domain" in node else []))
    expressions = []
    for expression in body:
        expressions.append((expression, known))
        known = known.after(expression)
    return known, expressions


def _parts(term: Node, type_: Type) -> list[tuple[Node, Type]]:
    """The terms that a term is made of, and the types that they have to have for it to have this one."""
    kind, value = str(term.get("type")), term.get("value")
    inner = {member["type"]: member.get("of") or member.get("dynamic") or _ANY for member in _members(type_)}
    if kind in {"array", "set"} and kind in inner:
        return [(part, inner[kind]) for part in value or []]
    if kind in {"arraycomprehension", "setcomprehension"} and (of := inner.get(kind.removesuffix("comprehension"))):
        return [((value or {}).get("term") or {}, of)]
    if kind == "call" and (handed := _HANDED_ON.get(name := operator((value or [{}])[0]))):
        if name == "sort" and (of := inner.get("array")):
            type_ = {"type": "any", "of": [{"type": "array", "dynamic": of}, {"type": "set", "of": of}]}
        return [(part, type_) for part in (value or [])[1 : handed + 1]]
    return []


def _is_constant(term: Node, type_: Type) -> bool:
    """A constant of the type; of arrays, sets and objects, an empty one."""
    kind = term.get("type")
    return kind in {member["type"] for member in _members(type_)} and (kind in SCALARS or not term.get("value"))


def _closures(node: Any) -> set[str]:
    """Variables that comprehensions declare, and that may hide an argument."""
    if isinstance(node, list):
        return set().union(*map(_closures, node), set())
    if not isinstance(node, dict):
        return set()
    own = bound(node["value"].get("body")) if str(node.get("type")).endswith("comprehension") else set()
    if "domain" in node:
        own |= bound(node.get("body")) | names([node.get("key"), node.get("value")])
    return own.union(*(_closures(part) for key, part in node.items() if key != "location"))


def _members(type_: Type) -> list[Type]:
    return list(type_.get("of") or []) if type_["type"] == "any" else [type_]


def _complement(type_: Type) -> Type | None:
    """Every type but this one; ``None`` if there is no other."""
    members = _members(type_)
    if not members:
        return None
    others = [other for kind, other in _EVERY_TYPE.items() if kind not in {member["type"] for member in members}]
    for member in members:
        if member["type"] == "set" and (other := _complement(member["of"])):
            others.append({"type": "set", "of": other})
        if member["type"] == "array" and (other := _complement(member.get("dynamic", _ANY))):
            others.append({"type": "array", "dynamic": other})
        if member["type"] == "object":
            dynamic = member.get("dynamic", {"key": _ANY, "value": _ANY})
            parts = {part: _complement(type_) for part, type_ in dynamic.items()}
            others += [
                _EVERY_TYPE["object"] | {"dynamic": {"key": _ANY, "value": _ANY} | {part: other}}
                for part, other in parts.items()
                if other
            ]
    return {"type": "any", "of": others}


def _probe(type_: str) -> Type:
    right = json.loads(type_)
    return {"type": "function", "args": [_complement(right)], "result": right}


def _place(file: str, node: Node) -> Place:
    at = node.get("location") or {}
    text = b64decode(at.get("text", "")).decode()
    if text[:1] in {"]", "}"} and node.get("type") == "ref":
        # Of `[a, b][0]` the place is right, and the text is what comes after the array.
        text = _place(file, node["value"][0]).text[:-1] + text
    return Place(file, int(at.get("row", 1)), int(at.get("col", 1)), text)


class Edit(NamedTuple):
    """Characters to replace; of two at one position, the one that is to come first has the smaller ``order``."""

    position: int
    order: int
    length: int
    text: str


def _edits(text: str, file: str, operands: list[Operand], every: Mapping[Place, Place]) -> Iterator[Edit]:
    """Edits that put a probe around each operand, and rewrite `every` to a form that OPA's checker inspects."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)

    def begin(place: Place) -> int | None:
        """Where a term begins, if it is there; of what is in parentheses, the place is said to be after them."""
        before = len(place.text) - len(place.text.lstrip("( \t\n"))
        position = starts[place.row - 1] + place.column - 1 - before
        return position if text.startswith(place.text, max(position, 0)) else None

    for number, operand in enumerate(operands):
        if operand.place.file == file and (start := begin(operand.place)) is not None:
            length = len(operand.place.text)
            # Of those that begin at one place the longest begins first; of those that end there, the shortest ends.
            yield Edit(start, 1_000_000 - length, 0, f"probe.p{number}(")
            yield Edit(start + length, length - 1_000_000, 0, ")")
    for keyword, domain in every.items():
        if keyword.file != file or (start := begin(keyword)) is None or (over := begin(domain)) is None:
            continue
        if opening := _OPENING.match(text, over + len(domain.text)):
            yield Edit(start, 0, len("every"), "{1 | some")
            yield Edit(opening.end() - 1, 0, 1, ";")


def _edited(text: str, edits: Iterable[Edit]) -> str:
    for position, _, length, put in sorted(edits, reverse=True):
        text = text[:position] + put + text[position + length :]
    return text


def _told(type_: Type) -> str:
    inner = type_.get("of") if type_["type"] == "set" else type_.get("dynamic") if type_["type"] == "array" else None
    if inner and _complement(inner):
        return f"{type_['type']} of {_told(inner)}"
    return " or ".join(map(_told, _members(type_))) if type_["type"] == "any" else str(type_["type"])
