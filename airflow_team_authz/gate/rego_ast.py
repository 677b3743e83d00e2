"""The terms of Rego, as ``opa parse`` shows them, and which variables they have."""

from __future__ import annotations

from typing import Any

Node = dict[str, Any]

SCALARS = {"string", "number", "boolean", "null"}
COMPREHENSIONS = {"arraycomprehension", "setcomprehension", "objectcomprehension"}


def operator(node: Node) -> str:
    """The dotted name that is called, or nothing."""
    return ".".join(str(part.get("value")) for part in node.get("value") or []) if node.get("type") == "ref" else ""


def row(node: Any, otherwise: int) -> int:
    """The line that it is in."""
    location = node.get("location") if isinstance(node, dict) else None
    return int(location.get("row", otherwise)) if isinstance(location, dict) else otherwise


def plain(value: Any) -> Any:
    """The same without places."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key != "location"}
    return [plain(part) for part in value] if isinstance(value, list) else value


def single_valued(body: list[Node], given: set[str]) -> set[str]:
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
            if left.get("type") in {"var", "array", "object"} and not depends_on(right) - single:
                return names(left)
        return set()
    symbols = terms.get("symbols") if isinstance(terms, dict) else None
    if symbols and symbols[0].get("type") == "call":
        called, *arguments = symbols[0]["value"]
        if operator(called) == "internal.member_3":
            key, value, collection = arguments
            if names(key) <= single and value.get("type") == "var" and not depends_on(collection) - single:
                return names(value)
    return set()


def depends_on(term: Any) -> set[str]:
    """The variables that a term's value depends on; of a comprehension, those that it does not declare itself."""
    if isinstance(term, list):
        return set().union(*map(depends_on, term), set())
    if not isinstance(term, dict):
        return set()
    kind = term.get("type")
    if kind == "var":
        return {str(term["value"])}
    if kind in SCALARS:
        return set()
    if kind in COMPREHENSIONS:
        inside = declared(term["value"].get("body") or [])
        return {name for name in depends_on(list(term["value"].values())) - inside if not name.startswith("$")}
    if "domain" in term:
        inside = declared(term.get("body") or []) | names([term.get("key"), term.get("value")])
        return depends_on(term["domain"]) | (depends_on(term.get("body")) - inside)
    terms = term.get("terms")
    if isinstance(terms, list):
        return depends_on({"type": "call", "value": terms})
    if kind in {"ref", "call"}:
        parts = term.get("value") or []
        if kind == "call":
            # It has a value for each place in its argument, as a wildcard has.
            return depends_on(parts[1:]) | ({"$walk"} if operator(parts[0]) == "walk" else set())
        # The head is a document, a rule or a built-in, unless it is a local variable.
        return (depends_on(parts[0]) - {"data", "input"}) | depends_on(parts[1:])
    return set().union(*(depends_on(part) for key, part in term.items() if key != "location"), set())


def declared(body: list[Node]) -> set[str]:
    """The variables that a body declares itself, by some and :=, so that they are no others of that name."""
    found: set[str] = set()
    for expression in body:
        terms = expression.get("terms")
        for symbol in (terms.get("symbols") or []) if isinstance(terms, dict) else []:
            found |= names(symbol["value"][1:-1] if symbol.get("type") == "call" else symbol)
        if isinstance(terms, list) and len(terms) == 3 and operator(terms[0]) == "assign":
            found |= names(terms[1])
    return found


def bound(body: Any) -> set[str]:
    """The variables that a body may have of its own: by some, :=, =, every, or as a wildcard; also in what is in it."""
    found: set[str] = set()
    if isinstance(body, list):
        return found.union(*map(bound, body), set())
    if not isinstance(body, dict):
        return found
    if body.get("type") in COMPREHENSIONS:
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


def shallow(term: Any) -> set[str]:
    """The names in it, without those in comprehensions and `every`, which may be other variables."""
    if isinstance(term, list):
        return set().union(*map(shallow, term), set())
    if not isinstance(term, dict) or term.get("type") in COMPREHENSIONS:
        return set()
    if term.get("type") == "var":
        name = str(term["value"])
        return set() if name.startswith("$") else {name}
    if "domain" in term:
        return shallow(term["domain"])
    return set().union(*(shallow(part) for key, part in term.items() if key not in {"location", "else"}), set())
