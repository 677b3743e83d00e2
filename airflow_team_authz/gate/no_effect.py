"""Rules that cannot have an effect: what they compare the question with is never asked.

OPA's type checker takes a field for any text, so neither a misspelt word nor a pair that no door asks about is an error
to it. What is asked is here as one table, on the generous side: a plugin may ask what Airflow itself does not.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any

from airflow_team_authz.gate.findings import WARNING, Finding
from airflow_team_authz.gate.rego_ast import Node, operator, row
from airflow_team_authz.opa.compile import shipped_policies

Field = tuple[str, ...]
Words = frozenset[str | None]

_SUBJECT, _ACTION, _TYPE, _ENTITY = ("subject", "type"), ("action",), ("resource", "type"), ("resource", "entity")
_TEAM, _ID = ("resource", "team_id"), ("resource", "id")
_ASKED = (_SUBJECT, _ACTION, _TYPE, _ENTITY)
# Any verb of a plugin's own page, and the absence of a field.
_VERB, _ABSENT = "any other verb", None
_CRUD = frozenset({"list", "read", "create", "update", "delete"})
ACTIONS = _CRUD | {"use", "trigger", "menu"}
# What belongs to no team, so that no team's rules are asked about it.
ALWAYS_COMMON = frozenset({"configuration", "custom_view", "hitl_task", "platform_view", "route", "view"})
# As the shipped guardrails have it.
_FOR_PEOPLE = ALWAYS_COMMON | {"team"}
_READING = frozenset({"dag_processor", "triggerer"})
_AUDITED = frozenset({"asset", "asset_alias", "connection", "dag", "pool", "variable"})
_PARTS = {"audit_log": _AUDITED, "event": frozenset({"asset", "asset_alias"}), "state": frozenset({"asset"})}
_EQUAL, _MEMBER = {"equal", "eq"}, {"internal.member_2", "internal.member_3"}
_MAX_CHOICES = 4


def is_asked(subject: str, action: str, type_: str, entity: str | None) -> bool:
    """Whether there may be such a question, and an answer to it that rules decide; ``entity``: ``None`` is absent."""
    if entity is not None and type_ not in _PARTS.get(entity, {"dag"}):
        return False
    if subject != "user" and type_ in _FOR_PEOPLE:
        return False
    if action == "use":
        return type_ == "pool" and entity is None and subject in {"task", "dag_processor"}
    if action == "trigger":
        return (type_, entity) in {("dag", "run"), ("asset", "event")} and subject not in _READING
    if subject == "watcher":
        return False
    if action in {"menu", _VERB}:
        return type_ == "custom_view"
    if subject in _READING and action in {"create", "update", "delete"}:
        return subject == "triggerer" and (type_, entity) == ("asset", "state")
    only = {"hitl_task": {"update"}, "view": {"list", "read"}}
    return action in only.get(type_, _CRUD)


@cache
def vocabulary() -> Mapping[Field, frozenset[str]]:
    """The words that a field may have."""
    question = json.loads((shipped_policies() / "schemas/input.json").read_text(encoding="utf-8"))["properties"]
    enums = {field: question[field[0]]["properties"][field[1]]["enum"] for field in (_SUBJECT, _TYPE, _ENTITY)}
    return {_ACTION: ACTIONS, **{field: frozenset(words) for field, words in enums.items()}}


def no_effect(name: str, tree: Node, constants: Mapping[str, Node] | None = None) -> Iterator[Finding]:
    """Findings about rules without an effect, in a file as ``opa parse`` prints it.

    ``constants`` are values of rules of its package in other files, by their names, see ``constants_of``.
    """
    package = [str(part.get("value")) for part in (tree.get("package") or {}).get("path") or []][1:]
    team_id = package[1] if package[:1] == ["teams"] and len(package) > 1 else None
    scope = _Scope({**(constants or {}), **constants_of(tree)}, _imports(tree))
    todo = list(tree.get("rules") or [])
    while todo:
        rule = todo.pop(0)
        yield from _Rule(name, rule, scope, team_id).findings()
        todo += [rule["else"]] if rule.get("else") else []


def constants_of(tree: Node) -> dict[str, Node]:
    """The rules of a file that are one value whatever is asked, or one part of the question, by their names."""
    found: dict[str, list[Node]] = {}
    for rule in tree.get("rules") or []:
        head, body = rule.get("head") or {}, rule.get("body") or []
        always = [part.get("terms") for part in body]
        fixed = all(isinstance(part, dict) and part.get("value") is True for part in always) and not rule.get("else")
        plain = len(head.get("ref") or []) == 1 and "key" not in head and not head.get("args")
        found.setdefault(str((head.get("ref") or [{}])[0].get("value")), []).append(
            head["value"] if fixed and plain and isinstance(head.get("value"), dict) else {}
        )
    return {name: values[0] for name, values in found.items() if len(values) == 1 and values[0]}


def _imports(tree: Node) -> dict[str, Field]:
    found = {}
    for imported in tree.get("imports") or []:
        path = [part.get("value") for part in (imported.get("path") or {}).get("value") or []]
        if path[:1] == ["input"] and len(path) > 1:
            found[str(imported.get("alias") or path[-1])] = tuple(map(str, path[1:]))
    return found


class _Scope:
    """The meaning of names: parts of the question, and sets of words."""

    def __init__(self, constants: Mapping[str, Node], fields: Mapping[str, Field]) -> None:
        self._constants, self._fields = dict(constants), dict(fields)

    def within(self, body: Iterable[Node], arguments: Iterable[Any]) -> _Scope:
        """The same in a rule, which may hide names by its arguments, and give names by ``:=`` and ``some``."""
        inner = _Scope(self._constants, self._fields)
        for argument in arguments:
            inner._hide(argument)
        for expression in body:
            terms = expression.get("terms")
            if isinstance(terms, list) and len(terms) == 3 and operator(terms[0]) == "assign":
                inner._give(terms[1], terms[2], terms[2].get("type") == "ref")
            symbols = (terms.get("symbols") or []) if isinstance(terms, dict) else []
            for symbol in symbols:
                called = symbol.get("value") if symbol.get("type") == "call" else None
                if called and operator(called[0]) == "internal.member_2":
                    inner._give(called[1], {"type": "set", "of": called[2]}, False)
                inner._hide(symbol)
            if isinstance(terms, dict) and "domain" in terms:
                inner._give(terms.get("value") or {}, {"type": "set", "of": terms["domain"]}, False)
        return inner

    def _hide(self, term: Any) -> None:
        if isinstance(term, dict) and term.get("type") == "var":
            self._constants.pop(str(term["value"]), None)
            self._fields.pop(str(term["value"]), None)

    def _give(self, variable: Node, value: Node, is_reference: bool) -> None:
        if variable.get("type") != "var":
            return
        field = self.field(value) if is_reference else None
        self._hide(variable)
        if field:
            self._fields[str(variable["value"])] = field
        else:
            self._constants[str(variable["value"])] = value

    def field(self, term: Node) -> Field | None:
        """The part of the question that a term is."""
        parts = [term] if term.get("type") == "var" else term.get("value") if term.get("type") == "ref" else None
        if not isinstance(parts, list) or not parts or parts[0].get("type") != "var":
            return None
        name = str(parts[0].get("value"))
        if any(part.get("type") != "string" for part in parts[1:]):
            return None
        rest = tuple(str(part["value"]) for part in parts[1:])
        if name == "input":
            return rest or None
        if name in self._fields:
            return self._fields[name] + rest
        constant = self._constants.get(name)
        if constant is None or constant.get("type") != "ref":
            return None
        begun = _Scope({}, self._fields).field(constant)
        return begun + rest if begun else None

    def words(self, term: Node) -> Words | None:
        """The only texts, or null, that a term may be; ``None``: it may be others."""
        kind, value = term.get("type"), term.get("value")
        if kind == "string":
            return frozenset({str(value)})
        if kind == "null":
            return frozenset({_ABSENT})
        if kind == "set" and "of" in term:
            return self.members(term["of"])
        if kind == "var" and (constant := self._constants.get(str(value))) is not None:
            return _Scope({}, {}).words(constant) if "of" not in constant else self.members(constant["of"])
        if kind == "ref" and isinstance(value, list) and len(value) == 2 and value[1].get("type") == "var":
            # `{"a", "b"}[_]`, and the same of a name.
            return self.members(value[0])
        return None

    def members(self, term: Node) -> Words | None:
        """The only texts that a collection has."""
        if term.get("type") == "var":
            term = self._constants.get(str(term.get("value"))) or {}
        if term.get("type") not in {"set", "array"} or not isinstance(term.get("value"), list):
            return None
        parts = [self.words(part) for part in term["value"]]
        return None if None in parts else frozenset().union(*(part for part in parts if part is not None))


class _Rule:
    """A rule, and the words with which it compares the question."""

    def __init__(self, file: str, rule: Node, scope: _Scope, team_id: str | None) -> None:
        head = rule.get("head") or {}
        self._file, self._rule, self._team_id = file, rule, team_id
        self._body: list[Node] = rule.get("body") or []
        self._scope = scope.within(self._body, head.get("args") or [])
        self._line = row(rule, row(head, 1))

    def findings(self) -> Iterator[Finding]:
        """A word that is misspelt, or else a question that nobody asks."""
        told = dict.fromkeys(self._unknown(self._rule, self._scope, self._line))
        yield from told or dict.fromkeys(self._in_vain())

    def _found(self, rule: str, line: int, message: str, help_: str, level: str = "error") -> Finding:
        return Finding(rule, self._file, line, message, help_, level)

    def _unknown(self, node: Any, scope: _Scope, line: int) -> Iterator[Finding]:
        if isinstance(node, list):
            for part in node:
                yield from self._unknown(part, scope, line)
        elif isinstance(node, dict):
            line = row(node, line)
            for field, words in _comparisons(node, scope):
                yield from self._misspelt(field, words, line)
            if isinstance(node.get("body"), list) and node is not self._rule:
                # A comprehension, or `every`.
                scope = scope.within([*node["body"], {"terms": node}], [])
            for key, part in node.items():
                if key not in {"location", "else"}:
                    yield from self._unknown(part, scope, line)

    def _misspelt(self, field: Field, words: Words, line: int) -> Iterator[Finding]:
        known = vocabulary().get(field)
        if known is None:
            return
        types = self._domains().get(_TYPE, frozenset())
        for word in sorted(str(word) for word in words if word is not None):
            if word in known or (field == _ACTION and types == {"custom_view"}):
                continue
            certain = field != _ACTION or "custom_view" not in types
            name = ".".join(("input", *field))
            told = f"{name} is never {word[:60]!r}" + ("" if certain else ", but for a plugin's own page")
            near = difflib.get_close_matches(word.lower(), sorted(known), n=1)
            help_ = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            level = "error" if certain else WARNING
            yield self._found("no-effect", line, told, help_, level)

    def _domains(self) -> dict[Field, Words]:
        """The possible words of each part of the question where the rule is true."""
        may_be: dict[Field, Words] = {field: frozenset(words) for field, words in vocabulary().items()}
        may_be[_ACTION] |= {_VERB}
        may_be[_ENTITY] |= {_ABSENT}
        for expression in self._body:
            terms, negated = expression.get("terms"), bool(expression.get("negated"))
            if isinstance(terms, dict) and self._scope.field(terms) == _ENTITY:
                may_be[_ENTITY] &= {_ABSENT} if negated else vocabulary()[_ENTITY]
            name = operator(terms[0]) if isinstance(terms, list) and terms else ""
            for field, words in _comparisons(expression, self._scope):
                if field not in may_be:
                    continue
                named = words - {None}
                if field == _ACTION and (name == "neq") == negated:
                    named = frozenset(word if word in ACTIONS else _VERB for word in named)
                if (name == "neq") == negated:
                    may_be[field] &= named | ({_ABSENT} if negated else frozenset())
                elif not _pairs(expression) and (len(named) == 1 or name not in _EQUAL | {"neq"}):
                    # Of several words, being unlike one of them says nothing of the others.
                    may_be[field] -= named | (frozenset() if negated else {_ABSENT})
        return may_be

    def _in_vain(self) -> Iterator[Finding]:
        may_be = self._domains()
        asked = [
            question
            for question in product(*(sorted(may_be[field], key=str) for field in _ASKED))
            if is_asked(*question)  # type: ignore[arg-type]
        ]
        if not asked:
            told = f"nothing is asked, or left to rules to decide, with {self._shown(may_be)}"
            yield self._found("no-effect", self._line, told, self._way_out(may_be))
            return
        if {question[1:] for question in asked} == {("create", "dag", "run")}:
            told = "a run that somebody starts is asked about as trigger, and hardly ever as create"
            yield self._found("no-effect", self._line, told, 'write `input.action == "trigger"`', WARNING)
        yield from self._of_names({question[2] for question in asked})
        if self._team_id is not None:
            yield from self._of_another_team({question[2] for question in asked})

    def _of_names(self, types: set[str | None]) -> Iterator[Finding]:
        if not types <= {"connection", "variable"}:
            return
        for expression in self._body:
            for field, words in _comparisons(expression, self._scope):
                if field == _ID and any("___" in str(word) for word in words):
                    told = "a name with ___ is looked for in Airflow's database alone: elsewhere it means another team"
                    yield self._found(
                        "no-effect", row(expression, self._line), told, "give it a name without ___", WARNING
                    )

    def _of_another_team(self, types: set[str | None]) -> Iterator[Finding]:
        own = f"the rules of team {self._team_id} are asked about what the team owns"
        if types <= ALWAYS_COMMON:
            told = f"{_listed(types)} belongs to no team, so no team's rules are asked about it"
            yield self._found("no-effect", self._line, told, "let the platform team write it into airflow/site")
        for expression in self._body:
            terms = expression.get("terms")
            if not isinstance(terms, list) or expression.get("negated") or operator(terms[0]) == "neq":
                continue
            for field, words in _comparisons(expression, self._scope):
                if field == _TEAM and self._team_id not in words:
                    told = f"{own}: input.resource.team_id is never {_listed(words)}"
                    help_ = "leave the line out, or let the other team, or the platform team, write the rule"
                    yield self._found("no-effect", row(expression, self._line), told, help_)

    def _shown(self, may_be: Mapping[Field, Words]) -> str:
        """The combination in the rule that no question has."""
        everything = vocabulary()
        parts = []
        for field in _ASKED:
            rest = may_be[field] - {_VERB, _ABSENT}
            if rest != everything[field]:
                name = ".".join(("input", *field))
                parts.append(f"{name} {_listed(may_be[field])}" if may_be[field] else f"two things as {name}")
        return ", ".join(parts)[:300]

    @staticmethod
    def _way_out(may_be: Mapping[Field, Words]) -> str:
        types = sorted(str(word) for word in may_be[_TYPE])
        if len(types) != 1:
            return "correct what the rule compares, or leave the rule out"
        subjects, entities = may_be[_SUBJECT], may_be[_ENTITY]
        actions = sorted(
            action
            for action in ACTIONS
            if any(is_asked(str(who), action, types[0], part) for who in subjects for part in entities)
        )
        who = f" by a {next(iter(subjects))}" if len(subjects) == 1 else ""
        what = f"{types[0]} ({next(iter(entities))})" if len(entities) == 1 and None not in entities else types[0]
        asked = ", ".join(actions) or "no action"
        return f"what is asked{who} about {what}: {asked}"


def _comparisons(expression: Node, scope: _Scope) -> Iterator[tuple[Field, Words]]:
    """The parts of the question that an expression compares with constant words, and the words."""
    terms = expression.get("terms") if isinstance(expression.get("terms"), list) else None
    if terms is None and expression.get("type") == "call":
        terms = expression.get("value")
    if isinstance(terms, list) and len(terms) == 3:
        called, left, right = terms
        name = operator(called) if isinstance(called, dict) else ""
        if name in _EQUAL | {"neq"}:
            for one, other in ((left, right), (right, left)):
                pairs = _both_arrays(one, other)
                for part, with_ in pairs or [(one, other)]:
                    field, words = scope.field(part), scope.words(with_)
                    if field and words is not None:
                        yield field, words
        elif name in _MEMBER:
            field, words = scope.field(left), scope.members(right)
            if field and words is not None:
                yield field, words
    reference = expression.get("terms") if isinstance(expression.get("terms"), dict) else expression
    if isinstance(reference, dict) and reference.get("type") == "ref" and len(reference.get("value") or []) == 2:
        # `{"read", "list"}[input.action]`
        collection, key = reference["value"]
        field, words = scope.field(key), scope.members(collection)
        if field and words is not None and collection.get("value") != "input":
            yield field, words


def _both_arrays(one: Node, other: Node) -> list[tuple[Node, Node]]:
    if one.get("type") == other.get("type") == "array" and len(one.get("value") or []) == len(other.get("value") or []):
        return list(zip(one["value"], other["value"], strict=True))
    return []


def _pairs(expression: Node) -> bool:
    """Whether several parts are compared at once, so that being unlike says nothing of each."""
    terms = expression.get("terms")
    return isinstance(terms, list) and len(terms) == 3 and bool(_both_arrays(terms[1], terms[2]))


def _listed(words: Iterable[str | None]) -> str:
    shown = ["null" if word is None else word for word in sorted(words, key=str)]
    more = f" and {len(shown) - _MAX_CHOICES} more" if len(shown) > _MAX_CHOICES else ""
    return " or ".join(shown[:_MAX_CHOICES]) + more
