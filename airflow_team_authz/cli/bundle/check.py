"""``team-authz bundle check``: runs the gate over a package."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.support.console import Output, UserError, print_json, print_line
from airflow_team_authz.escaping import one_line

if TYPE_CHECKING:
    from airflow_team_authz.gate.findings import Finding


class Report(StrEnum):
    """The form of the findings."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A repository, as `team-authz init` writes it.")],
    team: Annotated[
        str | None, typer.Option("--team", metavar="ID", help="Check this team's package. Default: all packages.")
    ] = None,
    platform: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The platform's policy directory, to check the package together with it."),
    ] = None,
    output: Annotated[
        Report, typer.Option("--output", "-o", help="Text for people, JSON for programs, SARIF for code review.")
    ] = Report.TEXT,
) -> None:
    """List every finding that keeps a team's package from publication, and warn of rules that hardly have an effect.

    Exit code 0: the gate accepts the package, 1: it refuses it, 2: it could not check it.
    """
    from airflow_team_authz.gate.check import check_package, read_package
    from airflow_team_authz.gate.findings import sarif
    from airflow_team_authz.gate.platform_part import read_platform
    from airflow_team_authz.gate.policy_files import warnings_of

    if platform is not None and not platform.is_dir():
        raise UserError(f"--platform: there is no directory {platform}")
    others = read_platform(platform) if platform else None
    teams = [team] if team else _teams(directory)
    found: list[Finding] = []
    warned: list[Finding] = []
    names: list[str] = []
    for team_id in teams:
        files = read_package(directory, team_id)
        if not files:
            raise UserError(f"there is nothing in {directory / 'teams' / team_id}: `team-authz init` writes a package")
        refused = check_package(files, team_id, others)
        found += refused
        warned += [] if refused else warnings_of(files)
        names += files
    if output is Report.SARIF:
        print_json(sarif(found + warned, names))
    else:
        show(found + warned, Output(output))
    if output is Report.TEXT and not found:
        print_line(f"{', '.join(teams)}: nothing keeps {'it' if len(teams) == 1 else 'them'} from being published.")
    raise typer.Exit(1 if found else 0)


def show(findings: Sequence[Finding], output: Output) -> None:
    """Print the findings: one of them two lines, or all of them one JSON list."""
    if output is Output.JSON:
        print_json([finding.as_json() for finding in findings])
        return
    for finding in findings:
        level = "" if finding.level == "error" else f"{finding.level}: "
        place = f"{finding.file}:{finding.line}"
        print_line(f": {level}{one_line(finding.message)} [{finding.rule}]", heading=place)
        print_line(f"    {one_line(finding.help)}")


def _teams(directory: Path) -> list[str]:
    teams = sorted(path.name for path in (directory / "teams").glob("*") if path.is_dir())
    if not teams:
        raise UserError(f"{directory} has no directory teams/<id>: `team-authz init` writes such a repository")
    return teams
