"""``team-authz whoami``: a person's groups, teams and roles as the policy sees them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    talking_to_stderr,
)
from airflow_team_authz.cli.support.engine import PolicyOption, UrlOption, configured_engine, named_engine, opened
from airflow_team_authz.cli.support.login import login_manager, name_of

if TYPE_CHECKING:
    from airflow_team_authz.model import DirectoryEntry, Source, Standing, Subject

_MAX_TOKEN_BYTES = 64 * 1024


def whoami(
    token: Annotated[
        Path | None,
        typer.Option(metavar="FILE|-", help="Show the owner of this token of Airflow's API (from POST /auth/token)."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show the user of this name, if the login manager supports that.")
    ] = None,
    role: Annotated[list[str] | None, typer.Option(help="Show a person with this role. You can repeat it.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Show a person in this group. You can repeat it.")] = None,
    team: Annotated[list[str] | None, typer.Option(help="Show a person whom the login puts into this team.")] = None,
    claim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Show a person whose token has this claim.")
    ] = None,
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a person as the policy sees them: groups, teams and roles, and the entry of the directory that gives each.

    Name a token, a user, or describe somebody: team-authz whoami --group alpha-engineers --role viewer

    Exit code 0: shown. 1: the login is not verified. 2: there is no such user, or the engine did not answer.
    """
    from airflow_team_authz.engines import DecisionPoint

    described = bool(role or group or team or claim)
    if [token is not None, user is not None, described].count(True) != 1:
        raise UserError("name one of --token and --user, or describe somebody by --role, --group, --team and --claim")
    if described:
        said_by, subject = "the command line", _described(role, group, team, claim)
    else:
        with talking_to_stderr():
            said_by, subject = _logged_in(token, user)
    with opened(named_engine(policy, opa_url) or configured_engine()) as engine:
        standing, revision = DecisionPoint(engine).whoami(subject)
    if output is Output.JSON:
        print_json(_as_json(said_by, subject, standing, revision))
    else:
        _print(said_by, subject, standing, revision)
    if isinstance(subject.unverified, str):
        raise typer.Exit(1)


_SHOWN = 5
FULL_PATHS = (
    "the directory does not name {}: a name that begins with / is a path, which Keycloak's mapper writes with "
    '"Full group path" on. Switch that off, or name the paths in the directory'
)


def _described(
    roles: list[str] | None, groups: list[str] | None, teams: list[str] | None, claims: list[str] | None
) -> Subject:
    from msgspec import UNSET

    from airflow_team_authz.model import Subject

    values: dict[str, list[str]] = {}
    for claim in claims or ():
        name, separator, value = claim.partition("=")
        if not separator:
            raise UserError(f"--claim: {claim!r} has no value: write it as department=sales")
        values.setdefault(name, []).append(value)
    held = {name: tuple(texts) for name, texts in values.items()}
    return Subject("user", "somebody", tuple(teams or ()), tuple(roles or ()), tuple(groups or ()), held or UNSET)


def _logged_in(token: Path | None, name: str | None) -> tuple[str, Subject]:
    """The subject of the configured login manager, and the manager's name."""
    manager = login_manager()
    login = name_of(manager)
    try:
        if token is not None:
            somebody = asyncio.run(manager.get_user_from_token(_read(token)))
        else:
            somebody = manager.find(str(name))
    except UserError:
        raise
    except LookupError as error:
        raise UserError(f"{error}: use --token, or describe somebody by --group and --role") from None
    except Exception as error:  # of the login manager, its token library and its database
        what = f"the user {name}" if name else "this token"
        raise UserError(f"{login} cannot read {what} ({type(error).__name__}: {error})") from None
    if somebody is None:
        raise UserError(f"{login} has no user {name}" if name else f"{login} has no user for this token")
    return login, manager.subject(somebody)


def _read(file: Path) -> str:
    try:
        text = sys.stdin.read(_MAX_TOKEN_BYTES) if str(file) == "-" else file.read_text()[:_MAX_TOKEN_BYTES]
    except (OSError, ValueError):
        # Not the name: who has put the token itself there must not find it on the screen.
        raise UserError(
            "--token: there is no such file, or it is not text: name another one, or - for standard input"
        ) from None
    text = text.strip()
    # The whole answer of Airflow's token route will do as well.
    if text.startswith("{"):
        try:
            text = str(json.loads(text)["access_token"])
        except (ValueError, LookupError, TypeError):
            raise UserError("--token: the file has no token, such as the access_token of POST /auth/token") from None
    return text


def _as_json(said_by: str, subject: Subject, standing: Standing, revision: str) -> dict[str, Any]:
    import msgspec

    return {
        "said_by": said_by,
        "subject": msgspec.to_builtins(subject),
        **msgspec.to_builtins(standing),
        "revision": revision,
        "notes": _notes(subject, standing),
    }


def _print(said_by: str, subject: Subject, standing: Standing, revision: str) -> None:
    rows = [["user", subject.id], ["said by", said_by]]
    if isinstance(subject.unverified, str):
        rows.append(["not verified", subject.unverified])
    for word, texts in (("roles", subject.roles), ("groups", subject.groups), ("teams", subject.team_ids)):
        if isinstance(texts, tuple):
            rows.append([word, ", ".join(texts) or "none"])
    if isinstance(subject.claims, dict):
        rows += [[f"claim {name}", ", ".join(texts)] for name, texts in subject.claims.items()]
    rows.append(["policy", f"revision {revision or 'unnamed'}"])
    rows += [[f"in team {team_id}", _held(roles)] for team_id, roles in sorted(standing.team_roles.items())]
    rows.append(["in common", _held(standing.common_roles)])
    rows.append(["on the platform", _held(standing.platform_roles)])
    rows += [["because", because(source)] for source in standing.entries]
    rows += [["note", note] for note in _notes(subject, standing)]
    print_columns(rows)


def _notes(subject: Subject, standing: Standing) -> list[str]:
    """Hints about entries that are probably not intended."""
    known = {source.name for source in standing.entries}
    paths = [name for name in subject.groups or () if name.startswith("/") and name not in known]
    return [FULL_PATHS.format(", ".join(paths[:_SHOWN]))] if paths else []


def _held(roles: tuple[str, ...]) -> str:
    return ", ".join(roles) or "no role"


def because(source: Source) -> str:
    """The role that an entry of the directory gives, and the matched name."""
    return f"{source.table} {source.name!r} of the directory: {_entry(source.entry)}"


def _entry(entry: DirectoryEntry) -> str:
    where = "on the platform" if entry.team_id is None else f"in team {entry.team_id}"
    return f"{entry.role} {where}" if isinstance(entry.role, str) else f"a member {where}, with the login's own roles"
