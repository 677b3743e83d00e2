"""A team's Rego as OPA has parsed it: what it reads, what it declares, and that it is pure and total.

Whatever is not known here is refused, so that new syntax cannot slip by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from airflow_team_authz.bundles.findings import Finding

Node = dict[str, Any]

MAX_RULES = 500
MAX_DEPTH = 192
READABLE = (
    ("airflow", "authz", "standing", "team_ids"),
    ("airflow", "authz", "standing", "team_roles"),
    ("airflow", "authz", "standing", "platform_roles"),
    ("airflow", "directory"),
    ("airflow", "roles"),
)
_STANDING = ("airflow", "authz", "standing")
_ENTRIES = {"allow", "deny"}
SCALARS = {"string", "number", "boolean", "null"}
_COMPREHENSIONS = {"arraycomprehension", "setcomprehension", "objectcomprehension"}
_TERMS = SCALARS | _COMPREHENSIONS | {"var", "ref", "array", "object", "set", "call", "templatestring"}
# The engines compute and print other numbers than these differently.
_ARITHMETIC = {"abs", "ceil", "floor", "mul", "plus", "product", "round", "sum"}
_EXACT = 2**53
# Arguments that have to be constants, or the built-in may fail.
_PATTERNS = {"regex.match": (0,), "glob.match": (0, 1)}
_MEMBER = ("internal.member_2", "internal.member_3")


class Pattern(NamedTuple):
    """A constant pattern in a call, to be tried."""

    builtin: str
    text: str
    file: str
    line: int


class Module:
    """A file of rules, as ``opa parse --format json --json-include locations`` shows it."""

    def __init__(self, name: str, tree: Node, team_id: str) -> None:
        self.name = name
        self.rules: list[Node] = tree.get("rules") or []
        self.patterns: list[Pattern] = []
        self.reads_own_data = False
        # Every constant text in it, among them the names of all claims that it reads.
        self.texts: set[str] = set()
        self._team_id = team_id
        self._own = ("teams", team_id)
        self._tree = tree
        self._aliases: dict[str, tuple[str | None, ...]] = {}
        self._line = 1
        # Names that have one value where the walk is: rules, imports, and variables bound further out.
        self._fixed = {"data", "input"} | {_rule_name(rule) for rule in self.rules}
        self.package = _path((tree.get("package") or {}).get("path") or [])

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong with the file on its own."""
        yield from self._package()
        if self.name.endswith("_test.rego"):
            return
        for imported in self._tree.get("imports") or []:
            yield from self._import(imported)
        for annotation in self._tree.get("annotations") or []:
            yield from self._annotation(annotation)
        for rule in self.rules:
            yield from self._rule(rule)

    def _found(self, rule: str, message: str, help_: str) -> Finding:
        return Finding(rule, self.name, self._line, message, help_)

    def _package(self) -> Iterator[Finding]:
        self._line = _row((self._tree.get("package") or {}), 1)
        tests = ("teams", f"{self._team_id}_test")
        is_test = self.name.endswith("_test.rego")
        if self.package[:2] != self._own and not (is_test and self.package == tests):
            told = f"it declares package {_dotted(self.package)}"
            yield self._found("foreign-package", told, f"declare {_dotted(self._own)}, or a package below it")
        elif len(self.package) > 2 and self.package[2] in {*_ENTRIES, "default_pool"}:
            told = f"a package {self.package[2]} would decide as if it were the rule"
            yield self._found("entry-rule", told, "give the package another name")

    def _import(self, imported: Node) -> Iterator[Finding]:
        reference = imported.get("path") or {}
        self._line = _row(imported, _row(reference, 1))
        value = reference.get("value") or []
        path = _path(value)
        alias = imported.get("alias") or (path[-1] if path else None) or ""
        head = value[0].get("value") if value and isinstance(value[0], dict) else None
        self._fixed.add(str(alias))
        self.texts.update(part for part in path if part is not None)
        if head == "data":
            self._aliases[str(alias)] = path
            if path != _STANDING and not self._readable(path):
                yield self._foreign(path)
        elif head not in {"input", "rego"}:
            yield self._found("unknown-syntax", f"an import of {head}", "import data of your own, or of the allowlist")

    def _annotation(self, annotation: Node) -> Iterator[Finding]:
        """A schema that a team names could make the type checker see less."""
        self._line = _row(annotation, 1)
        for schema in annotation.get("schemas") or []:
            path = _path(schema.get("path") or [], head=True)
            named = _path(schema.get("schema") or [], head=True)
            if (path, named) != (("input",), ("schema", "input")) or "definition" in schema:
                told = f"its metadata says which schema {_dotted(path, '')} has"
                yield self._found(
                    "schema-named", told, "say only `- input: schema.input`: schema.json counts by itself"
                )

    def _rule(self, rule: Node, name: str = "") -> Iterator[Finding]:
        head = rule.get("head") or {}
        self._line = _row(rule, _row(head, 1))
        reference = head.get("ref") or []
        name = name or str(reference[0].get("value") if reference else head.get("name"))
        yield from self._head(rule, head, reference, name)
        outer, self._fixed = self._fixed, self._fixed | _shallow([head, rule.get("body") or []])
        yield from self._walk(rule)
        self._fixed = outer
        yield from self._totality(rule, head)
        if rule.get("else"):
            yield from self._rule({"is_else": True} | rule["else"], name)

    def _head(self, rule: Node, head: Node, reference: list[Node], name: str) -> Iterator[Finding]:
        if any(part.get("type") != "string" for part in reference[1:]) and not self._is_object(head, reference):
            yield self._found(
                "rule-head", f"the head of {name} has a variable in its name", "put it into a set or object"
            )
        if name in _ENTRIES and self.package == self._own and not (_is_set(head) and len(reference) == 1):
            yield self._found(
                "entry-rule", f"{name} is not a set of reasons", f'write `{name} contains "the reason" if …`'
            )
        if name == "default_pool" and self.package == self._own:
            yield self._found("default-pool", "default_pool is a rule", "put it into data.json")
        if name in {"data", "input"} or any(names(argument) & {"data", "input"} for argument in head.get("args") or []):
            yield self._found("shadowing", f"{name} hides data or input", "use another name")
        if self._is_object(head, reference) and not rule.get("is_else"):
            help_ = "write an object comprehension, whose keys cannot have two values"
            yield self._found("partial-object", f"{name} may get two values for one key, which is an error", help_)

    @staticmethod
    def _is_object(head: Node, reference: list[Node]) -> bool:
        # `x.y := 1` has a key too, but a constant one.
        return "key" in head and "value" in head and reference[-1].get("type") != "string"

    def _totality(self, rule: Node, head: Node) -> Iterator[Finding]:
        """Two values of one complete rule are an error, which takes a whole list of questions down."""
        value = head.get("value")
        if value is None or self._is_object(head, head.get("ref") or [{}]):
            return
        arguments = set().union(*(names(argument) for argument in head.get("args") or []), set())
        body = rule.get("body") or []
        single = _single_valued(body, arguments | (self._fixed - bound(body)))
        if open_ := _open(value) - single:
            told = f"its value depends on {', '.join(sorted(open_)[:3])}, of which there may be several"
            yield self._found("may-conflict", told, "collect the values in a set, or take one by max or min")

    def _walk(self, node: Any) -> Iterator[Finding]:
        if isinstance(node, list):
            for part in node:
                yield from self._walk(part)
        elif isinstance(node, dict):
            outer, self._line = self._line, _row(node, self._line)
            yield from self._node(node)
            self._line = outer

    def _node(self, node: Node) -> Iterator[Finding]:
        if node.get("with"):
            yield self._found("with", "`with` is for tests", "pass what differs as an argument of a function")
        kind = node.get("type")
        parts: Any = [part for key, part in node.items() if key not in {"location", "else", "type", "with"}]
        if isinstance(kind, str):
            if kind not in _TERMS:
                yield self._found("unknown-syntax", f"{kind[:40]} is not known here", "write it in another way")
            if kind in SCALARS:
                value = node.get("value")
                if kind == "string":
                    self.texts.add(str(value))
                if kind == "number" and not (isinstance(value, int) and abs(value) <= _EXACT):
                    yield self._found("arithmetic", f"{value} is no exact integer", "write one of 15 digits at most")
                return
            if kind == "var":
                yield from self._name(str(node.get("value")))
                return
            if kind == "ref":
                yield from self._reference(node.get("value") or [])
                parts = (node.get("value") or [])[1:]
            if kind == "call":
                yield from self._call(node.get("value") or [])
            if kind in _COMPREHENSIONS:
                yield from self._comprehension(kind, node.get("value") or {})
                return
        terms = node.get("terms")
        if isinstance(terms, list):
            yield from self._call(terms)
        yield from self._walk(parts)

    def _name(self, name: str) -> Iterator[Finding]:
        if name == "data":
            yield self._foreign(())
        elif name in self._aliases and not self._readable(self._aliases[name]):
            yield self._foreign(self._aliases[name])

    def _reference(self, value: list[Node]) -> Iterator[Finding]:
        head = value[0] if value else {}
        if head.get("type") != "var":
            # What a call or a comprehension gives is looked at itself.
            yield from self._walk(head)
            return
        name = str(head.get("value"))
        if name == "data" or name in self._aliases:
            path = self._aliases.get(name, ()) + _path(value)
            if path[:2] == self._own:
                self.reads_own_data = True
            if not self._readable(path):
                yield self._foreign(path)

    def _readable(self, path: tuple[str | None, ...]) -> bool:
        return path[:2] == self._own or any(path[: len(allowed)] == allowed for allowed in READABLE)

    def _foreign(self, path: tuple[str | None, ...]) -> Finding:
        help_ = f"read input, {_dotted(self._own)}, or {', '.join(map(_dotted, READABLE))}"
        told = "all of data" if not path else _dotted(path, "data.")
        return self._found("foreign-data", f"it reads {told}", help_)

    def _call(self, terms: list[Node]) -> Iterator[Finding]:
        called, *arguments = terms or [{}]
        name = operator(called)
        if name in _ARITHMETIC:
            yield self._found(
                "arithmetic", f"it computes by {name}", "compare numbers as they are: engines compute differently"
            )
        for position in _PATTERNS.get(name, ()):
            argument = arguments[position] if position < len(arguments) else {}
            constant = argument.get("type") == "string" or (
                position == 1
                and (
                    argument.get("type") == "null"
                    or (argument.get("type") == "array" and all(p.get("type") == "string" for p in argument["value"]))
                )
            )
            if not constant:
                yield self._found("pattern", f"the pattern of {name} is no constant", "write it into the call itself")
            elif position == 0:
                self.patterns.append(Pattern(name, str(argument["value"]), self.name, self._line))

    def _comprehension(self, kind: str, value: Node) -> Iterator[Finding]:
        key, body = value.get("key") or {}, value.get("body") or []
        outer = self._fixed
        if kind == "objectcomprehension":
            given = names(key) if key.get("type") == "var" else set()
            single = _single_valued(body, given | (outer - bound(body)))
            if open_ := _open(value.get("value")) - single:
                told = f"a key may have several values of {', '.join(sorted(open_)[:3])}, which is an error"
                yield self._found("may-conflict", told, "make the value a function of the key, or a set")
        self._fixed = outer | _shallow(list(value.values()))
        yield from self._walk(list(value.values()))
        self._fixed = outer


def module_findings(modules: list[Module]) -> Iterator[Finding]:
    """Everything that is wrong with the files together."""
    heads: dict[tuple[object, ...], list[tuple[Module, Node]]] = defaultdict(list)
    for module in modules:
        if not module.name.endswith("_test.rego"):
            for rule in module.rules:
                name = tuple(str(part.get("value")) for part in rule["head"].get("ref") or [])
                heads[(*module.package, *name)].append((module, rule))
    number = sum(map(len, heads.values()))
    if number > MAX_RULES:
        first = modules[0]
        yield Finding("too-large", first.name, 1, f"there are {number} rules", f"{MAX_RULES} may be published")
    for key, rules in heads.items():
        complete = [(module, rule) for module, rule in rules if not _is_set(rule["head"])]
        values = [
            rule["head"].get("value") or {"type": "boolean", "value": True}
            for _, rule in complete
            if not rule.get("default")
        ]
        branches = [rule for _, rule in complete if rule.get("else")]
        same = all(plain(value) == plain(values[0]) and value.get("type") in SCALARS for value in values)
        if len(values) > 1 and (not same or branches):
            module, rule = complete[1]
            told = f"{key[-1]} is defined {len(values)} times, and may get two values, which is an error"
            help_ = "give all definitions one constant value, chain them by else, or collect the values in a set"
            yield Finding("may-conflict", module.name, _row(rule, 1), told, help_)


def too_deep(tree: Any) -> bool:
    """Whether a tree is nested deeper than rules are that people write; without recursion, which has an end itself."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [part for inside in parts for part in inside]
    return bool(level)


def _is_set(head: Node) -> bool:
    return "key" in head and "value" not in head and not head.get("args")


def _single_valued(body: list[Node], given: set[str]) -> set[str]:
    """The variables of a body of which there is one value only, whatever solution there is, if ``given`` have one."""
    single = set(given)
    while True:
        before = len(single)
        for expression in body:
            single |= _determined(expression, single)
        if len(single) == before:
            return single


def _determined(expression: Node, single: set[str]) -> set[str]:
    terms = expression.get("terms")
    if expression.get("negated") or terms is None:
        return set()
    if isinstance(terms, list) and len(terms) == 3 and operator(terms[0]) in {"assign", "eq"}:
        for left, right in ((terms[1], terms[2]), (terms[2], terms[1])):
            if left.get("type") == "var" and not _open(right) - single:
                return {str(left["value"])}
        return set()
    symbols = terms.get("symbols") if isinstance(terms, dict) else None
    if symbols and symbols[0].get("type") == "call":
        called, *arguments = symbols[0]["value"]
        if operator(called) == "internal.member_3":
            key, value, collection = arguments
            if names(key) <= single and value.get("type") == "var" and not _open(collection) - single:
                return names(value)
    return set()


def operator(node: Node) -> str:
    return ".".join(str(part.get("value")) for part in node.get("value") or []) if node.get("type") == "ref" else ""


def _open(term: Any) -> set[str]:
    """The variables that a term's value depends on; of a comprehension, those that it does not bind itself."""
    if isinstance(term, list):
        return set().union(*map(_open, term), set())
    if not isinstance(term, dict):
        return set()
    kind = term.get("type")
    if kind == "var":
        return {str(term["value"])}
    if kind in SCALARS:
        return set()
    if kind in _COMPREHENSIONS:
        inside = bound(term["value"].get("body") or [])
        return {name for name in _open(list(term["value"].values())) - inside if not name.startswith("$")}
    if isinstance(terms := term.get("terms"), list):
        return _open(terms[1:])
    if kind in {"ref", "call"}:
        parts = term.get("value") or []
        # The head is a document, a rule or a built-in, unless it is a local variable.
        head = _open(parts[0]) if kind == "ref" else set()
        return (head - {"data", "input"}) | _open(parts[1:])
    return set().union(*(_open(part) for key, part in term.items() if key != "location"), set())


def bound(body: Any) -> set[str]:
    """The variables that a body declares or leaves open: by some, :=, every, or as a wildcard."""
    found: set[str] = set()
    if isinstance(body, list):
        return found.union(*map(bound, body), set())
    if not isinstance(body, dict):
        return found
    if body.get("type") in _COMPREHENSIONS:
        return found
    if body.get("type") == "var":
        name = str(body.get("value"))
        return {name} if name.startswith("$") else found
    for symbol in body.get("symbols") or []:
        if symbol.get("type") == "call":
            found |= set().union(*map(names, symbol["value"][1:-1]))
        else:
            found |= names(symbol)
    terms = body.get("terms")
    if isinstance(terms, list) and len(terms) == 3 and operator(terms[0]) in {"assign", "eq"}:
        found |= names(terms[1]) if terms[1].get("type") in {"var", "array", "object"} else set()
        if operator(terms[0]) == "eq":
            found |= names(terms[2]) if terms[2].get("type") in {"var", "array", "object"} else set()
    return found.union(*(bound(part) for key, part in body.items() if key not in {"location", "symbols"}), set())


def names(term: Any) -> set[str]:
    """All variables in a pattern."""
    if isinstance(term, list):
        return set().union(*map(names, term), set())
    if not isinstance(term, dict):
        return set()
    if term.get("type") == "var":
        return {str(term["value"])}
    return set().union(*(names(part) for key, part in term.items() if key != "location"), set())


def _shallow(term: Any) -> set[str]:
    """The names in it, without those in comprehensions, which may be other variables."""
    if isinstance(term, list):
        return set().union(*map(_shallow, term), set())
    if not isinstance(term, dict) or term.get("type") in _COMPREHENSIONS:
        return set()
    if term.get("type") == "var":
        name = str(term["value"])
        return set() if name.startswith("$") else {name}
    return set().union(*(_shallow(part) for key, part in term.items() if key not in {"location", "else"}), set())


def _rule_name(rule: Node) -> str:
    reference = rule["head"].get("ref") or [{}]
    return str(reference[0].get("value"))


def _path(value: list[Any], head: bool = False) -> tuple[str | None, ...]:
    """The constant parts of a reference after its head; ``None`` for what is not constant."""
    parts = value if head else value[1:]
    return tuple(
        str(part.get("value"))
        if isinstance(part, Mapping) and (part.get("type") == "string" or (head and i == 0))
        else None
        for i, part in enumerate(parts)
    )


def _dotted(path: tuple[str | None, ...], start: str = "") -> str:
    return start + ".".join(part if part is not None else "[…]" for part in path)


def _row(node: Any, otherwise: int) -> int:
    location = node.get("location") if isinstance(node, dict) else None
    return int(location.get("row", otherwise)) if isinstance(location, dict) else otherwise


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key != "location"}
    return [plain(part) for part in value] if isinstance(value, list) else value
