"""``team-authz shadow report``, ``observe report`` and ``replay``: other answers to recorded questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.support.changes import Comparison, FailOnOption, ReportOption, places, print_changes
from airflow_team_authz.cli.support.console import Output, Progress, Report, UserError, complain
from airflow_team_authz.cli.support.decision_log import (
    FileOption,
    SinceOption,
    TeamOption,
    TypeOption,
    UserOption,
    moment_of,
    open_records,
)
from airflow_team_authz.cli.support.engine import Named, configured_engine, opened
from airflow_team_authz.cli.support.server_client import TokenOption, ask
from airflow_team_authz.files import replace_file, write_new

if TYPE_CHECKING:
    from airflow_team_authz.decision_log.reading import Record, Wanted
    from airflow_team_authz.review.names import Sources
    from airflow_team_authz.review.recorded import LogDifferences
    from airflow_team_authz.review.selectors import Selector

DIFFERS, FAILED = 1, 2
_PAGE = 500
# Of more remaining differences nobody reads the lines.
_MOST_REMAINING = 10

shadow_app = typer.Typer(no_args_is_help=True, help="See what the policy in [team_authz] shadow would change.")


@shadow_app.command("report")
def shadow_report(
    since: SinceOption = None,
    user: UserOption = None,
    team: TeamOption = None,
    type_: TypeOption = None,
    file: FileOption = None,
    fail_on: FailOnOption = None,
    output: ReportOption = Report.TEXT,
) -> None:
    """Show the recorded differences between the policy in force and the policy in [team_authz] shadow.

    One line has the differences of people with the same groups, roles and teams, about one action and type.

    Exit code 0: shown. 1: there are differences that --fail-on names. 2: the command cannot read the decision log, or
    the shadow policy has failed to answer.
    """
    from airflow_team_authz.decision_log.reading import Wanted

    wanted = Wanted(moment_of(since), user, team, type_, shadow=True)
    _print(_beside(file, wanted, "shadow"), output, "the shadow policy", fail_on)


observe_app = typer.Typer(
    no_args_is_help=True, help="See what the policy would change where [team_authz] mode is observe."
)


class By(StrEnum):
    """Whose differences are one line."""

    PERSON = "person"
    GROUPS = "groups"


@observe_app.command("report")
def observe_report(
    since: SinceOption = None,
    user: UserOption = None,
    team: TeamOption = None,
    type_: TypeOption = None,
    by: Annotated[
        By, typer.Option(help="One line for each person, or for people with the same groups, roles and teams.")
    ] = By.PERSON,
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write Rego rules that make the policy answer as the auth manager does."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Test the rules with this policy directory, not that of [team_authz] policy."),
    ] = None,
    file: FileOption = None,
    fail_on: FailOnOption = None,
    output: ReportOption = Report.TEXT,
) -> None:
    """Show the recorded differences between the auth manager that decides and the policy that only observes.

    With --rules, the command writes rules that end these differences, and tests them with a copy of the policy.

    Exit code 0: shown. 1: there are differences that --fail-on names. 2: the command cannot read the decision log, or
    the policy has failed to answer.
    """
    from airflow_team_authz.decision_log.reading import Wanted

    wanted = Wanted(moment_of(since), user, team, type_, shadow=True)
    found = _beside(file, wanted, "observe", by is By.PERSON)
    if rules is not None:
        directory = _policy_directory(policy)
        _check_name(rules, directory)
        _write_rules(rules, found, by is By.PERSON, directory)
    _print(found, output, "the policy", fail_on)


def _policy_directory(named: Path | None) -> Path:
    policy = configured_engine().policy if named is None else named
    if policy is None or not Path(policy).is_dir():
        where = "[team_authz] policy" if named is None else "--policy"
        raise UserError(f"{where} is not a directory, and --rules needs one to test the rules: name it by --policy DIR")
    return Path(policy)


def _check_name(file: Path, policy: Path) -> None:
    from airflow_team_authz.review.proposal import FOLDER

    if file.suffix != ".rego" or file.stem.endswith("_test"):
        raise UserError(f"--rules: OPA does not load rules from {file.name}: name a file such as observed.rego")
    for place in (file, policy / FOLDER / file.name):
        if place.exists():
            raise UserError(f"--rules: {place} exists, and its rules may be in use: name another file")


def _write_rules(file: Path, found: LogDifferences, by_person: bool, policy: Path) -> None:
    """Write the rules, and tell on stderr which differences they end in a copy of the policy."""
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.opa.compile import policy_files, scratch_directory
    from airflow_team_authz.review import kind_of
    from airflow_team_authz.review.proposal import FOLDER, propose, still_different

    every = [one for change in found.found.changes for one in change.every]
    proposal = propose(every, by_person)
    try:
        write_new(file, proposal.text.encode(), 0o666)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
    with scratch_directory() as copy:
        for source in policy_files(policy):
            replace_file(_made(Path(copy) / source.relative_to(policy)), source.read_bytes())
        replace_file(_made(Path(copy) / FOLDER / file.name), proposal.text.encode())
        with opened(Named(policy=Path(copy))) as engine:
            remaining = list(still_different(DecisionPoint(engine), every))
    ended = f"{len(every) - len(remaining):,} of {len(every):,} differences"
    complain(
        f"{file} has {proposal.rules:,} rules. They end {ended} in a copy of {policy}. "
        f"To use them, put the file into {policy / FOLDER}"
    )
    for one, answer in remaining[:_MOST_REMAINING]:
        question = one.question
        what = f"{question.subject.id} {question.action} {kind_of(one.resource)} {one.resource.id or ''}".rstrip()
        complain(f"no added rule ends this difference: {what}, {answer.layer}: {'; '.join(answer.reasons)}")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _beside(file: Path | None, wanted: Wanted, outcome: str, by_person: bool = False) -> LogDifferences:
    from airflow_team_authz.review.recorded import beside

    with open_records(file) as records:
        return beside(records.each(wanted), outcome, by_person)


def replay(
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The policy directory or the bundle to ask.")],
    since: SinceOption = None,
    user: UserOption = None,
    team: TeamOption = None,
    type_: TypeOption = None,
    door: Annotated[
        str | None, typer.Option(help="Questions of this door: users, tasks, datasets, pools, opa, other.")
    ] = None,
    file: FileOption = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Read the decisions that this bundle server has collected.")
    ] = None,
    token_file: TokenOption = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read this decision log of a stock OPA server: one JSON record in a line."),
    ] = None,
    fail_on: FailOnOption = None,
    output: ReportOption = Report.TEXT,
) -> None:
    """Decide recorded decisions again, by another policy, and show the different answers.

    The records come from the decision log of this Airflow, a file, a bundle server, or an OPA server's own log.

    Exit code 0: shown. 1: there are differences that --fail-on names. 2: the command cannot read the log or the policy,
    the log has no decision to decide again, or the policy has failed to answer.
    """
    from airflow_team_authz.decision_log.reading import Wanted
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.review.kinds import Kinds
    from airflow_team_authz.review.names import read_sources
    from airflow_team_authz.review.recorded import NOT_RECORDED
    from airflow_team_authz.review.recorded import replay as decide_again

    if sum(place is not None for place in (file, server, against)) > 1:
        raise UserError("--file, --server and --against exclude each other: name one place with records")
    if not candidate.exists():
        raise UserError(f"there is no {candidate}: name a policy directory or a bundle")
    wanted = Wanted(moment_of(since), user, team, type_)
    sources = read_sources(candidate)
    progress = Progress("decisions decided again")
    with opened(Named(policy=candidate)) as engine, _records(file, server, token_file, against, wanted) as records:
        chosen = (one for one in records if door is None or _is_at(one, door))
        found = decide_again(DecisionPoint(engine, name=str(candidate)), chosen, Kinds(sources).roles, progress)
    progress.end()
    left_out = found.left_out | ({} if against else {NOT_RECORDED: 0})
    _print(found._replace(left_out=left_out), output, str(candidate), fail_on, None, sources)
    if not found.found.questions:
        raise UserError("the log has no decision that can be decided again, so nothing is compared")


@contextmanager
def _records(
    file: Path | None, server: str | None, token_file: Path | None, against: Path | None, wanted: Wanted
) -> Iterator[Iterator[Record]]:
    """The wanted records of one place; ``UserError`` if they cannot be read there."""
    from airflow_team_authz.decision_log.reading import of_opa

    if server is not None:
        yield _of_server(server, token_file, wanted)
    elif against is not None:
        try:
            yield (record for record in of_opa(against) if wanted.fits(record))
        except OSError as error:
            raise UserError(f"the decision log {against} cannot be read: {error.strerror}") from None
    else:
        with open_records(file) as records:
            yield records.each(wanted)


def _of_server(server: str, token_file: Path | None, wanted: Wanted) -> Iterator[Record]:
    named = {name: value for name, value in wanted._asdict().items() if value}
    if wanted.since is not None:
        named["since"] = wanted.since.isoformat()
    before: dict[str, int] = {}
    while True:
        page = ask("GET", server, "decisions", token_file, Output.TEXT, params=named | before | {"limit": _PAGE})
        try:
            yield from (one["record"] for one in page["decisions"])
            following = page["next"]
        except (KeyError, TypeError):
            raise UserError(f"{server} does not answer as a bundle server: check --server") from None
        if following is None:
            return
        before = {"before": int(following)}


def _is_at(record: Record, door: str) -> bool:
    return bool(record["custom"].get("door") == door or record["custom"]["outcome"] == "gap")


def _print(
    found: LogDifferences, output: Report, other: str, fail_on: Selector | None, *sources: Sources | None
) -> None:
    from airflow_team_authz.review.selectors import teams_said

    old, new = sources or (None, None)
    not_seen = [f"{count:,} {why}" if count else why for why, count in found.left_out.items()]
    more = {
        "since": found.since, "until": found.until, "policies": list(found.policies),
        "candidates": list(found.candidates), "left_out": found.left_out, "failed": found.failed,
    }  # fmt: skip
    summary = _summary(found, other)
    print_changes(Comparison(found.found, places(found.found, old, new), summary, not_seen, more), output)
    for message, count in found.failed.items():
        complain(f"{other} has not answered {count:,} questions: {message}")
    if found.failed:
        raise typer.Exit(FAILED)
    if fail_on is not None and fail_on.finds(found.found, teams_said):
        raise typer.Exit(DIFFERS)


def _summary(found: LogDifferences, other: str) -> list[str]:
    changes = found.found
    if not changes.changes and not changes.more:
        same = changes.questions - sum(found.failed.values())
        why = f"{same:,} recorded decisions have the same answers" if same else "the decision log has no difference"
        return [f"Nothing would be gained or lost: {why}."]
    of = "" if changes.questions == changes.different else f" of {changes.questions:,}"
    summary = [f"{changes.different:,}{of} recorded decisions would be different, from {found.since} to {found.until}."]
    summary += _changed("The policy in force", found.policies)
    return summary + _changed(f"{other[0].upper()}{other[1:]}", found.candidates)


def _changed(what: str, revisions: Sequence[str]) -> list[str]:
    """That a policy has changed meanwhile, so the differences are not those of one pair."""
    if len(revisions) < 2:
        return []
    return [f"{what} has changed meanwhile: revisions {', '.join(revisions)}."]
