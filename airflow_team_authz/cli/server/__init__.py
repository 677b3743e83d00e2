"""``team-authz server``: the bundle server, and the tokens for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.server import approvals, calls
from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    print_line,
)
from airflow_team_authz.escaping import logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(
    no_args_is_help=True, help="Run the bundle server, make its tokens, freeze changes, show its clients."
)
app.command("freeze")(calls.freeze)
app.command("thaw")(calls.thaw)
app.command("status")(calls.status)
token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens, directly in the database.")
app.add_typer(token_app, name="token")
app.add_typer(approvals.app, name="approvals")

Database = Annotated[
    str,
    typer.Option(
        envvar="TEAM_AUTHZ_SERVER_DATABASE",
        metavar="URL",
        help="sqlite:///FILE or postgresql+psycopg2://user@host/name.",
    ),
]
# How many clients may wait for a bundle at a time, if so many files may be open.
_MAX_PLACES = 2000
_DEFAULT_DATABASE = "sqlite:///team-authz-server.db"


@app.command()
def run(
    database: Database = _DEFAULT_DATABASE,
    host: Annotated[str, typer.Option(envvar="TEAM_AUTHZ_SERVER_HOST", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TEAM_AUTHZ_SERVER_PORT", min=0, max=65535)] = 8282,
    signing_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key that signs bundles. Default: TEAM_AUTHZ_SIGNING_KEY."),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_ENVIRONMENT",
            help="The name of an environment. You can repeat it; teams publish to the first.",
        ),
    ] = None,
    oidc_issuer: Annotated[
        str | None,
        typer.Option(envvar="TEAM_AUTHZ_SERVER_OIDC_ISSUER", metavar="URL", help="Also accept tokens of this issuer."),
    ] = None,
    oidc_audience: Annotated[
        str | None, typer.Option(envvar="TEAM_AUTHZ_SERVER_OIDC_AUDIENCE", help="The audience of the issuer's tokens.")
    ] = None,
    oidc_team_claim: Annotated[str, typer.Option(help="The claim that names the caller's teams.")] = "team_id",
    oidc_platform_claim: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="The claim that identifies the platform team.")
    ] = None,
    decision_days: Annotated[
        int,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_DECISION_DAYS",
            min=1,
            max=36_500,
            help="Days until the server deletes a decision.",
        ),
    ] = 90,
    decision_masks: Annotated[
        str,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_DECISION_MASKS",
            metavar="POINTERS",
            help="Fields that the server removes from decisions: JSON pointers into input, result and custom, or none.",
        ),
    ] = "/input/subject/claims",
    approval: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_APPROVAL",
            metavar="SELECTOR",
            help="Changes that wait until somebody else approves them, such as gained:owner=common,action=write, or "
            "`change` for every change. You can repeat it.",
        ),
    ] = None,
    approval_environment: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_APPROVAL_ENVIRONMENT",
            metavar="NAME",
            help="Changes wait in this environment only. You can repeat it. Default: all.",
        ),
    ] = None,
    approver: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_APPROVER",
            metavar="TOKEN",
            help="Only this platform token approves: its id, or sub:NAME for a person of the issuer. You can repeat "
            "it. Default: every platform token.",
        ),
    ] = None,
    approval_days: Annotated[
        int,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_APPROVAL_DAYS", min=1, max=365, help="Days until nobody can approve it any more."
        ),
    ] = 7,
    rollback_at_once: Annotated[
        bool,
        typer.Option(
            "--rollback-at-once",
            envvar="TEAM_AUTHZ_SERVER_ROLLBACK_AT_ONCE",
            help="A rollback by a platform token waits for no approval.",
        ),
    ] = False,
    impact_seconds: Annotated[
        int,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_IMPACT_SECONDS", min=1, max=3600, help="How long the impact may be computed."
        ),
    ] = 45,
    public_url: Annotated[
        str,
        typer.Option(
            envvar="TEAM_AUTHZ_SERVER_PUBLIC_URL",
            metavar="URL",
            help="The address for clients, such as https://bundles.example, in the metadata of AuthZEN.",
        ),
    ] = "",
    opa: Annotated[
        str | None, typer.Option(metavar="FILE", help="The `opa` program. Default: beside Python, then on PATH.")
    ] = None,
) -> None:
    """Serve until stopped: receive packages, and serve bundles. /openapi.json describes every route."""
    import logging
    import resource

    import uvicorn

    from airflow_team_authz.cli.keys import signing_key as load_key
    from airflow_team_authz.opa.compile import find_opa
    from airflow_team_authz.review.selectors import SelectorError
    from airflow_team_authz.server import ServerError
    from airflow_team_authz.server.access import Oidc
    from airflow_team_authz.server.app import create_app
    from airflow_team_authz.server.approvals import read_approvers, read_rules
    from airflow_team_authz.server.connections import Connection
    from airflow_team_authz.server.releases import Releases

    key, program = load_key(signing_key), find_opa(opa)
    environments = environment or ["production"]
    for name in environments:
        if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise UserError(f"--environment: {name!r} is not a name of letters, digits, - and _")
    unknown = {*(approval_environment or [])} - {*environments}
    if unknown:
        raise UserError(f"--approval-environment: there is no environment {', '.join(sorted(unknown))}")
    try:
        rules = read_rules(approval or [])
    except SelectorError as error:
        raise UserError(f"--approval: {error}") from None
    only = frozenset(approval_environment) if approval_environment else None
    rules = rules._replace(
        environments=only, days=approval_days, seconds=impact_seconds, rollback_at_once=rollback_at_once
    )
    if public_url and not re.fullmatch(r"https://[^\s/?#@]+(/[^\s?#]*)?", public_url):
        raise UserError("--public-url: write https:// and the address, without a user, ? and #")
    if (oidc_issuer is None) != (oidc_audience is None):
        raise UserError("--oidc-issuer and --oidc-audience go together: name both, or neither")
    oidc = None
    if oidc_issuer is not None and oidc_audience is not None:
        name, equals, value = (oidc_platform_claim or "").partition("=")
        if oidc_platform_claim and not equals:
            raise UserError("--oidc-platform-claim: write NAME=VALUE")
        oidc = Oidc(oidc_issuer, oidc_audience, oidc_team_claim, (name, value) if equals else None)
    try:
        approvers = read_approvers(approver, oidc_issuer) if approver else None
    except ServerError as error:
        raise UserError(f"--approver: {error}") from None
    rules = rules._replace(approvers=approvers)
    # Other commands tell what goes wrong themselves.
    logger("airflow_team_authz").addHandler(logging.StreamHandler())
    engine = _opened(database)
    _tell_of_approvers(engine, approvers or ())
    # Whatever clients hold, there are files left for the database and the gate.
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    places = min(files // 2, _MAX_PLACES) if files > 0 else _MAX_PLACES
    releases = partial(Releases, engine, key, environments, program, rules=rules)
    # No line for each request: hundreds of clients ask all the time.
    try:
        app = create_app(engine, releases, oidc, places, decision_masks, decision_days, public_url.rstrip("/"))
    except ValueError as error:
        raise UserError(f"--decision-masks: {error}") from None
    uvicorn.run(app, host=host, port=port, access_log=False,
                timeout_graceful_shutdown=2, limit_concurrency=places * 3 // 2,
                # As many connections as wait are accepted at once, before one of them is looked at.
                http=Connection, ws="none", backlog=max(places // 8, 1))  # fmt: skip


def _tell_of_approvers(engine: Engine, names: Iterable[str]) -> None:
    """A warning for each that cannot approve, such as since it is misspelt."""
    from sqlalchemy.orm import Session

    from airflow_team_authz.server.access import can_be_platform

    with Session(engine) as session:
        unknown = sorted(name for name in names if not can_be_platform(session, name))
    if unknown:
        logger("airflow_team_authz.server").warning(
            "--approver: nobody can approve by %s: there is no such platform token, or it is over", ", ".join(unknown)
        )


@app.command()
def migrate(database: Database = _DEFAULT_DATABASE) -> None:
    """Bring the database's tables up to date; `run` does it too."""
    _opened(database)
    print_line("The tables are up to date.")


@app.command()
def trust(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Public keys, as in FILE.pub of `team-authz keys new`.")],
    team: Annotated[str | None, typer.Option(metavar="ID", help="The team whose artifacts they sign.")] = None,
    platform: Annotated[bool, typer.Option("--platform", help="Register keys for the platform's artifacts.")] = False,
    database: Database = _DEFAULT_DATABASE,
) -> None:
    """Register the keys that sign a team's artifacts, or the platform's: one, or two during a replacement."""
    from datetime import UTC, datetime

    from sqlalchemy.orm import Session

    from airflow_team_authz.bundles.artifact import PLATFORM
    from airflow_team_authz.bundles.signing import TrustedKeys
    from airflow_team_authz.cli.support.vocabulary import require_team_id
    from airflow_team_authz.server.database import OwnerKeys

    if (team is not None) == platform:
        raise UserError("name either --team or --platform")
    require_team_id("--team", team)
    keys = TrustedKeys.read(file)
    if len(keys) > 2:
        raise UserError(f"{file} has {len(keys)} keys, and two can be valid at a time: run `team-authz keys retire`")
    with Session(_opened(database)) as session:
        pem = keys.pem().decode()
        session.merge(OwnerKeys(owner=team or PLATFORM, pem=pem, actor="the command line", at=datetime.now(UTC)))
        session.commit()
    print_columns([["ok", team or "the platform", ", ".join(sorted(keys))]])


@token_app.command()
def create(
    database: Database = _DEFAULT_DATABASE,
    team: Annotated[
        str | None, typer.Option(metavar="ID", help="Make a token that may publish this team's package.")
    ] = None,
    platform: Annotated[bool, typer.Option("--platform", help="Make a token that may do everything.")] = False,
    reader: Annotated[
        bool, typer.Option("--reader", help="Make a token that may fetch bundles, and report status and decisions.")
    ] = False,
    bundle: Annotated[str | None, typer.Option(metavar="NAME", help="The only bundle that a reader may fetch.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until it expires.")] = 90,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a token, and print its secret. The server stores only its hash, so nobody can read the secret later."""
    from sqlalchemy.orm import Session

    from airflow_team_authz.cli.support.vocabulary import require_team_id
    from airflow_team_authz.server import access

    if sum((team is not None, platform, reader)) != 1:
        raise UserError("name one of --team, --platform and --reader")
    require_team_id("--team", team)
    if bundle is not None and not reader:
        raise UserError("--bundle goes with --reader")
    kind = access.TEAM if team else access.PLATFORM if platform else access.READER
    with Session(_opened(database)) as session:
        made = access.issue(session, kind, days, team, bundle)
        session.commit()
    if output is Output.JSON:
        print_json({"id": made.id, "secret": made.secret, "expires_at": made.expires_at.isoformat()})
    else:
        print_line(made.secret)


@token_app.command("list")
def list_(database: Database = _DEFAULT_DATABASE, output: OutputOption = Output.TEXT) -> None:
    """Show all tokens, without their secrets."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from airflow_team_authz.server.database import Token

    with Session(_opened(database)) as session:
        rows = [
            {
                "id": row.id,
                "kind": row.kind,
                "for": row.team_id or row.bundle or "",
                "expires_at": row.expires_at.isoformat(),
                "revoked": row.revoked_at is not None,
            }
            for row in session.scalars(select(Token).order_by(Token.created_at))
        ]
    if output is Output.JSON:
        print_json(rows)
    elif rows:
        print_columns([[str(value) for value in row.values()] for row in rows])


@token_app.command()
def revoke(id_: Annotated[str, typer.Argument(metavar="ID")], database: Database = _DEFAULT_DATABASE) -> None:
    """Revoke a token: it stops working within one second."""
    from datetime import UTC, datetime

    from sqlalchemy.orm import Session

    from airflow_team_authz.server.database import Token

    with Session(_opened(database)) as session:
        found = session.get(Token, id_)
        if found is None:
            raise UserError(f"there is no token {id_}: `team-authz server token list` shows them")
        found.revoked_at = found.revoked_at or datetime.now(UTC)
        session.commit()
    print_line(f"{id_} is revoked.")


def _opened(url: str) -> Engine:
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_team_authz.server.database import UnfitDatabaseError, connect, migrate

    try:
        engine = connect(url)
        migrate(engine)
    except UnfitDatabaseError as error:
        raise UserError(str(error)) from None
    except SQLAlchemyError as error:
        raise UserError(
            f"the database cannot be used ({type(error).__name__}): check --database, and that the database runs"
        ) from None
    return engine
