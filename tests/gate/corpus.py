"""Packages that try to get more than is theirs, with the reason that each is refused for; and some that only look so.

Each is the text of ``teams/alpha/alpha.rego`` after its package clause. The line that is refused ends with ``# here``.
"""

from __future__ import annotations

from typing import NamedTuple


class Hostile(NamedTuple):
    """What is tried, and which rules of the gate refuse it."""

    rego: str
    rules: set[str]


def body(line: str) -> str:
    """An ``allow`` with one condition."""
    return f'allow contains "x" if {{\n\t{line} # here\n}}\n'


def reads(line: str) -> Hostile:
    return Hostile(body(line), {"foreign-data"})


def imports(clause: str, line: str = "true") -> Hostile:
    return Hostile(f"import {clause} # here\n\nallow contains 1 if {line}\n", {"foreign-data"})


HOSTILE: dict[str, Hostile] = {
    # Reading what is not the team's.
    "another team": reads("data.teams.beta.secret"),
    "another team by brackets": reads('data.teams["beta"].secret'),
    "another team, every part in brackets": reads('data["teams"]["beta"].secret'),
    "a team that the question names": reads("data.teams[input.resource.team_id].secret"),
    "all teams": reads("some team in data.teams; team.secret"),
    "all teams by a wildcard": reads("data.teams[_].secret"),
    "all of data": reads("some x in data; x"),
    "data as a value": reads("x := data; x.teams.beta.secret"),
    "data in an array": reads("[x] := [data]; x.teams"),
    "data in an object": reads('{"d": d} := {"d": data}; d.teams'),
    "data as an argument": reads("count(data) > 0"),
    "data by object.get": reads('object.get(data, ["teams", "beta"], 0) == 1'),
    "data by walk": reads("walk(data, [path, value]); count(path) > 0; value == 1"),
    "a part of data that is computed": reads('data[concat("", ["tea", "ms"])].beta'),
    "a part that is a variable": reads('x := "teams"; data[x].beta.secret'),
    "a set of references": reads("count({data.teams.beta}) == 1"),
    "in an array comprehension": reads("count([x | some x in data.teams.beta]) > 0"),
    "in a set comprehension": reads("count({x | x := data.teams.beta.secret}) > 0"),
    "in an object comprehension": reads("count({k: 1 | some k, _ in data.teams}) > 0"),
    "in the head of a comprehension": reads("count([data.teams.beta | true]) > 0"),
    "in every": reads("every x in data.teams.beta { x }"),
    "in the body of every": reads("every x in [1] { data.teams.beta[x] }"),
    "negated": reads("not data.teams.beta.secret"),
    "as a key": reads("input.context[data.teams.beta.key]"),
    "in a comparison": reads("input.subject.id == data.teams.beta.boss"),
    "in membership": reads("input.subject.id in data.teams.beta.members"),
    "the site's rules": reads("data.airflow.site.deny"),
    "the site's data": reads("data.airflow.site.platform_connections[_]"),
    "the directory": reads('data.airflow.directory.groups["beta-engineers"]'),
    "the directory as a value": reads("some entries in data.airflow.directory; count(entries) > 0"),
    "the directory in a reason": Hostile(
        'deny contains $"{data.airflow.directory.groups}" if true # here\n', {"foreign-data"}
    ),
    "a group that the question names": reads(
        "some group in input.subject.groups; data.airflow.directory.groups[group]"
    ),
    "what decides": reads("data.airflow.authz.decision.allow"),
    "another part of standing": reads('"x" in data.airflow.authz.standing.common_roles'),
    "the whole of standing": reads("some x in data.airflow.authz.standing"),
    "a part of standing that is a variable": reads("some part; data.airflow.authz.standing[part]"),
    "a function of the platform": reads('data.airflow.authz.baseline.allows({"type": "pool", "team_id": "beta"})'),
    "a function of standing": reads("count(data.airflow.authz.standing.included({1})) > 0"),
    "which versions there are": reads("data.airflow.revisions.teams.beta > 1"),
    "what OPA keeps": reads("data.system.bundles"),
    "a team of a similar name": reads("data.teams.alphabet.secret"),
    "an import of all": imports("data", "data.teams"),
    "an import of all teams": imports("data.teams", "teams.beta.secret"),
    "an import of another team": imports("data.teams.beta", "beta.secret"),
    "an import under another name": imports("data.teams.beta as own", "own.secret"),
    "an import of the site": imports("data.airflow.site"),
    "an import of the router": imports("data.airflow.authz"),
    "an import of the directory": imports("data.airflow.directory", "directory.groups"),
    "an import that hides as input's": imports("data.teams.beta as context", "context.secret"),
    "an allowed import, another part": Hostile(
        "import data.airflow.authz.standing\n\n" + body("standing.common_roles[_]"), {"foreign-data"}
    ),
    "an allowed import as a value": Hostile(
        "import data.airflow.authz.standing\n\n" + body("x := standing; x.common_roles"), {"foreign-data"}
    ),
    "an allowed import under another name": Hostile(
        "import data.airflow.authz.standing as s\n\n" + body("s[input.action]"), {"foreign-data"}
    ),
    "in the reason": Hostile("allow contains data.teams.beta.secret if true # here\n", {"foreign-data"}),
    "in a template": Hostile('allow contains $"{data.teams.beta.secret}" if true # here\n', {"foreign-data"}),
    "in a helper": Hostile("helper := data.teams.beta.secret # here\n\nallow contains helper\n", {"foreign-data"}),
    "in a default": Hostile(
        "default helper := {1 | data.teams.beta.secret} # here\n\nallow contains 1 if count(helper) > 0\n",
        {"foreign-data"},
    ),
    "in else": Hostile(
        "helper := 1 if {\n\tinput.action\n} else := data.teams.beta.secret # here\n\nallow contains helper\n",
        {"foreign-data"},
    ),
    "in the body of else": Hostile(
        "helper := 1 if {\n\tinput.action\n} else := 2 if data.teams.beta.secret # here\n\nallow contains helper\n",
        {"foreign-data"},
    ),
    "in an argument": Hostile("f(x) := x\n\nallow contains 1 if f(data.teams.beta.secret) # here\n", {"foreign-data"}),
    # Changing what others are made of.
    "with input": Hostile("helper if input.action == 1\n\n" + body('helper with input as {"action": 1}'), {"with"}),
    "with data": Hostile(body('data.teams.alpha.x with data.teams.beta as {"x": 1}'), {"with", "schema-missing"}),
    "with a built-in": Hostile(body("count([]) == 1 with count as 1"), {"with"}),
    "with another team's data as a value": Hostile(
        body("input.action with input.action as data.teams.beta.secret"), {"with"}
    ),
    # What decides, as anything but a set of reasons.
    "allow is a boolean": Hostile("default allow := false # here\n\nallow if input.action\n", {"entry-rule"}),
    "allow is true": Hostile("allow := true # here\n", {"entry-rule"}),
    "allow is an array": Hostile('allow := ["x"] # here\n', {"entry-rule"}),
    "deny is a function": Hostile("deny(x) := x # here\n", {"entry-rule"}),
    "deny is an object": Hostile('deny[x] := 1 if some x in ["a"] # here\n', {"entry-rule", "partial-object"}),
    "allow with a name below it": Hostile("allow.x := 1 # here\n", {"entry-rule"}),
    "allow with a set below it": Hostile("allow.x contains 1 # here\n", {"entry-rule"}),
    "the default pool is a rule": Hostile('default_pool := "x" # here\n', {"default-pool"}),
    # What may have two values, which is an error for everybody who asks in the same list.
    "two values by iteration": Hostile('x := y if some y in ["a", "b"] # here\n\nallow contains x\n', {"may-conflict"}),
    "two values by a wildcard": Hostile("x := input.subject.roles[_] # here\n\nallow contains x\n", {"may-conflict"}),
    "two values by an open index": Hostile(
        "x := i if input.subject.roles[i] # here\n\nallow contains x\n", {"may-conflict"}
    ),
    "two values through a variable": Hostile(
        "x := z if { # here\n\tsome y in input.subject.roles\n\tz := lower(y)\n}\n\nallow contains x\n",
        {"may-conflict"},
    ),
    "two definitions": Hostile(
        'x := "a" if input.action == "read"\n\nx := "b" if input.subject.id == "ann" # here\n\nallow contains x\n',
        {"may-conflict"},
    ),
    "a function of two values": Hostile(
        "f(a) := y if some y in a # here\n\nallow contains x if x := f([1, 2])\n", {"may-conflict", "operand-type"}
    ),
    "two values of a key": Hostile(
        body('x := {"k": v | some v in input.subject.roles}; count(x) > 0'), {"may-conflict"}
    ),
    "two values of a computed key": Hostile(
        body("x := {lower(k): v | some k, v in input.subject.claims}; count(x) > 0"), {"may-conflict"}
    ),
    "two values of a key by iteration inside": Hostile(
        body("x := {k: v | some k, vs in input.subject.claims; some v in vs}; count(x) > 0"), {"may-conflict"}
    ),
    "a partial object": Hostile("x[k] := v if some k, v in input.subject.claims # here\n", {"partial-object"}),
    "a variable in the name": Hostile("x[k].y := 1 if some k, _ in input.subject.claims # here\n", {"rule-head"}),
    "a variable in the name of a set": Hostile(
        "x[k] contains 1 if some k, _ in input.subject.claims # here\n", {"rule-head"}
    ),
    "two values at a constant place": Hostile(
        'x.y := "a" if input.action\n\nx.y := "b" if input.subject.id == "ann" # here\n\nallow contains x.y\n',
        {"may-conflict"},
    ),
    "two values by iteration at a constant place": Hostile(
        "x.y := z if some z in input.subject.roles # here\n\nallow contains x.y\n", {"may-conflict"}
    ),
    "two values of an array of an open index": Hostile(
        "x := [i, 1] if input.subject.roles[i] # here\n\nallow contains x[0]\n", {"may-conflict"}
    ),
    "two values of a comprehension over an open variable": Hostile(
        "x := [y | y := z] if some z in input.subject.roles # here\n\nallow contains x[0]\n",
        {"may-conflict", "engines-differ"},
    ),
    # What fails, is not pure, or never ends.
    "a pattern that the question brings": Hostile(body("regex.match(input.action, input.subject.id)"), {"pattern"}),
    "a pattern in a variable": Hostile(body('x := "("; regex.match(x, input.action)'), {"pattern"}),
    "a pattern of data": Hostile(body("regex.match(data.teams.alpha.p, input.action)"), {"pattern", "schema-missing"}),
    "a pattern that is none": Hostile(body('regex.match("(", input.action)'), {"pattern"}),
    "a pattern that looks back": Hostile(body("regex.match(`(?<=a)b`, input.action)"), {"pattern"}),
    "a glob that the question brings": Hostile(body("glob.match(input.action, [], input.subject.id)"), {"pattern"}),
    "delimiters that the question brings": Hostile(
        body('glob.match("*", input.subject.roles, input.subject.id)'), {"pattern"}
    ),
    "the network": Hostile(
        body('http.send({"method": "get", "url": "http://localhost"}).status_code == 200'), {"check"}
    ),
    "the clock": Hostile(body("time.now_ns() > 0"), {"check"}),
    "the clock in a comprehension": Hostile(body("count([x | x := time.now_ns()]) > 0"), {"check"}),
    "a function of the host in every": Hostile(
        body("every role in input.subject.roles { units.parse_bytes(role) > 1 }"), {"check"}
    ),
    "the runtime": Hostile(body("opa.runtime().env.SECRET"), {"check"}),
    "chance": Hostile(body('rand.intn("x", 2) == 1'), {"check"}),
    "a number from text": Hostile(body("to_number(input.subject.id) > 3"), {"check"}),
    "a division": Hostile(body("1 / count(input.subject.roles) > 0"), {"check"}),
    "a built-in on the wrong type": Hostile(body("startswith(input.subject.roles, 1)"), {"check"}),
    "a word that the question does not have": Hostile(body("input.resource.owner"), {"check"}),
    "recursion": Hostile("x if y # here\n\ny if x\n\nallow contains 1 if x\n", {"check"}),
    "an unsafe variable": Hostile(body("not x == 1"), {"check"}),
    "a built-in by another name": Hostile("count(x) := 7 # here\n\nallow contains 1 if count([]) == 7\n", {"check"}),
    "input as an argument": Hostile("f(input) := 1 # here\n\nallow contains 1 if f(2) == 1\n", {"shadowing"}),
    "data as a variable": Hostile(body("some data in [1]"), {"foreign-data"}),
    "a schema of its own": Hostile(
        "# METADATA\n# schemas:\n#   - input.resource: {type: object}\nallow contains 1 if input.resource.owner\n",
        {"schema-named"},
    ),
    # A value of another type than a built-in takes: an error on a server, no value in Wasm.
    "walk to numbers": Hostile(
        'allow contains "x" if {\n\twalk(input.resource, [_, v])\n\tstartswith(v, "a") # here\n}\n',
        {"operand-type"},
    ),
    "a mixed array": Hostile(
        'allow contains "x" if {\n\tsome v in ["a", 1]\n\tstartswith(v, "a") # here\n}\n', {"operand-type"}
    ),
    "a mixed array through a function": Hostile(
        'f(x) if startswith(x, "a")\n\nallow contains "x" if {\n\tsome v in ["a", 1]\n\tf(v) # here\n}\n',
        {"operand-type"},
    ),
    "a mixed array through two functions": Hostile(
        'g(y) if f(y)\n\nf(x) if startswith(x, "a")\n\nallow contains "x" if {\n\tsome v in ["a", 1]\n'
        "\tg(v) # here\n}\n",
        {"operand-type"},
    ),
    "a mixed array in an array": Hostile(
        'allow contains "x" if {\n\tsome v in ["a", 1]\n\tconcat("", [v, "a"]) == "b" # here\n}\n', {"operand-type"}
    ),
    "a mixed array, collected": Hostile(
        'allow contains "x" if {\n\tv := [z | some z in ["a", 1]] # here\n\tconcat("", v) == "a"\n}\n',
        {"operand-type", "engines-differ"},
    ),
    "a mixed array, sorted": Hostile(
        'allow contains "x" if {\n\tv := ["a", 1] # here\n\tconcat("", array.concat(sort(v), [])) == "a"\n}\n',
        {"operand-type"},
    ),
    "a mixed array in a function's array": Hostile(
        'f(x) if concat("", sort(x)) == "a"\n\nallow contains "x" if f([1]) # here\n', {"operand-type"}
    ),
    "sets of what is no set": Hostile(
        'allow contains "x" if count(union({{1}, {"a"}} | {"b"})) == 1 # here\n', {"operand-type"}
    ),
    "a guard for another variable of that name": Hostile(
        'allow contains "x" if {\n\tsome v in ["a", 1]\n\tis_string(v)\n\txs := [y |\n\t\tsome v in ["a", 1]\n'
        "\t\ty := lower(v) # here\n\t]\n\tcount(xs) > 1\n}\n",
        {"operand-type", "engines-differ"},
    ),
    "a guard that says no": Hostile(
        'allow contains "x" if {\n\tsome v in ["a", 1]\n\tnot is_string(v)\n\tlower(v) == "a" # here\n}\n',
        {"operand-type"},
    ),
    "a guard that comes after": Hostile(
        'allow contains "x" if {\n\tsome v in ["a", 1]\n\tlower(v) == "a" # here\n\tis_string(v)\n}\n', {"operand-type"}
    ),
    "a guard in what is looked at": Hostile(
        'allow contains "x" if {\n\tsome w in ["a", 1]\n\tevery v in [lower(w)] { # here\n\t\tis_string(w)\n'
        '\t\tv == "a"\n\t}\n}\n',
        {"operand-type"},
    ),
    "a mixed array, all of it": Hostile(
        'allow contains "x" if {\n\tevery v in ["a", 1] {\n\t\tlower(v) == "a" # here\n\t}\n}\n', {"operand-type"}
    ),
    "a number for a text, in every": Hostile(
        'allow contains "x" if {\n\tevery r in input.subject.roles {\n\t\tstartswith(r, 1) # here\n\t}\n}\n',
        {"operand-type"},
    ),
    "a function with the name of a built-in": Hostile(
        'count(x) if lower(x) == "a"\n\nallow contains "x" if {\n\tsome v in ["a", ["b"]]\n\tcount(v) # here\n}\n',
        {"operand-type"},
    ),
    "another type by else": Hostile(
        'z := 1 if {\n\tinput.action == "a"\n} else := "a"\n\nallow contains "x" if lower(z) == "a" # here\n',
        {"operand-type"},
    ),
    "another type by default": Hostile(
        'default z := 1\n\nz := "a" if input.action == "a"\n\nallow contains "x" if lower(z) == "a" # here\n',
        {"operand-type"},
    ),
    "another type if there is none": Hostile(
        'allow contains "x" if lower(object.get(input.subject, "x", 1)) == "a" # here\n', {"operand-type"}
    ),
    "any part of the question": Hostile(
        'allow contains "x" if lower(input.resource[_]) == "a" # here\n', {"operand-type"}
    ),
    "a part that may be null": Hostile(
        'allow contains "x" if lower(input.resource.delivery.team_id) == "a" # here\n', {"operand-type"}
    ),
    "the largest of some": Hostile('allow contains "x" if lower(max(["a", 1])) == "a" # here\n', {"operand-type"}),
    "a reason of any type": Hostile('allow contains lower(v) if some v in ["a", 1] # here\n', {"operand-type"}),
    "a claim's values as a text": Hostile(
        'allow contains "x" if lower(input.subject.claims.dept) == "a" # here\n', {"check"}
    ),
    "a sum": Hostile('allow contains "x" if count(input.subject.roles) + 1 == 2 # here\n', {"engines-differ"}),
    "a difference": Hostile('allow contains "x" if count(input.subject.roles) - 1 == 2 # here\n', {"operand-type"}),
    "a product of fractions": Hostile('deny contains "x" if 3 * 1.1 == 3.3 # here\n', {"engines-differ"}),
    "a fraction": Hostile('x := 1.10 # here\n\nallow contains $"{x}" if input.action == "read"\n', {"engines-differ"}),
    "a number that is not exact": Hostile(
        'allow contains "x" if count("a") < 9007199254740993 # here\n', {"engines-differ"}
    ),
    "a rule's name for many": Hostile(
        'role := "x"\n\nboss := role if some role in input.subject.roles # here\n\nallow contains boss\n',
        {"may-conflict"},
    ),
    "an import's name for many": Hostile(
        "import input.action as a\n\nx := a if some a in input.subject.roles # here\n\nallow contains x if a\n",
        {"may-conflict"},
    ),
    # Two values of one rule, which is an error for everybody in the same list.
    "a rule's name in a comprehension": Hostile(
        'kind := [z | z = "op"] if some z in input.subject.roles # here\n\nallow contains "x" if kind\n',
        {"may-conflict", "engines-differ"},
    ),
    "a name in every": Hostile(
        'e := "a"\n\nkind := sort([y | # here\n\tevery e in ["a"] {\n\t\ty := e\n\t\ty == "a"\n\t}\n]) if some y in'
        " input.subject.roles\n\nallow contains e if kind\n",
        {"may-conflict"},
    ),
    "a name in every, as a key": Hostile(
        'allow contains "x" if {\n\tevery e in ["a"] {\n\t\ti := e\n\t\ti == "a"\n\t}\n'
        '\tx := {"k": i | input.subject.roles[i]} # here\n\tx\n}\n',
        {"may-conflict"},
    ),
    "a walk": Hostile('kind := walk(input.subject.groups) # here\n\nallow contains "x" if kind\n', {"may-conflict"}),
    "a walk by key": Hostile(
        'kind := {"k": v | v := walk(input.subject.groups)} # here\n\nallow contains "x" if kind\n', {"may-conflict"}
    ),
    # What engines do not do alike.
    "an order of sets": Hostile(
        'allow contains "x" if concat(",", {r | some r in input.subject.roles}) == "a" # here\n', {"operand-type"}
    ),
    "equal items of a set": Hostile(
        'allow contains "x" if count([x | some x in {"read", input.action}]) == 2 # here\n', {"engines-differ"}
    ),
    "an order of objects": Hostile(
        'allow contains "x" if [k | some k, _ in {"b": 1, "a": 2}][0] == "a" # here\n', {"engines-differ"}
    ),
    "an object as a text": Hostile('allow contains $"{input.resource}" if input.action # here\n', {"operand-type"}),
    "an object as a reason": Hostile("allow contains input.resource if input.action # here\n", {"operand-type"}),
    "JSON as a text": Hostile(
        'allow contains "x" if json.marshal({"b": 1, "a": 2}) == "" # here\n', {"engines-differ"}
    ),
    "JSON that one engine dies of": Hostile(
        'deny contains "x" if json.is_valid(input.resource.id) # here\n', {"engines-differ"}
    ),
    "a union of none": Hostile('deny contains "x" if object.union_n([]) == {} # here\n', {"engines-differ"}),
    "replacing nothing": Hostile(
        'deny contains "x" if replace("ann", input.resource.name, "") == "" # here\n', {"engines-differ"}
    ),
    "replacing the empty text": Hostile(
        'deny contains "x" if replace("ann", "", "b") == "" # here\n', {"engines-differ"}
    ),
    "replacing many": Hostile(
        'deny contains "x" if strings.replace_n({input.action: "x"}, "a") == "" # here\n',
        {"engines-differ", "operand-type"},
    ),
    "a glob that Wasm reads as an expression": Hostile(
        'deny contains "x" if glob.match("(pg)", [], input.action) # here\n', {"engines-differ", "pattern"}
    ),
    "a delimiter of two letters": Hostile(
        'deny contains "x" if not glob.match("a*", ["ab"], input.action) # here\n', {"engines-differ", "pattern"}
    ),
    "a pattern with a name": Hostile(
        'deny contains "x" if regex.match(`^(?<n>p)g$`, input.action) # here\n', {"pattern"}
    ),
    "a pattern that repeats without end": Hostile(
        'deny contains "x" if regex.match(`^.{1,1000}$`, input.action) # here\n', {"pattern"}
    ),
    **{
        f"a glob that one engine ends at a line break: {pattern} {delimiters}": Hostile(
            f'deny contains "x" if glob.match("{pattern}", {delimiters}, input.resource.id) # here\n', {"pattern"}
        )
        for pattern, delimiters in (
            ("prod**", "[]"),
            ("prod**", '["."]'),
            ("**", '["/", ":"]'),
            ("{prod**,x}", "[]"),
            ("prod*", "null"),
            ("prod?", "null"),
            ("*", "null"),
            ("[a-z]*x", "null"),
        )
    },
    "a pattern of bytes": Hostile('deny contains "x" if regex.match(`^\\C$`, input.resource.id) # here\n', {"pattern"}),
    "a pattern of all letters": Hostile(
        'deny contains "x" if regex.match(`^\\p{L}{1,10}$`, input.action) # here\n', {"pattern"}
    ),
    # What takes all for itself.
    "an entrypoint": Hostile(
        '# METADATA\n# entrypoint: true\nx if input.action\n\nallow contains "x" if x\n', {"entry-rule"}
    ),
    "a large rule": Hostile(
        f'allow contains "x" if input.action in {list(range(2100))} # here\n'.replace("'", '"'), {"too-large"}
    ),
    "many loops in each other": Hostile(
        'allow contains "x" if {\n'
        + "\n".join(f'\tsome x{i} in input.subject.roles\n\tx{i} != "{i}"' for i in range(51))
        + "\n}\n",
        {"too-large"},
    ),
    "many loops without names": Hostile(
        'allow contains "x" if {\n'
        + "\n".join("\tinput.subject.roles[_] != input.action" for _ in range(51))
        + "\n}\n",
        {"too-large"},
    ),
    "a large text": Hostile(f'allow contains "{"x" * 1001}" if input.action # here\n', {"too-large"}),
    "a reason of many parts": Hostile(
        'allow contains $"' + "{input.action}" * 9 + '" if input.action # here\n', {"too-large"}
    ),
    "texts of texts": Hostile(
        "\n\n".join(f's{i + 1} := $"{"".join(f"{{s{i}}}" for _ in range(8))}"' for i in range(4))
        + '\n\ns0 := input.resource.id\n\nallow contains "x" if count(s4) > 1\n',
        {"too-large"},
    ),
    "many patterns": Hostile(
        "".join(f'allow contains "x" if regex.match(`^a{i}$`, input.action)\n\n' for i in range(21)), {"too-large"}
    ),
    "patterns that together take too long": Hostile(
        "".join(
            f'allow contains "x" if regex.match(`^prod_{i}_[a-z0-9_]{{1,20}}$`, input.action)\n\n' for i in range(12)
        ),
        {"pattern"},
    ),
    "future syntax": Hostile("import rego.v2\n\nallow contains 1\n", {"check"}),
}

FINE: dict[str, str] = {
    "its own data by brackets": 'allow contains "x" if data.teams["alpha"].names[_] == "ann"\n',
    "its own data by the question": 'allow contains "x" if data.teams.alpha.lent[input.resource.id]\n',
    "its own rules in full": 'helper if input.action == "read"\n\nallow contains "x" if data.teams.alpha.helper\n',
    "an import of its own": 'import data.teams.alpha.names\n\nallow contains "x" if "ann" in names\n',
    "an import of input": 'import input.resource as r\n\nallow contains "x" if r.id == "pg"\n',
    "standing": 'import data.airflow.authz.standing\n\nallow contains "x" if "alpha" in standing.team_ids\n',
    "standing under another name": (
        'import data.airflow.authz.standing as who\n\nallow contains "x" if "alpha" in who.team_ids\n'
    ),
    "a team's roles": 'allow contains "x" if "op" in data.airflow.authz.standing.team_roles.alpha\n',
    "a text that looks like a reference": 'allow contains "data.teams.beta.secret" if input.action == "read"\n',
    "a template that looks like one": 'allow contains $"data.teams.beta {input.action}" if input.subject.id == "ann"\n',
    "a comment that looks like one": '# data.teams.beta.secret\nallow contains "x" if input.action == "read"\n',
    "a key called data": 'allow contains "x" if {"data": {"teams": 1}}.data.teams == 1\n',
    "a key called with": 'allow contains "x" if {"with": 1}["with"] == 1\n',
    "a variable called teams": 'allow contains teams if some teams in input.subject.team_ids\n',
    "a rule called beta": 'beta := {"secret": 1}\n\nallow contains "x" if beta.secret == 1\n',
    "a constant pattern": 'allow contains "x" if regex.match(`^p[a-z]$`, input.resource.id)\n',
    "a constant glob": 'allow contains "x" if glob.match("p*", [], input.resource.id)\n',
    **{
        f"a pattern that both engines read alike: {call}": f'allow contains "x" if {call}\n'
        for call in (
            'glob.match("prod*", [], input.resource.id)',
            'glob.match("prod_?", ["/", ":"], input.resource.id)',
            'glob.match("{prod,dev}_[a-z]*", ["."], input.resource.id)',
            'glob.match("prod[!x]", null, input.resource.id)',
            "regex.match(`(?s)^prod.*$`, input.resource.id)",
            "regex.match(`(?m)^prod$`, input.resource.id)",
            r"regex.match(`(?i)\Aprod\.[^x]+\b\z`, input.resource.id)",
            "regex.match(`^(?:prod|dev)_[[:alpha:]]{1,3}$`, input.resource.id)",
        )
    },
    "one value by else": (
        'kind := "a" if {\n\tinput.action == "x"\n} else := "b"\n\nallow contains kind if input.subject.id == "ann"\n'
    ),
    "one value twice": 'good if input.action\n\ngood if input.subject.id\n\nallow contains "x" if good\n',
    "one value, collected": (
        'all := sort([name | some name in input.subject.team_ids])\n\nallow contains concat(", ", all)\n'
    ),
    "one value through a variable": (
        'upper_id := z if {\n\ty := input.resource.id\n\tz := upper(y)\n}\n\nallow contains upper_id\n'
    ),
    "one value of a key": (
        'copied := {k: v | some k, v in input.subject.claims}\n\nallow contains "x" if copied.dept == ["sales"]\n'
    ),
    "one value of a key, computed": (
        'sizes := {k: n |\n\tsome k, v in input.subject.claims\n\tn := count(v)\n}\n\nallow contains sizes.dept\n'
    ),
    "a function of its arguments": (
        'named(a, b) := concat("", [a, b])\n\nallow contains named("x", input.resource.id) if input.action == "read"\n'
    ),
    "every": 'allow contains "x" if {\n\tevery id in input.subject.team_ids {\n\t\tid == "alpha"\n\t}\n}\n',
    "a deny": 'deny contains "x" if input.subject.id == "ann"\n',
    "a guard": 'allow contains "x" if {\n\tsome v in ["a", 1]\n\tis_string(v)\n\tstartswith(v, "a")\n}\n',
    "a guard for what may be null": (
        'allow contains "x" if {\n\tis_string(input.resource.delivery.team_id)\n'
        '\tstartswith(input.resource.delivery.team_id, "a")\n}\n'
    ),
    "a guard in a comprehension": (
        'allow contains concat(", ", xs) if {\n'
        "\txs := sort([x | some x in object.keys(data.teams.alpha.lent); is_string(x)])\n}\n"
    ),
    "a guard for what there may be none of": (
        'allow contains "x" if {\n\txs := object.get(input.subject, "roles", [])\n\tis_array(xs)\n\tcount(xs) > 1\n}\n'
    ),
    "functions of texts": (
        'g(y) if f(y)\n\nf(x) if startswith(lower(x), "a")\n\nallow contains "x" if g(input.resource.id)\n'
    ),
    "functions of functions": (
        'allow contains "x" if startswith(split(lower(trim(input.resource.id, " ")), "/")[0], "a")\n'
    ),
    "the team, which is not null": 'allow contains "x" if startswith(input.resource.team_id, "a")\n',
    "claims as texts": 'allow contains "x" if startswith(lower(input.subject.claims.dept[_]), "s")\n',
    "sets in parentheses": (
        'allow contains "x" if {\n\ta := {r | some r in input.subject.roles}\n\tcount((a - {"op"}) | {"b"}) == 1\n}\n'
    ),
    "a sorted reason": (
        'allow contains concat(", ", sort([x | some x in input.subject.roles; x != "op"])) if input.action == "read"\n'
    ),
    "every of a type": (
        'allow contains "x" if {\n\tevery i, r in (input.subject.roles) {\n\t\tstartswith(r, "o")\n'
        "\t\tevery t in split(r, \"_\") {\n\t\t\tcount(t) > i\n\t\t}\n\t}\n"
        '\tevery r in [x | some x in input.subject.team_ids] {\n\t\tlower(r) != [r, "b"][0]\n\t}\n}\n'
    ),
    "every of a type in parentheses": (
        'allow contains "x" if {\n\tevery r in ({"a"} | {input.action}) {\n\t\tis_string(r)\n'
        '\t\tlower(r) == "a"\n\t}\n}\n'
    ),
    "an item of an array in place": 'allow contains "x" if startswith([input.action, "a"][0], {"k": "a"}.k)\n',
    "a helper in full, without data": (
        'import data.teams.alpha.helper\n\nallow contains "x" if helper\n\n'
        'allow contains "y" if data.teams.alpha.other\n\nother if input.action\n'
    ),
    "parts of a value": (
        'prefix(id) := a if [a, _] := split(id, "__")\n\nallow contains "x" if prefix(input.resource.id) == "pg"\n'
    ),
    "metadata of its own": (
        '# METADATA\n# title: x\nallow contains "x" if input.action == "read"\n'
    ),
    "a key that there is none of": 'allow contains "x" if data.teams.alpha.lent.nobody\n',
    "items in any order": (
        'allow contains "x" if {\n\tcount([r | some r in input.subject.roles; r != "op"]) == 1\n'
        '\tinput.action in [a | some a in {"read", "list"}]\n}\n'
    ),
    "a replaced text": 'allow contains "x" if replace(input.resource.id, "-", "_") == "a_b"\n',
    "a reason with a number": 'allow contains $"{count(input.subject.roles)} of {input.action}" if input.subject.id\n',
    "some patterns": "\n\n".join(
        f'allow contains "x" if regex.match(`^prod_{i}_[a-z0-9_]+$`, input.resource.id)' for i in range(9)
    )
    + "\n",
    "the role table": 'allow contains "x" if "op" in data.airflow.roles.platform\n',
}  # fmt: skip
