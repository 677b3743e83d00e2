"""Explains an answer: the rules that applied, the first false condition of the others, and changes that reverse it.

The decision is the engine's. What rules say is asked of OPA over the policy's sources: beside each rule that people
write, probes hold the first one, two, … conditions of its body, so that the longest that holds shows the first
condition that does not. What would change the answer is tried, by the engine that decides.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UnsetType
from msgspec.structs import replace

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.gate.codes import code_in
from airflow_team_authz.model import Decision, Evaluation, Evaluations, Resource, Standing, Subject
from airflow_team_authz.opa.compile import CompileError, find_opa, merged, run_opa, scratch_directory, shipped_policies
from airflow_team_authz.review.names import directory_entries

_POLICY = "policy"
_PROBE = "team_authz_probe"
_BASELINE = "data.airflow.authz.baseline"
# The answer must come soon, however many names the directory has for a role.
_MOST_TRIED = 200


class Condition(NamedTuple):
    """A line of a rule's body, as it is written."""

    line: int
    text: str


class Rule(NamedTuple):
    """A rule that people write. ``reasons`` are what it says of this question; none: it does not apply.

    ``code`` is that of its METADATA. ``missing`` is the first condition that does not hold; ``None`` if the rule
    applies, or if nobody can say.
    """

    file: str
    line: int
    title: str
    code: str
    reasons: tuple[str, ...]
    missing: Condition | None


class Step(NamedTuple):
    """A step of a decision, of five; it ``allows`` or denies. ``speaks``: it does so here.

    ``decides``: it is the first that does. ``notes`` say what roles have to do with it.
    """

    name: str
    allows: bool
    speaks: bool
    decides: bool
    rules: tuple[Rule, ...]
    notes: tuple[str, ...] = ()


class Change(NamedTuple):
    """A change that reverses the answer, tested with the engine: a sentence, and the changed subject."""

    told: str
    subject: Subject


class Explanation(NamedTuple):
    """Everything about one answer. ``sources``: where the rules were read. ``doubt``: how those decide otherwise."""

    question: Evaluation
    decision: Decision
    revision: str
    standing: Standing
    steps: tuple[Step, ...]
    changes: tuple[Change, ...]
    sources: str
    doubt: str


class _Written(NamedTuple):
    """A rule as OPA has parsed it."""

    number: int
    file: str
    line: int
    title: str
    code: str
    package: str
    imports: tuple[str, ...]
    kind: str
    reason: str
    reason_if: str
    body: tuple[Condition, ...]


def explain(point: DecisionPoint, question: Evaluation, sources: Mapping[str, bytes], where: str) -> Explanation:
    """Explain the answer to ``question``. ``sources`` are the files of the policy, by path; ``where`` they come from.

    Raises an ``EngineError`` if there is no decision, and ``CompileError`` if OPA cannot read the sources.
    """
    (decision,), revision, _ = point.decide(_many(question, [question.resource]))
    standing, _ = point.whoami(question.subject)
    found = _evaluate(sources, question)
    doubt = ""
    if (said := found.decision) != {
        "allow": decision.allow,
        "layer": decision.layer,
        "reasons": list(decision.reasons),
    }:
        doubt = (
            f"the rules in {where} are not those in force: they answer {json.dumps(said)}. What is said of rules here "
            "may be wrong. Name the directory of the policy in force by --sources"
        )
    steps = tuple(_steps(question, found))
    directory = json.loads(sources.get("airflow/directory/data.json", b"{}"))
    changes = tuple(_changes(point, question, decision.allow, standing, found, directory))
    return Explanation(question, decision, revision, standing, steps, changes, where, doubt)


def deciding_rules(question: Evaluation, sources: Mapping[str, bytes]) -> tuple[Rule, ...]:
    """The rules that people write, if they decide the question; ``CompileError`` if OPA cannot read the sources."""
    steps = _steps(question, _evaluate(sources, question))
    return tuple(rule for step in steps if step.decides for rule in step.rules if rule.reasons)


def _many(question: Evaluation, resources: Sequence[Resource]) -> Evaluations:
    return Evaluations(question.subject, question.action, resources, question.context)


# What the rules say


class _Found(NamedTuple):
    """OPA's answer: the decision, the result of each rule, the roles that are enough, and the roles that are held.

    ``rules`` are by number and hold the reasons, and how many conditions of the body hold in a row.
    """

    decision: dict[str, Any]
    speaking: list[str]
    written: list[_Written]
    reasons: Mapping[int, list[str]]
    longest: Mapping[int, int]
    enough: list[str]
    held: list[str]

    def rules(self, kind: str, *packages: str) -> tuple[Rule, ...]:
        """The rules of this kind in packages whose names begin so."""
        return tuple(
            self._rule(rule) for rule in self.written if rule.kind == kind and rule.package.startswith(packages)
        )

    def _rule(self, rule: _Written) -> Rule:
        reasons = tuple(self.reasons.get(rule.number, ()))
        longest = self.longest.get(rule.number)
        known = not reasons and longest is not None and longest < len(rule.body)
        return Rule(rule.file, rule.line, rule.title, rule.code, reasons, rule.body[longest or 0] if known else None)


def _evaluate(files: Mapping[str, bytes], question: Evaluation) -> _Found:
    """The values of a policy's rules for one question."""
    opa = find_opa()
    with scratch_directory() as directory:
        place = Path(directory)
        whole = merged(files)
        for name, content in whole.items():
            file = place / _POLICY / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        owner = question.resource.team_id
        names = sorted(name for name in whole if _is_written_by_people(name, owner))
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(partial(_parse, opa, place / _POLICY), names))
        asked = [["airflow", "authz", "guardrails"], ["airflow", "site"], *([["teams", owner]] if owner else [])]
        read = [rule for name, tree in zip(names, trees, strict=True) for rule in _read(name, tree, asked)]
        rules = [rule._replace(number=number) for number, rule in enumerate(read)]
        (place / "question").write_bytes(msgspec.json.encode(question))
        is_person = question.subject.type == "user"
        try:
            return _probed(opa, place, is_person, rules, rules)
        except CompileError:
            # A part of a body may mean nothing without the rest, such as a variable that is bound further down.
            return _probed(opa, place, is_person, rules, [rule for rule in rules if _stands(opa, place, rule)])


def _is_written_by_people(name: str, owner: str | None) -> bool:
    mine = () if owner is None else (f"teams/{owner}/",)
    return name.endswith(".rego") and name.startswith(("airflow/authz/guardrails/", "airflow/site/", *mine))


def _parse(opa: str, place: Path, name: str) -> dict[str, Any]:
    command = [opa, "parse", "--format", "json", "--json-include", "locations", name]
    tree: dict[str, Any] = json.loads(run_opa(command, place))
    return tree


def _read(name: str, tree: dict[str, Any], asked: Sequence[Sequence[str]]) -> Iterator[_Written]:
    """The rules ``allow`` and ``deny`` of a file, if its package is one of those that are asked."""
    package = [str(part["value"]) for part in tree["package"]["path"][1:]]
    if package not in asked:
        return
    imports = tuple(filter(None, map(_import, tree.get("imports") or [])))
    for rule in tree.get("rules") or []:
        head = rule["head"]
        if head.get("name") in {"allow", "deny"}:
            titles = [note["title"] for note in rule.get("annotations") or [] if note.get("title")]
            body = tuple(Condition(part["location"]["row"], _text(part)) for part in rule["body"])
            # Without a body it is as if the head were its own condition.
            body = () if body == (Condition(rule["location"]["row"], head["name"]),) else body
            yield _Written(
                -1, name, rule["location"]["row"], (titles or [""])[0], code_in(rule), _path(package), imports,
                head["name"], *_reason(head), body,
            )  # fmt: skip


def _reason(head: dict[str, Any]) -> tuple[str, str]:
    """The term that is a reason, and what has to hold for it. Of what is no set, the elements or values are reasons."""
    if "key" in head and "value" not in head:
        return _text(head["key"]), ""
    value = _text(head["value"]) if head.get("assign") else "true"
    return (value, "") if "key" in head else ("team_authz_reason", f"some team_authz_reason in {value}")


def _text(node: Any) -> str:
    return base64.b64decode(node["location"]["text"]).decode()


def _path(parts: Sequence[str]) -> str:
    return parts[0] + "".join(f"[{json.dumps(part)}]" for part in parts[1:])


def _import(node: dict[str, Any]) -> str:
    parts = [str(part["value"]) for part in node["path"]["value"]]
    return "" if parts[0] == "rego" else f"import {_path(parts)} as {node.get('alias') or parts[-1]}"


def _probe(rule: _Written) -> str:
    """A file beside the rule's own: how many of its conditions hold in a row, and its reasons."""
    lines = [f"package {rule.package}", *rule.imports, f"{_PROBE}_{rule.number} contains [0, null] if true"]
    for count in range(1, len(rule.body) + 1):
        body = "\n\t".join(condition.text for condition in rule.body[:count])
        lines.append(f"{_PROBE}_{rule.number} contains [{count}, null] if {{\n\t{body}\n}}")
    whole = "\n\t".join([*(condition.text for condition in rule.body), rule.reason_if or "true"])
    lines.append(f"{_PROBE}_{rule.number} contains [{len(rule.body)}, {rule.reason}] if {{\n\t{whole}\n}}")
    return "\n\n".join(lines) + "\n"


def _stands(opa: str, place: Path, rule: _Written) -> bool:
    """Whether OPA takes the probe of a rule."""
    (place / "alone").mkdir(exist_ok=True)
    (place / "alone" / "probe.rego").write_text(_probe(rule))
    try:
        run_opa([opa, "check", "alone"], place)
    except CompileError:
        return False
    return True


def _probed(opa: str, place: Path, is_person: bool, rules: list[_Written], probed: list[_Written]) -> _Found:
    """Ask, with the probes of some of the rules."""
    probes = place / _POLICY / "probes"
    shutil.rmtree(probes, ignore_errors=True)
    probes.mkdir()
    for rule in probed:
        (probes / f"{rule.number}.rego").write_text(_probe(rule))
    asked = {
        "decision": "data.airflow.authz.decision",
        "speaking": "data.airflow.authz.speaking",
        "enough": f"[role | some role in {_BASELINE}.enough(input.resource)]",
        "held": f"[role | some role in {_BASELINE}.roles(input.resource)]",
        "machines": f"[role | some role in {_BASELINE}.for_machines]",
        "roles_allow": f"[true | {_BASELINE}.allows(input.resource)]",
        "probes": "[[number, held, reason] | some number in numbers; some [held, reason] in probes[number]]",
    }
    named = ", ".join(f'"{rule.number}": data.{rule.package}.{_PROBE}_{rule.number}' for rule in probed)
    query = f"probes := {{{named}}}; numbers := object.keys(probes); x := " + (
        "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in asked.items()) + "}"
    )
    # No engine has compiled these sources: what policies may not call, nothing calls here either.
    may_call = ("--capabilities", str(shipped_policies() / "capabilities.json"))
    command = [opa, "eval", *may_call, "--bundle", _POLICY, "--input", "question", "--format", "json", query]
    (bindings,) = [one["bindings"]["x"] for one in json.loads(run_opa(command, place))["result"]]
    reasons, longest = defaultdict[int, list[str]](list), dict[int, int]()
    for number, held, reason in bindings["probes"]:
        longest[int(number)] = max(held, longest.get(int(number), 0))
        if reason is not None:
            reasons[int(number)].append(reason if isinstance(reason, str) else json.dumps(reason))
    # What a task may do by being one, nobody gets by a role.
    machines = bindings["machines"] if is_person else ()
    enough, held = (sorted(set(bindings[name]) - set(machines)) for name in ("enough", "held"))
    speaking = [*bindings["speaking"], *(["roles_allow"] if bindings["roles_allow"] else [])]
    return _Found(bindings["decision"], speaking, rules, reasons, longest, enough, held)


# The five steps


def _steps(question: Evaluation, found: _Found) -> Iterator[Step]:
    """In the order in which the first that has something to say decides: see ``authz.rego``."""
    team_id = question.resource.team_id
    own = _path(["teams", team_id]) if team_id is not None else ""
    site, guardrails = _path(["airflow", "site"]), _path(["airflow", "authz", "guardrails"])
    told = tuple(_about_roles(question, found))
    steps = {
        "platform_denies": Step("the platform denies", False, False, False, found.rules("deny", guardrails, site)),
        "team_denies": Step(f"team {team_id} denies", False, False, False, found.rules("deny", own)),
        "roles_allow": Step("roles allow", True, False, False, (), told),
        "platform_allows": Step("the platform allows", True, False, False, found.rules("allow", site)),
        "team_allows": Step(f"team {team_id} allows", True, False, False, found.rules("allow", own)),
    }
    decided = False
    for kind, step in steps.items():
        speaks = kind in found.speaking
        if own or not kind.startswith("team_"):
            yield step._replace(speaks=speaks, decides=speaks and not decided)
        decided = decided or speaks


def _about_roles(question: Evaluation, found: _Found) -> Iterator[str]:
    where = "in common" if question.resource.team_id is None else f"in team {question.resource.team_id}"
    subject = f"{question.subject.type} {question.subject.id}"
    yield f"{subject} holds {', '.join(found.held) or 'no role'} {where}"
    yield f"enough is {' or '.join(found.enough)}" if found.enough else "no role is enough"
    if "roles_allow" in found.speaking and not set(found.enough) & set(found.held):
        yield "the authors of the Dags have consented"
    if "roles_allow" not in found.speaking and set(found.enough) & set(found.held):
        yield "it is assigned to others"


# What would change it


def _changes(
    point: DecisionPoint, question: Evaluation, allowed: bool, standing: Standing, found: _Found, directory: Any
) -> Iterator[Change]:
    """Teams, roles, groups and claims that turn the answer round: each was tried."""
    if question.subject.type != "user":
        return
    tried = _fewer(question.subject, standing) if allowed else _more(question, found, directory)
    for change in islice(tried, _MOST_TRIED):
        asked = Evaluations(change.subject, question.action, [question.resource], question.context)
        if (point.decide(asked).decisions[0].allow is True) is not allowed:
            yield change


def _more(question: Evaluation, found: _Found, directory: Any) -> Iterator[Change]:
    """The subject with one thing more: a group, role or claim of the directory, or a team or role of the login."""
    subject, team_id = question.subject, question.resource.team_id
    # The least that is enough comes first: what holds in one team before what holds on the platform.
    for table, name, entry in sorted(directory_entries(directory), key=lambda named: named[2].get("team_id") is None):
        if team_id is None or entry.get("team_id") in {team_id, None}:
            with_it = _having(subject, table, name)
            if with_it != subject:
                yield Change(f"{_given(entry)}, which {_called(table, name)} gives", with_it)
    in_team = subject
    if team_id is not None and team_id not in (subject.team_ids or ()):
        in_team = replace(subject, team_ids=(*(subject.team_ids or ()), team_id))
        if subject.roles:
            roles = " or ".join(subject.roles)
            yield Change(f"membership in team {team_id}, with the login's own role {roles}", in_team)
    where = "" if team_id is None else f" in team {team_id}"
    for role in found.enough:
        if role not in (subject.roles or ()):
            yield Change(f"the login's role {role}{where}", replace(in_team, roles=(*(subject.roles or ()), role)))


def _fewer(subject: Subject, standing: Standing) -> Iterator[Change]:
    """The subject without one of the things that say something of it."""
    named = {(source.table, source.name) for source in standing.entries if "_patterns" not in source.table}
    named |= {("roles", role) for role in subject.roles or ()} | {("team_ids", team) for team in subject.team_ids or ()}
    named |= {("groups", group) for group in subject.groups or () if standing.entries}
    for table, name in sorted(named):
        without = _lacking(subject, table, name)
        if without != subject:
            yield Change(f"without {_called(table, name)}", without)


def _held(subject: Subject, table: str) -> tuple[str, ...]:
    if table.startswith("claims."):
        return _claims(subject).get(table.removeprefix("claims."), ())
    return getattr(subject, table) or ()


def _with(subject: Subject, table: str, names: tuple[str, ...]) -> Subject:
    if not table.startswith("claims."):
        return replace(subject, **{table: names})
    return replace(subject, claims={**_claims(subject), table.removeprefix("claims."): names})


def _claims(subject: Subject) -> dict[str, tuple[str, ...]]:
    return {} if isinstance(subject.claims, UnsetType) else subject.claims


def _having(subject: Subject, table: str, name: str) -> Subject:
    held = _held(subject, table)
    return subject if name in held else _with(subject, table, (*held, name))


def _lacking(subject: Subject, table: str, name: str) -> Subject:
    held = _held(subject, table)
    return _with(subject, table, tuple(one for one in held if one != name)) if name in held else subject


def _called(table: str, name: str) -> str:
    if table.startswith("claims."):
        return f"claim {table.removeprefix('claims.')}={name}"
    return f"{'team' if table == 'team_ids' else table.removesuffix('s')} {name}"


def _given(entry: Mapping[str, Any]) -> str:
    where = "on the platform" if entry.get("team_id") is None else f"in team {entry['team_id']}"
    return f"the role {entry['role']} {where}" if "role" in entry else f"membership {where}, with the login's own roles"
