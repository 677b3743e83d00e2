"""``team-authz bundle``: the commands that take a package from a repository to the engines."""

from __future__ import annotations

import typer

from airflow_team_authz.cli.bundle import build, check, releases

app = typer.Typer(no_args_is_help=True, help="Check, build, publish, promote, roll back, aggregate and push policies.")
app.command("check")(check.check)
app.command("build")(build.build)
app.command("publish")(build.publish)
app.command("history")(releases.history)
app.command("diff")(releases.diff)
app.command("rollback")(releases.rollback)
app.command("promote")(releases.promote)
app.command("aggregate")(build.aggregate)
app.command("push")(build.push)
