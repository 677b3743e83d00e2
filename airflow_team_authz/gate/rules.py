"""The one table of the gate's rules: a finding names its rule, SARIF and ``docs/bundles.md`` describe it from here."""

from __future__ import annotations

from typing import NamedTuple

# Where the rules are documented, from the root of the repository.
PAGE = "docs/bundles.md"


class Rule(NamedTuple):
    """A rule: the packages that it refuses, and the way out for their authors. Both are Markdown."""

    refuses: str
    help: str


RULES: dict[str, Rule] = {
    # Files
    "team-id": Rule("packages under a name that no team may have", "Rename `teams/<id>`."),
    "file-name": Rule(
        "links, names with other characters than letters, digits, `_`, `.` and `-`, directories more than four deep",
        "Rename or move the file.",
    ),
    "foreign-file": Rule(
        "files outside of `teams/<id>`, and files that are no part of a package",
        "Keep only Rego, `data.json` and `schema.json` there.",
    ),
    "data-place": Rule("data in another file than `data.json`", "Move it into `data.json`."),
    "not-text": Rule("files that are not UTF-8, and Rego with invisible characters", "Save the file without them."),
    "too-large": Rule(
        "more than 64 files, 256 KiB of Rego, 1 MiB of data, 4 MiB of memory that the data takes in an engine, 500 "
        "rules, 2,000 terms or 50 variables in a rule, 192 KiB of Wasm that the rules compile to, 1,000 letters in a "
        "text, 20 different patterns, 24 values in templates beside reasons",
        "Keep lists of names in `data.json`.",
    ),
    "no-rules": Rule("packages without Rego", "Write `teams/<id>/<id>.rego`."),
    # Syntax and types
    "parse": Rule("what OPA cannot parse", "Correct the line that the finding names."),
    "format": Rule("Rego in another format than that of `opa fmt`", "Run `opa fmt --write .`."),
    "check": Rule(
        "what `opa check --strict` refuses, by the schemas and capabilities of the installed package; those in the "
        "repository do not matter",
        "Correct the line. No policy can call the network, the clock or the environment.",
    ),
    "too-deep": Rule("terms inside of more than 192 others", "Split the rule."),
    "unknown-syntax": Rule("Rego that the gate does not know", "Write the rule in another way."),
    "with": Rule("`with` outside of tests", "Pass the value as an argument of a function."),
    "shadowing": Rule("names that hide `data` or `input`", "Choose another name."),
    # What a package may declare and read
    "foreign-package": Rule("files of another package than `teams.<id>` or one below it", "Declare `teams.<id>`."),
    "foreign-data": Rule(
        "reading anything but `input`, the own `data.teams.<id>`, "
        "`data.airflow.authz.standing.{team_ids,team_roles,platform_roles}` and `data.airflow.roles`: also by imports, "
        "variables, comprehensions, templates, rule heads",
        "Read what is in this list, or copy the values into your own `data.json`.",
    ),
    "entry-rule": Rule(
        "`allow` and `deny` as anything but sets of reasons that are texts or numbers; metadata with `entrypoint`",
        'Write `allow contains "the reason" if { … }`.',
    ),
    "default-pool": Rule("`default_pool` anywhere but in `data.json`, or no text", "Name a pool in `data.json`."),
    "data-decides": Rule("`allow` or `deny` in `data.json`", "Write a rule."),
    "test-decides": Rule(
        "`allow`, `deny` or `default_pool` in a `_test.rego` file, which no engine loads; rules that read such a file",
        "Move the rule into a file with another name.",
    ),
    "left-out": Rule(
        "in a platform's directory: Rego in hidden directories, data that is not in `data.json`; no engine loads these",
        "Move the file, or delete it.",
    ),
    "no-effect": Rule(
        'rules that are never true: words that no question has (`input.resource.type == "conection"`), questions that '
        "no door asks (`use` of a variable), another team's resources; a word that may be intended is a warning, which "
        "does not prevent publication",
        "Compare the rule with the words of [writing-rules.md](writing-rules.md).",
    ),
    "code": Rule(
        "codes (`custom.code` in METADATA) that are not unique among the rules of a team, that a reason does not begin "
        "with, or of another form than `ALPHA-1`; a reason that begins like a code without METADATA is a warning",
        "See [writing-rules.md](writing-rules.md#give-a-rule-a-code).",
    ),
    # What would fail in an engine, or differ between engines
    "may-conflict": Rule(
        "rules that may have two values, which would be an error for every team in the same list",
        "Make the value from terms that have one value, or collect a set.",
    ),
    "partial-object": Rule("rules that may give one key two values", "Write an object comprehension."),
    "rule-head": Rule("rules with a variable in their name", "Collect a set or an object."),
    "operand-type": Rule(
        "calls of built-in functions with an operand that may have a wrong type: null, an item of a mixed array",
        "Exclude the type in the line before: `is_string(x)`.",
    ),
    "engines-differ": Rule(
        "what OPA and Wasm evaluate differently: computing with numbers, fractions, integers above 2^53; arrays made "
        "in the order of a set or object; `json.marshal`; some patterns of `glob.match`",
        "Order arrays with `sort([…])`, and compare numbers without computing.",
    ),
    "pattern": Rule(
        "patterns of `regex.match` and `glob.match` that are not constants in the call, that are invalid or mean "
        "different things to the engines, or that Wasm compiles slowly, such as `.{1,1000}`; `glob.match` with `**` or "
        "with null delimiters, which in Wasm stop at a line break",
        "Write `startswith`, or a simpler pattern.",
    ),
    # Data
    "data-invalid": Rule("data that `schema.json` does not allow", "Correct the data, or the schema."),
    "data-key": Rule("keys that are no names for the type checker", "Rename the key."),
    "schema-missing": Rule("rules that read data without a schema", "Write `schema.json`."),
    "schema-untyped": Rule("values without one type in the schema", "Give each value one type."),
    "schema-named": Rule("metadata with other schemas than `schema.input`", "Name only `input: schema.input`."),
    # Tests
    "no-tests": Rule("packages without a test case", "Write `teams/<id>/<id>_test.rego`."),
    "test-failed": Rule("failing test cases", "Run `opa test .` in the directory."),
    "coverage": Rule("tests that cover less than 90 % of the lines", "Test the lines that the findings name."),
    "merged": Rule("packages that do not compile together with the platform's policy", "Check with `--platform DIR`."),
    "platform-tests": Rule("packages that break the platform's own tests", "Check with `--platform DIR`."),
}  # fmt: skip


def as_markdown() -> str:
    """The table of ``PAGE``."""
    rows = [f"| `{id_}` | {rule.refuses} | {rule.help} |\n" for id_, rule in RULES.items()]
    return "".join(["| rule | what it refuses | what to do |\n|---|---|---|\n", *rows])
