"""A team's Rego as OPA has parsed it: what it reads, what it declares, and that it is pure and total.

Whatever is not known here is refused, so that new syntax cannot slip by.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from airflow_team_authz.gate.engine_differences import differences
from airflow_team_authz.gate.findings import WARNING, Finding
from airflow_team_authz.gate.rego_ast import (
    COMPREHENSIONS,
    SCALARS,
    Node,
    bound,
    depends_on,
    names,
    operator,
    plain,
    row,
    shallow,
    single_valued,
)

MAX_RULES = 500
MAX_DEPTH = 192
# Compiling takes the square of a rule's terms, and a template of a template of … fills a server's memory.
MAX_TERMS = 2_000
MAX_TEXT = 1_000
# What each binds is a loop in the other's, of which compiling takes the cube.
MAX_VARIABLES = 50
MAX_TEMPLATES = 24
MAX_PATTERNS = 20
# Of the directory only what it says of the subject: whose groups and roles are in it is each team's own business.
READABLE = (
    ("airflow", "authz", "standing", "team_ids"),
    ("airflow", "authz", "standing", "team_roles"),
    ("airflow", "authz", "standing", "platform_roles"),
    ("airflow", "roles"),
)
_STANDING = ("airflow", "authz", "standing")
_ENTRIES = {"allow", "deny"}
_NO_TEXT = {"boolean", "null", "object", "array", "set"}
# What engines ask of a package.
ENTRIES = _ENTRIES | {"default_pool"}
_TERMS = SCALARS | COMPREHENSIONS | {"var", "ref", "array", "object", "set", "call", "templatestring"}
_MEMBER = ("internal.member_2", "internal.member_3")


class Pattern(NamedTuple):
    """A constant pattern in a call, to be tried."""

    builtin: str
    text: str
    delimiters: tuple[str, ...] | None
    file: str
    line: int


class Module:
    """A file of rules, as ``opa parse --format json --json-include locations`` shows it."""

    def __init__(self, name: str, tree: Node, team_id: str) -> None:
        self.name = name
        self.rules: list[Node] = tree.get("rules") or []
        self.patterns: list[Pattern] = []
        # What it reads of its own place, by the first name; ``None`` if that is no constant.
        self.own_names: set[str | None] = set()
        # Every constant text in it, among them the names of all claims that it reads.
        self.texts: set[str] = set()
        # Those that it reads something by, but of the question.
        self.keys: set[str] = set()
        self._team_id = team_id
        self._own = ("teams", team_id)
        self.tree = tree
        self._aliases: dict[str, tuple[str | None, ...]] = {}
        self._line = 1
        # Names that have one value where the walk is: rules, imports, and variables bound further out.
        self.rule_names = {rule_name(rule) for rule in self.rules}
        self._fixed = {"data", "input"} | self.rule_names
        self.package = _path((tree.get("package") or {}).get("path") or [])
        # What is put together by templates that rules may read again.
        self.templates = 0

    @property
    def declared(self) -> set[str]:
        """Names that the module declares in the team's package; of tests, only names that other files could read."""
        if len(self.package) > 2:
            return {str(self.package[2])}
        return {name for name in self.rule_names if not name.startswith(("test_", "todo_test_"))}

    def line_of(self, name: str) -> int:
        """Where a rule of this name is, or the first line."""
        return next((row(rule, row(rule["head"], 1)) for rule in self.rules if rule_name(rule) == name), 1)

    def findings(self, rules: set[str]) -> Iterator[Finding]:
        """Everything that is wrong with the file; ``rules`` are the names of all rules of its package."""
        self._fixed |= rules
        yield from self._package()
        if self.name.endswith("_test.rego"):
            yield from entries_in_test(self.name, self.tree)
            return
        for imported in self.tree.get("imports") or []:
            yield from self._import(imported)
        for annotation in self.tree.get("annotations") or []:
            yield from self._annotation(annotation)
        for rule in self.rules:
            yield from self._rule(rule)

    def _found(self, rule: str, message: str, help_: str) -> Finding:
        return Finding(rule, self.name, self._line, message, help_)

    def _package(self) -> Iterator[Finding]:
        self._line = row((self.tree.get("package") or {}), 1)
        tests = ("teams", f"{self._team_id}_test")
        is_test = self.name.endswith("_test.rego")
        if self.package[:2] != self._own and not (is_test and self.package == tests):
            told = f"it declares package {_dotted(self.package)}"
            yield self._found("foreign-package", told, f"declare {_dotted(self._own)}, or a package below it")
        elif len(self.package) > 2 and self.package[2] in ENTRIES:
            told = f"a package {self.package[2]} would decide as if it were the rule"
            yield self._found("entry-rule", told, "give the package another name")

    def _import(self, imported: Node) -> Iterator[Finding]:
        reference = imported.get("path") or {}
        self._line = row(imported, row(reference, 1))
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
        """A schema that a team names could make the type checker see less; an entrypoint is compiled for everybody."""
        self._line = row(annotation, 1)
        if annotation.get("entrypoint"):
            yield self._found("entry-rule", "its metadata says that it is an entrypoint", "take `entrypoint` out")
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
        self._line = row(rule, row(head, 1))
        reference = head.get("ref") or []
        name = name or str(reference[0].get("value") if reference else head.get("name"))
        yield from self._head(rule, head, reference, name)
        outer, self._fixed = self._fixed, self._fixed | shallow([head, rule.get("body") or []])
        yield from self._walk(rule)
        self._fixed = outer
        yield from self._totality(rule, head)
        if not rule.get("is_else"):
            yield from self._size(rule)
            yield from (Finding("engines-differ", self.name, *difference) for difference in differences(rule))
        if rule.get("else"):
            yield from self._rule({"is_else": True} | rule["else"], name)

    def _head(self, rule: Node, head: Node, reference: list[Node], name: str) -> Iterator[Finding]:
        if any(part.get("type") != "string" for part in reference[1:]) and not self._is_object(head, reference):
            yield self._found(
                "rule-head", f"the head of {name} has a variable in its name", "put it into a set or object"
            )
        if self.package == self._own and not _is_entry(name, head):
            yield self._found("entry-rule", *_no_reasons(name))
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
        single = single_valued(body, arguments | (self._fixed - bound(body)))
        if open_ := depends_on(value) - single:
            told = f"its value depends on {', '.join(sorted(open_)[:3])}, of which there may be several"
            yield self._found("may-conflict", told, "collect the values in a set, or take one by max or min")

    def _size(self, rule: Node) -> Iterator[Finding]:
        terms = templates = 0
        variables = set[str]()
        todo: list[Any] = [rule]
        while todo:
            node = todo.pop()
            terms += isinstance(node, dict) and "type" in node
            if isinstance(node, dict) and node.get("type") == "var":
                variables.add(str(node.get("value")))
            if isinstance(node, dict) and node.get("type") == "templatestring":
                templates += sum("terms" in part for part in node["value"]["parts"])
            todo += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if terms > MAX_TERMS:
            yield self._found("too-large", f"the rule has {terms:,} terms", f"{MAX_TERMS:,} may be; lists are data")
        if len(variables) > MAX_VARIABLES:
            told = f"the rule has {len(variables)} variables"
            yield self._found("too-large", told, f"{MAX_VARIABLES} may be: split it into several rules")
        reason = rule["head"].get("key") or {}
        own = sum("terms" in part for part in reason["value"]["parts"]) if reason.get("type") == "templatestring" else 0
        if own > 8:
            yield self._found("too-large", f"the reason has {own} parts", "8 may be")
        self.templates += templates - own

    def _text(self, text: str) -> Iterator[Finding]:
        self.texts.add(text)
        if len(text) > MAX_TEXT:
            yield self._found("too-large", f"a text has {len(text):,} characters", f"{MAX_TEXT:,} may be")

    def _walk(self, node: Any) -> Iterator[Finding]:
        if isinstance(node, list):
            for part in node:
                yield from self._walk(part)
        elif isinstance(node, dict):
            outer, self._line = self._line, row(node, self._line)
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
                if kind == "string":
                    yield from self._text(str(node.get("value")))
                return
            if kind == "var":
                yield from self._name(str(node.get("value")))
                return
            if kind == "ref":
                yield from self._reference(node.get("value") or [])
                parts = (node.get("value") or [])[1:]
            if kind == "call":
                yield from self._call(node.get("value") or [])
            if kind in COMPREHENSIONS:
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
        if name != "input":
            self.keys.update(part for part in _path(value) if part is not None)
        if name == "data" or name in self._aliases:
            path = self._aliases.get(name, ()) + _path(value)
            if path[:2] == self._own:
                self.own_names.add(path[2] if len(path) > 2 else None)
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
        if name not in {"regex.match", "glob.match"} or not arguments:
            return
        if (pattern := _pattern(name, arguments, self.name, self._line)) is None:
            yield self._found("pattern", f"the pattern of {name} is no constant", "write it into the call itself")
        else:
            self.patterns.append(pattern)

    def _comprehension(self, kind: str, value: Node) -> Iterator[Finding]:
        key, body = value.get("key") or {}, value.get("body") or []
        outer = self._fixed
        if kind == "objectcomprehension":
            given = names(key) if key.get("type") == "var" else set()
            single = single_valued(body, given | (outer - bound(body)))
            if open_ := depends_on(value.get("value")) - single:
                told = f"a key may have several values of {', '.join(sorted(open_)[:3])}, which is an error"
                yield self._found("may-conflict", told, "make the value a function of the key, or a set")
        self._fixed = outer | shallow(list(value.values()))
        yield from self._walk(list(value.values()))
        self._fixed = outer


def entries_in_test(name: str, tree: Node) -> Iterator[Finding]:
    """Rules of a test file, as ``opa parse`` shows it, that look as if they decided: no engine loads them."""
    package = _path((tree.get("package") or {}).get("path") or [])
    asked = package in {("airflow", "site"), tuple(name.split("/")[:2])}
    for rule in tree.get("rules") or []:
        if (entry := rule_name(rule)) in ENTRIES and (asked or _is_set(rule["head"])):
            told = f"{entry} is in a test file, which no engine loads: it decides nothing"
            help_ = "move it into a file whose name does not end with _test.rego, or call it otherwise"
            yield Finding("test-decides", name, row(rule, row(rule["head"], 1)), told, help_)


def entries(name: str, tree: Node, read: Set[str] = frozenset()) -> Iterator[Finding]:
    """Rules in the place of an ``allow`` or ``deny``, of the platform or a team, that are no sets of reasons; and sets
    of reasons that nobody asks for, since they are called otherwise. ``read`` are the names that its package reads.
    """
    package = _path((tree.get("package") or {}).get("path") or [])
    if package != ("airflow", "site") and (len(package) != 2 or package[0] != "teams"):
        return
    for rule in tree.get("rules") or []:
        called, head = rule_name(rule), rule["head"]
        line = row(rule, row(head, 1))
        if not _is_entry(called, head):
            yield Finding("entry-rule", name, line, *_no_reasons(called))
        elif called in _ENTRIES and head["key"].get("type") in _NO_TEXT:
            told = f"a reason of {called} is no text, and counts as one all the same"
            yield Finding("entry-rule", name, line, told, f'write `{called} contains "the reason" if …`')
        elif called not in _ENTRIES | read and _is_set(head) and (near := _nearest_entry(called)):
            told = f"{called} is not asked for, and no rule of its package reads it"
            yield Finding("no-effect", name, line, told, f"did you mean {near}?", WARNING)


def _nearest_entry(name: str) -> str:
    """The entry rule that a similar name probably means: `denies`, `Deny`, `deny_interns`."""
    first = name.lower().partition("_")[0]
    return next(iter(difflib.get_close_matches(first, sorted(_ENTRIES), n=1, cutoff=0.6)), "")


def names_read(tree: Node) -> set[str]:
    """The names in the bodies and values of a file's rules, and what it reads of other documents by name."""
    found: set[str] = set()
    todo: list[Any] = list(tree.get("rules") or [])
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if node.get("type") in {"var", "string"}:
                found.add(str(node.get("value")))
            # What a rule is called is no reading.
            todo += [part for key, part in node.items() if key != "ref"]
        elif isinstance(node, list):
            todo += node
    return found


def _is_entry(name: str, head: Node) -> bool:
    return name not in _ENTRIES or (_is_set(head) and len(head.get("ref") or []) == 1)


def _no_reasons(name: str) -> tuple[str, str]:
    return f"{name} is not a set of reasons", f'write `{name} contains "the reason" if …`'


def only_in_tests(modules: list[Module], team_id: str) -> Iterator[Finding]:
    """Findings about rules that read names of test files, which no engine loads."""
    own = ("teams", team_id)
    rules = [module for module in modules if not module.name.endswith("_test.rego")]
    read = {name for module in rules for name in module.own_names}
    declared = {name for module in rules if module.package[:2] == own for name in module.declared}
    for module in modules:
        if module not in rules and module.package[:2] == own:
            for name in sorted(module.declared - ENTRIES):
                if name in read | declared or None in read:
                    told = f"{name} is declared in a test file, and rules read it or are called so"
                    help_ = "move it into a file that is no test, or call it otherwise: no engine loads tests"
                    yield Finding("test-decides", module.name, module.line_of(name), told, help_)


def _pattern(name: str, arguments: list[Node], file: str, line: int) -> Pattern | None:
    """The pattern of a call; ``None`` if it is not constant."""
    pattern, delimiters = arguments[0], arguments[1] if name == "glob.match" and len(arguments) > 1 else {}
    parts = delimiters.get("value") or [] if delimiters.get("type") == "array" else []
    constant = [part.get("type") == "string" for part in [pattern, *parts]]
    if not all(constant) or (name == "glob.match" and delimiters.get("type") not in {"array", "null"}):
        return None
    # OPA shows null with an empty value; to a glob it means other delimiters than none do.
    told = tuple(str(part["value"]) for part in parts) if delimiters.get("type") == "array" else None
    return Pattern(name, str(pattern["value"]), told, file, line)


def patterns_in(tree: Any, file: str, line: int = 1) -> Iterator[Pattern]:
    """The constant patterns in what ``opa parse`` shows of a file."""
    todo = [(tree, line)]
    while todo:
        node, line = todo.pop()
        if isinstance(node, dict):
            line = row(node, line)
            call = node.get("value") if node.get("type") == "call" else node.get("terms")
            name = operator(call[0]) if isinstance(call, list) and call and isinstance(call[0], dict) else ""
            if name in {"regex.match", "glob.match"} and isinstance(call, list) and len(call) > 1:
                pattern = _pattern(name, call[1:], file, line)
                if pattern is not None:
                    yield pattern
        parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        todo += [(part, line) for part in parts]


def all_patterns(modules: list[Module]) -> list[Pattern]:
    """All different patterns."""
    return list({pattern[:3]: pattern for module in modules for pattern in module.patterns}.values())


def module_findings(modules: list[Module]) -> Iterator[Finding]:
    """Everything that is wrong with the files together."""
    heads: dict[tuple[object, ...], list[tuple[Module, Node]]] = defaultdict(list)
    for module in modules:
        if not module.name.endswith("_test.rego"):
            for rule in module.rules:
                name = tuple(str(part.get("value")) for part in rule["head"].get("ref") or [])
                heads[(*module.package, *name)].append((module, rule))
    number = sum(map(len, heads.values()))
    limits = {"rules": (number, MAX_RULES), "different patterns": (len(all_patterns(modules)), MAX_PATTERNS)}
    limits["values in templates"] = sum(module.templates for module in modules), MAX_TEMPLATES
    for what, (found, limit) in limits.items():
        if found > limit:
            yield Finding("too-large", modules[0].name, 1, f"there are {found} {what}", f"{limit} may be published")
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
            yield Finding("may-conflict", module.name, row(rule, 1), told, help_)


def too_deep(tree: Any) -> bool:
    """Whether a tree is nested deeper than rules are that people write; without recursion, which has an end itself."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [part for inside in parts for part in inside]
    return bool(level)


def _is_set(head: Node) -> bool:
    return "key" in head and "value" not in head and not head.get("args")


def rule_name(rule: Node) -> str:
    """The first part of its name: `x` of `x.y`."""
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
