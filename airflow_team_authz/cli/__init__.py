"""The ``team-authz`` command. A file for each command, a folder for each group of commands.

Airflow is imported only where its configuration is needed."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from airflow_team_authz.cli import (
    access,
    assets,
    bundle,
    dags,
    decide,
    decisions,
    doctor,
    explain,
    impact,
    imports,
    init,
    keys,
    matrix,
    recorded,
    review,
    server,
    whoami,
)
from airflow_team_authz.cli.support.console import UserError, complain, print_columns
from airflow_team_authz.escaping import logger

CANNOT = 2


class _Group(TyperGroup):
    """Prints one sentence instead of a traceback, for errors that a person can correct."""

    def invoke(self, ctx: Any) -> Any:
        """See the base class."""
        from airflow_team_authz.model import EngineError, UnfitKeyError
        from airflow_team_authz.opa.compile import CompileError

        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("airflow_team_authz"):
                raise
            complain(f"{error.name} is not installed: pip install 'airflow-team-authz[bundles,server]'")
            raise typer.Exit(CANNOT) from None
        except (UserError, EngineError, CompileError, UnfitKeyError) as error:
            complain(str(error))
            raise typer.Exit(CANNOT) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Authorization for teams in Airflow: ask for decisions, check an installation, write a policy directory.",
)


def _print_versions(asked: bool) -> None:
    if asked:
        from airflow_team_authz.cli.support.versions import versions

        print_columns(versions())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of this package, of Airflow and of opa, then exit.",
        ),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


app.add_typer(assets.app, name="assets")
app.add_typer(bundle.app, name="bundle")
app.add_typer(dags.app, name="dags")
app.command("can")(access.can)
app.command("decide")(decide.decide)
app.command("decisions")(decisions.decisions)
app.command("doctor")(doctor.doctor)
app.command("explain")(explain.explain)
app.command("impact")(impact.impact)
app.command("init")(init.init)
app.add_typer(imports.app, name="import")
app.add_typer(keys.app, name="keys")
app.add_typer(server.app, name="server")
app.add_typer(recorded.observe_app, name="observe")
app.command("replay")(recorded.replay)
app.add_typer(recorded.shadow_app, name="shadow")
app.command("matrix")(matrix.matrix)
app.add_typer(review.app, name="review")
app.command("who-can")(access.who_can)
app.command("whoami")(whoami.whoami)


def main() -> None:
    """Entry point of ``team-authz``. Exit code 2 means that the command could not do what it was asked."""
    # What goes wrong is told in one sentence; the package's log says the same for a server's administrator.
    log = logger("airflow_team_authz")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    app(prog_name="team-authz")
