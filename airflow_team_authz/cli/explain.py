"""``team-authz explain``: the rules that led to an answer, and changes that would reverse it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.support.console import (
    Report,
    UserError,
    as_code,
    print_columns,
    print_json,
    print_line,
    talking_to_stderr,
)
from airflow_team_authz.cli.support.engine import PolicyOption, UrlOption, configured_engine, named_engine, opened

if TYPE_CHECKING:
    from airflow_team_authz.engines.choice import EngineSettings
    from airflow_team_authz.explanation import Explanation, Step
    from airflow_team_authz.model import Evaluation

DENIED = 1
_MOST_FILES = 50_000


def explain(
    question: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|- or USER ACTION TYPE/ID",
            help="One question as JSON; or a user of the login manager, an action and a resource of this Airflow.",
        ),
    ] = None,
    decision: Annotated[str | None, typer.Option(metavar="ID", help="Explain this record of the decision log.")] = None,
    team: Annotated[
        str | None,
        typer.Option(metavar="ID", help="With USER ACTION TYPE/ID: the owner of a resource that does not exist yet."),
    ] = None,
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    sources: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The policy directory with the sources of the bundle or the OPA server."),
    ] = None,
    output: Annotated[Report, typer.Option("--output", "-o", help="The form of the explanation.")] = Report.TEXT,
) -> None:
    """Explain an answer: the five steps in order, each rule with its place, and changes that would reverse the answer.

    team-authz explain bea read connection/alpha_db

    Exit code 0: allowed. 1: denied. 2: the engine could not decide, or the command cannot read the rules.
    """
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.explanation import explain as explain_question

    asked = _asked(question or [], decision, team)
    settings = named_engine(policy, opa_url) or configured_engine()
    files, where = _files(settings, sources)
    with opened(settings) as engine:
        explanation = explain_question(DecisionPoint(engine), asked, files, where)
    _PRINT[output](explanation)
    if not explanation.decision.allow:
        raise typer.Exit(DENIED)


# What is asked


def _asked(question: Sequence[str], decision: str | None, team: str | None) -> Evaluation:
    if decision is not None and not question:
        return _recorded(decision)
    if len(question) == 1 and decision is None and team is None:
        return _written(question[0])
    if len(question) == 3 and decision is None:
        user, action, resource = question
        return _named(user, action, resource, team)
    raise UserError("name a file with one question, or USER ACTION TYPE/ID, or a decision by --decision ID")


def _written(file: str) -> Evaluation:
    from airflow_team_authz.cli.decide import read_file
    from airflow_team_authz.cli.support.question_file import read_questions

    name, text = read_file(Path(file))
    questions = read_questions(name, text)
    if len(questions) != 1:
        raise UserError(f"{name} has {len(questions)} questions: give explain a file with one question")
    return questions[0]


def _recorded(decision: str) -> Evaluation:
    import msgspec

    from airflow_team_authz.cli.support.decision_log import record_of
    from airflow_team_authz.model import Evaluation

    input_ = record_of(decision).get("input") or {}
    if "resource" not in input_:
        raise UserError(f"decision {decision} is about a list: ask about one of its resources by USER ACTION TYPE/ID")
    try:
        return msgspec.convert(input_, Evaluation)
    except msgspec.ValidationError as error:
        raise UserError(
            f"decision {decision} cannot be asked again ({error}): [team_authz] decision_log_masks has removed a part"
        ) from None


def _named(user: str, action: str, resource: str, team: str | None) -> Evaluation:
    from airflow_team_authz.cli.support.login import login_manager, name_of
    from airflow_team_authz.cli.support.resources import resource_named
    from airflow_team_authz.model import Evaluation

    if action != "list" and not resource.partition("/")[2]:
        raise UserError(f"{resource!r} is not a resource: write TYPE/ID, such as connection/alpha_db")
    about = resource_named(action, resource, team)
    with talking_to_stderr():
        manager = login_manager()
        try:
            somebody = manager.find(user)
        except LookupError as error:
            raise UserError(f"{error}: write the question into a file") from None
        if somebody is None:
            raise UserError(f"{name_of(manager)} has no user {user}")
        return Evaluation(manager.subject(somebody), action, about)


# Where the rules are


def _files(settings: EngineSettings, sources: Path | None) -> tuple[Mapping[str, bytes], str]:
    """The files of the policy that is in force, and where they come from."""
    from airflow_team_authz.engines.choice import packaged_baseline
    from airflow_team_authz.review.names import read_policy

    policy = settings.policy
    if sources is None and settings.opa_url is None and isinstance(policy, Path) and policy.is_dir():
        sources = policy
    if sources is not None:
        if not sources.is_dir():
            raise UserError(f"{sources} is not a directory: name the policy directory")
        files = read_policy(sources)
        if len(files) > _MOST_FILES:
            raise UserError(f"{sources} has more than {_MOST_FILES} files: name the policy directory")
        return files, str(sources)
    if settings.opa_url is None and policy in {None, packaged_baseline()}:
        return {}, "the package"
    raise UserError(
        "this command cannot read rules from a bundle or an OPA server: name the directory of their sources by "
        "--sources"
    )


# How it is told


def _print_text(explanation: Explanation) -> None:
    decision, question = explanation.decision, explanation.question
    print_columns([["allow" if decision.allow else "deny", decision.layer, "; ".join(decision.reasons)]])
    print_line()
    rows = [["who", f"{question.subject.type} {question.subject.id}{_standing(explanation)}"]]
    rows += [["because", line] for line in _entries(explanation)]
    print_columns(rows)
    print_line()
    for number, step in enumerate(explanation.steps, 1):
        print_line(f"{number} {step.name}: {_said(step)}")
        for told in _rules(explanation, step):
            print_line(f"    {told}")
    _print_changes(explanation, "  ")


def _print_markdown(explanation: Explanation) -> None:
    decision, question = explanation.decision, explanation.question
    print_line(f"## {'Allowed' if decision.allow else 'Denied'}: {as_code('; '.join(decision.reasons))}")
    print_line()
    print_line(f"{as_code(f'{question.subject.type} {question.subject.id}')}{_standing(explanation)}")
    print_line()
    for number, step in enumerate(explanation.steps, 1):
        print_line(f"{number}. **{step.name}**: {_said(step)}")
        for told in _rules(explanation, step):
            print_line(f"   - {as_code(told)}")
    _print_changes(explanation, "- ")


def _print_json(explanation: Explanation) -> None:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(explanation.question)
    steps = [
        {
            "step": step.name, "allows": step.allows, "speaks": step.speaks, "decides": step.decides,
            "notes": list(step.notes),
            "rules": [
                {
                    "file": rule.file, "line": rule.line, "title": rule.title, "code": rule.code,
                    "reasons": list(rule.reasons),
                    "missing": None if rule.missing is None else rule.missing._asdict(),
                }
                for rule in step.rules
            ],
        }
        for step in explanation.steps
    ]  # fmt: skip
    print_json(
        {
            "question": told,
            "decision": msgspec.to_builtins(explanation.decision) | {"revision": explanation.revision},
            "standing": msgspec.to_builtins(explanation.standing),
            "steps": steps,
            "changes": [
                {"told": change.told, "subject": msgspec.to_builtins(change.subject)} for change in explanation.changes
            ],
            "sources": explanation.sources,
            "doubt": explanation.doubt,
        }
    )


def _print_changes(explanation: Explanation, bullet: str) -> None:
    print_line()
    turned = "denied" if explanation.decision.allow else "allowed"
    if explanation.changes:
        print_line(f"It would be {turned} with one of these:")
        for change in explanation.changes:
            print_line(f"{bullet}{change.told}")
    elif explanation.question.subject.type == "user":
        print_line(f"No single role, group or claim would make it {turned}.")
    if explanation.doubt:
        print_line()
        print_line(f"Note: {explanation.doubt}.")


def _standing(explanation: Explanation) -> str:
    standing, team_id = explanation.standing, explanation.question.resource.team_id
    held = standing.common_roles if team_id is None else standing.team_roles.get(team_id, standing.platform_roles)
    where = "in common" if team_id is None else f"in team {team_id}"
    return f", {', '.join(held) or 'no role'} {where}"


def _entries(explanation: Explanation) -> Iterator[str]:
    from airflow_team_authz.cli.whoami import because

    yield from map(because, explanation.standing.entries)


def _said(step: Step) -> str:
    if step.decides:
        said = "yes, and this decides"
    elif step.speaks:
        said = "yes, but an earlier step has decided"
    else:
        said = "no"
    return "; ".join([said, *step.notes])


def _rules(explanation: Explanation, step: Step) -> Iterator[str]:
    """The rules of a step that speak, and those that could turn the answer round."""
    would = "allow" if step.allows else "deny"
    for rule in step.rules:
        place = f"{rule.file}:{rule.line}" + (f" ({rule.code})" if rule.code else "")
        if rule.reasons:
            yield f"{place} applies: {'; '.join(rule.reasons)}"
        elif rule.missing is not None and step.allows is not explanation.decision.allow:
            yield f"{place} would {would} it, but line {rule.missing.line} is not true: {rule.missing.text}"


_PRINT = {Report.TEXT: _print_text, Report.JSON: _print_json, Report.MARKDOWN: _print_markdown}
