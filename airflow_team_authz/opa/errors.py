"""Translates errors of the ``opa`` program into sentences that name the mistake and the way out.

All that OPA reports is read here, as JSON or as text, whichever command has printed it. Uses the standard library only,
because a build of the wheel compiles policies too.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple


class OpaError(Exception):
    """Policies cannot be compiled, unpacked or started."""


class Problem(NamedTuple):
    """A mistake. ``file`` is empty if OPA names none; ``line`` begins with 1."""

    file: str
    line: int
    message: str
    help: str

    def __str__(self) -> str:
        """On one line, as compilers write it."""
        return f"{self.file}:{self.line}: {self.message}: {self.help}"


class _Said(NamedTuple):
    """An error in OPA's words. ``details`` are the line of the file that it quotes, or types, as one line."""

    file: str
    line: int
    code: str
    message: str
    details: str = ""


class _Mistake(NamedTuple):
    """OPA's words for a mistake, and ours; ``{0}`` and so on are the groups of the pattern."""

    said: re.Pattern[str]
    sentence: str
    help: str


def problems(told: str, functions: Collection[str] = ()) -> list[Problem]:
    """The mistakes in what an ``opa`` command has printed, each once; none if it names no file.

    ``functions`` are the built-in functions that a policy may call: a misspelt one is told with the nearest.
    """
    try:
        printed = json.loads(told)
    except (ValueError, RecursionError):
        printed = None
    if isinstance(printed, list):
        # Results of `opa test --format json`.
        return [_failed(test) for test in printed if test.get("fail") or test.get("error")]
    found: dict[tuple[str, int, str], Problem] = {}
    for said in _as_json(printed) if isinstance(printed, dict) else _as_text(told):
        problem = _in_our_words(said, functions)
        follows = _FOLLOWS.search(said.message) and any(key[:2] == (said.file, said.line) for key in found)
        if said.file and not follows:
            found.setdefault((problem.file, problem.line, problem.message.partition(" (opa: ")[0]), problem)
    return list(found.values())


def in_one_text(told: str, functions: Collection[str] = ()) -> str:
    """The same as one text; what OPA has printed, on one line, if there is no mistake that it could be read as."""
    return "; ".join(map(str, problems(told, functions))) or " ".join(told.split())


def _failed(test: dict[str, Any]) -> Problem:
    failed = _at(test, f"{test.get('name')} fails")
    cases = [name for name, case in (test.get("sub_results") or {}).items() if case.get("fail")]
    error = test.get("error") or {}
    message = failed.message + (f" for {', '.join(cases)}" if cases else "")
    if error:
        message += f": {_in_our_words(_at(error, str(error.get('message')), str(error.get('code'))), ()).message}"
    return Problem(failed.file, failed.line, message, "see `opa test .`")


def _as_json(printed: dict[str, Any]) -> Iterator[_Said]:
    errors = printed.get("errors")
    for error in errors if isinstance(errors, list) else []:
        if isinstance(error, dict):
            yield _at(error, str(error.get("message")), str(error.get("code")))


def _at(error: dict[str, Any], message: str, code: str = "") -> _Said:
    place = error.get("location")
    file, row = (place.get("file"), place.get("row")) if isinstance(place, dict) else ("", 1)
    line = row if isinstance(row, int) and row > 0 else 1
    return _Said(_plain(str(file or "")), line, code, " ".join(message.split()))


# Before an error OPA says what it was doing, and how many errors there are: on the same line if there is one.
_DOING = re.compile(
    r"^(?:error: |load error: |unable to load bundle \S+: |bundle \S+: |\d+ errors? occurred(?: during loading)?:\s*)+"
)
_RULES = re.compile(r"^(?P<file>.+?\.rego):(?P<line>\d+): (?P<code>rego_\w+): (?P<message>.*)$")
_DATA = re.compile(r"^(?:bundle load failed on )?(?P<file>.+?\.(?:json|ya?ml)): (?P<message>.*)$")


def _as_text(told: str) -> Iterator[_Said]:
    said: _Said | None = None
    for line in told.splitlines():
        first = _DOING.sub("", line)
        rules, data = _RULES.match(first), _DATA.match(first)
        if line[:1].isspace() or not (rules or data):
            # The line of the file, or which types there are and should be.
            said = said and said._replace(details=f"{said.details} {line.strip()}".rstrip())
            continue
        if said:
            yield said
        if rules:
            said = _Said(_plain(rules["file"]), int(rules["line"]) or 1, rules["code"], rules["message"])
        elif data:
            said = _Said(_plain(data["file"]), 1, "", data["message"])
    if said:
        yield said


def _plain(name: str) -> str:
    """A path within the policy, however OPA was told where that is."""
    return re.sub(r"^(\./)*/?", "", name)


def _in_our_words(said: _Said, functions: Collection[str]) -> Problem:
    # The names that its compiler gives to variables are nobody's.
    said = said._replace(message=re.sub(r"__local\d+__", "_", said.message))
    told = (f"{said.code}: {said.message}" if said.code else said.message)[:200].rstrip()
    for mistake in _MISTAKES:
        if match := mistake.said.search(f"{said.code}: {said.message}{said.details}"):
            words = [word or "" for word in match.groups()]
            near = _nearest(words, said.details, functions)
            message = f"{mistake.sentence.format(*words)} (opa: {told})"
            help_ = mistake.help.format(*words, near=near, **_SHARED)
            return Problem(said.file, said.line, message, help_)
    return Problem(said.file, said.line, told or "opa refuses it", _ELSE)


def _nearest(words: list[str], details: str, functions: Collection[str]) -> str:
    """The existing name that a misspelt one probably means."""
    wanted = re.search(r"want \(one of\): \[(.*)\]", details)
    known = re.findall(r'"([^"]*)"', wanted[1]) if wanted else functions
    near = difflib.get_close_matches(words[-1] if wanted else words[0], list(known), n=1, cutoff=0.75) if words else []
    listed = f"there are {', '.join(known)}" if wanted else "see the functions in capabilities.json of the package"
    return f"did you mean {near[0]}?" if near else listed


_ELSE = "see https://www.openpolicyagent.org/docs/policy-language"
# What OPA says after an error of the same line, because of that.
_FOLLOWS = re.compile(r"^(?:illegal token|expected } to end template|string cannot|boolean cannot|rule name conflicts)")
# Of which several rows speak.
_SHARED = {
    "v0": 'this may be Rego as it was before OPA 1.0; today it is `deny contains "the reason" if { … }`, and '
    "`opa fmt --v0-v1 --write` rewrites a file",
    "conditions": "write each condition on a line of its own between { and }, where all have to hold; for a choice "
    "write a second rule",
}
# What OPA says, what that means, and what to do. The first row that fits counts: from the particular to the general.
_TABLE = r"""
`if` keyword is required before (\w+) body
the {0} has a body without `if` before it
{v0}

`contains` keyword is required
the rule adds to a set without `contains`
{v0}

package expected
the file does not begin with its package
write `package airflow.site`, or `package teams.<id>` in a team's file, as its first line

empty module
there is no rule in the file, and no package
write a package and rules into it, or delete it

unexpected package
the file has a second package
make it another file

unexpected eof token: expected "[^"]+" or "(.)"
the file ends before a closing {0}
close it; its beginning may be some lines above

unexpected eof token
the file ends in the middle of a rule
close each {{ by a }}, and write what is missing after the last word

unexpected } token
there is a }} without its {{
take it out, or write the {{

non-terminated string
a text is not closed
write " behind it; a text in double quotes ends on its line

illegal escape sequence
a text has a backslash that means nothing
write \\ for a backslash, or the text between backticks

illegal utf-8 character
the file is not UTF-8
save the file as UTF-8

illegal null character
the file has a null character
save the file as UTF-8

non-breaking space
the file has a space that is no ordinary one
write an ordinary space

illegal (?:\S+ character|token)
there is a character here that Rego does not know
texts have straight double quotes ("…"), comments begin with #, and `not` is a word

unexpected (?:and|or) token
& and | join sets, not conditions
{conditions}

unexpected , token: expected \\n
a comma stands between conditions
{conditions}

unexpected div token
a rule begins with /
comments begin with #

unexpected minus token
there is a - in a name
write the name in brackets and quotes: `package teams["my-team"]`

unexpected (?:eq|assign) token
there is a = too many
compare by ==, and give a variable its value by :=

missing body
`every` has no body
write `every x in … {{ … }}`

yaml: .*
the metadata above a rule or package is no YAML
correct the comment after `# METADATA`

(?:var|\w+ keyword|string|boolean|number|ref|call) cannot be used for rule name|rule name conflicts
what stands here is no rule, and no part of one
{conditions}; Rego has no words `and`, `or` and `when`

unexpected import path
it imports what is neither data, input, rego nor future
import data.…: packages begin with it

illegal default rule
a default has no constant value
write `default name := value`; sets need none

unexpected (\S+) (?:token|keyword|identifier)
{0} cannot stand here
look at what is before it: an operator, a name or a bracket may be missing; a condition ends with its line

undefined function (?:internal\.)?(print|trace)\b
policies may not call {0}
take it out; tests may print

undefined function (\S+)
there is no function {0} that a policy may call
{near}

(\S+): arity mismatch have: (.*?) want: (.*)
{0} is called with {1}, and takes {2}
give it as many arguments as it takes

(\S+): invalid argument\(s\) have: (.*?) want: (.*)
{0} is called with {1}, and takes {2}
give it what it takes

undefined ref: (\S+).* have: "([^"]*)" want \(one of\)
there is no {0}
{near}

undefined ref: (\S+).* want \(type\): (\w+)
there is no {0}: what it is read of has keys of the type {1}
search a list by `x in list`

undefined ref: (\S+).* have: (\w+)
there is no {0}: what it is read of is a {1}, which has no parts
read the {1} itself

undefined schema: (\S+)
its metadata names the schema {0}, which does not exist
say `- input: schema.input`, or take `schemas` out

match error left *: (.*?) right *: (.*)
it compares a {0} with a {1}, which are never the same
compare things of one type

conflicting rules (?:data\.)?(\S+) found
{0} is several things at once, such as a set and a value
define it in one way: by `contains` each time or never; a function with as many arguments each time

multiple default rules (?:data\.)?(\S+) found
{0} has several defaults
leave one of them

package (\S+) conflicts with rule (\S+)
{1} is the name of a rule and of the package {0}
call one of them otherwise

rule (?:data\.)?(\S+) conflicts with
{0} is a rule, and the beginning of another's name
call one of them otherwise

(?:rule|function) (\S+) (?:is|may be) recursive: (.*)
{0} is made of itself: {1}
take one of these steps out: Rego has no recursion

var (\S+) is unsafe
nothing gives {0} a value
is it spelt right, is a text in quotes? Else say where it comes from, before `not`: `some {0} in …`, `{0} := …`

expression is unsafe
nothing gives a variable of this line a value
say where it comes from, in a line before: `some x in …`, `x := …`

(?:var|arg) (\S+) (?:assigned above|declared above|referenced above|redeclared)
{0} gets a value twice
take another name, or compare by ==

(?:assigned|declared) var (\S+) unused
nothing reads {0}
take it out; is another name misspelt?

unused argument (\S+?)\.
the function does not read its argument {0}
write _ instead

import (\S+) unused
nothing reads the import {0}
take it out

import must not shadow
two imports have one name
give one of them another: `import data.a.x as y`

(?:variables|rules) must not shadow (\w+)
a name hides {0}
take another name

cannot assign vars inside negated expression
a variable gets its value within `not`
give it the value in a line before

with keyword target
`with` replaces what there is not
it replaces input, data or a function, and is for tests

eval_builtin_error: (\S+): (.*)
the function {0} fails: {1}
test type and value before the call

(\S+) produced conflicting values
{0} has several values for one question
give all its definitions one value, chain them by else, or collect the values in a set

must not produce multiple outputs
a rule or function has several values for one question
give all its definitions one value, chain them by else, or collect the values in a set

object keys must be unique
an object gets two values for one key
collect the values in a set

failed to insert data file
two files say something of the same data
say it in one of them

invalid character|EOF|yaml|root value must be object|unexpected end of JSON
the file is no JSON or YAML that OPA can load
correct it; the whole is one object
"""


def _rows() -> Iterator[_Mistake]:
    for row in _TABLE.strip().split("\n\n"):
        said, sentence, help_ = row.split("\n")
        yield _Mistake(re.compile(said, re.DOTALL), sentence, help_)


_MISTAKES = tuple(_rows())
