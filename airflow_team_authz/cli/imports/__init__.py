"""``team-authz import``: roles and permissions of other auth managers as a policy. One file per source."""

from __future__ import annotations

import typer

from airflow_team_authz.cli.imports import fab, keycloak

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Translate the rights of another auth manager into roles, directory and rules of a policy directory.",
)
app.command("fab")(fab.import_fab)
app.command("keycloak")(keycloak.import_keycloak)
