"""``team-authz bundle``: the commands that take a package from a repository to the engines."""

from __future__ import annotations

import typer

from airflow_team_authz.cli import bundle_check, bundles, released

app = typer.Typer(no_args_is_help=True, help="Check, build, publish, promote, roll back, aggregate and push policies.")
app.command("check")(bundle_check.check)
app.command("build")(bundles.build)
app.command("publish")(bundles.publish)
app.command("history")(released.history)
app.command("diff")(released.diff)
app.command("rollback")(released.rollback)
app.command("promote")(released.promote)
app.command("aggregate")(bundles.aggregate)
app.command("push")(bundles.push)
