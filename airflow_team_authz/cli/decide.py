"""``team-authz decide``: asks the engine a question, and prints the answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.support.console import Output, OutputOption, UserError, print_columns, print_json
from airflow_team_authz.cli.support.engine import PolicyOption, UrlOption, configured_engine, named_engine, opened

if TYPE_CHECKING:
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.model import Decision, Evaluation

DENIED = 1


def decide(
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="One question or a list of them, as JSON.")],
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Ask one question, or many, and print each decision with its reasons.

    Exit code 0: the policy allows all. 1: it denies something. 2: the engine could not decide.

    A question is {"subject": {"type": "user", "id": "ann", "roles": ["op"], "team_ids": ["alpha"]}, "action": "read",
    "resource": {"type": "connection", "id": "pg", "team_id": "alpha"}}; a team_id of null means common to all teams.
    """
    from airflow_team_authz.cli.support.question_file import read_questions
    from airflow_team_authz.engines import DecisionPoint

    name, text = read_file(file)
    questions = read_questions(name, text)
    with opened(named_engine(policy, opa_url) or configured_engine()) as engine:
        answers = ask(DecisionPoint(engine), questions)
    if output is Output.JSON:
        print_json([_as_json(decision, revision) for decision, revision in answers])
    else:
        print_columns([_as_text(decision, revision) for decision, revision in answers])
    if not all(decision.allow for decision, _ in answers):
        raise typer.Exit(DENIED)


def ask(point: DecisionPoint, questions: Sequence[Evaluation]) -> list[tuple[Decision, str]]:
    """Decision and policy revision of each question, in order; what shares all but the resource is asked at once."""
    from airflow_team_authz.model import Evaluations

    together = defaultdict(list)
    for i, question in enumerate(questions):
        together[question.subject, question.action, question.context].append(i)
    answers: dict[int, tuple[Decision, str]] = {}
    for (subject, action, context), indices in together.items():
        resources = [questions[i].resource for i in indices]
        decisions, revision, _ = point.decide(Evaluations(subject, action, resources, context))
        answers.update((i, (decision, revision)) for i, decision in zip(indices, decisions, strict=True))
    return [answers[i] for i in range(len(questions))]


def read_file(file: Path) -> tuple[str, bytes]:
    """A document's name in messages, and its content; ``-`` is standard input."""
    if str(file) == "-":
        return "standard input", typer.get_binary_stream("stdin").read()
    try:
        return str(file), file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): name a JSON file, or - for standard input"
        ) from None


def _as_json(decision: Decision, revision: str) -> dict[str, Any]:
    from msgspec import UNSET

    return {
        "allow": decision.allow,
        "reasons": list(decision.reasons),
        "layer": decision.layer,
        "revision": revision,
    } | ({} if decision.team_version is UNSET else {"team_version": decision.team_version})


def _as_text(decision: Decision, revision: str) -> list[str]:
    from msgspec import UNSET

    reasons = "; ".join(decision.reasons) or "no reason given"
    policy = f"revision {revision or 'unnamed'}"
    if decision.team_version is not UNSET:
        policy += f", version {decision.team_version} of the team's package"
    return ["allow" if decision.allow else "deny", decision.layer, reasons, policy]
