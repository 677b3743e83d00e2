"""The commands that ask a running server."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from airflow_team_authz.cli import app
from tests.server.conftest import Server, good, of_platform


def run(server: Server, *arguments: object, who: str = "alpha", code: int = 0) -> str:
    environment = {"TEAM_AUTHZ_SERVER": server.url, "TEAM_AUTHZ_TOKEN": server.tokens[who]}
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert done.exit_code == code, done.output
    return done.output


def test_history_diff_rollback_and_promotion(own_server: Server) -> None:
    for version, connection in ((1, "one"), (2, "two")):
        assert own_server.publish(good("alpha", version, connection), environment="staging").status_code == 200
    alpha = ("--team", "alpha")
    newest, first = run(own_server, "bundle", "history", *alpha).splitlines()
    assert newest.split()[1:4] == ["staging", "publish", "2"]
    assert first.split()[1:4] == ["staging", "publish", "1"]
    told: Any = json.loads(run(own_server, "bundle", "history", *alpha, "-o", "json"))
    assert [entry["version"] for entry in told] == [2, 1]
    changes = run(own_server, "bundle", "diff", 1, 2, *alpha)
    assert '+allow contains "alpha lends two" if {' in changes.splitlines()
    assert json.loads(run(own_server, "bundle", "diff", 1, 2, *alpha, "-o", "json"))["diff"].strip() == changes.strip()
    assert "version 1 of alpha in staging, serial" in run(own_server, "bundle", "rollback", 1, *alpha)
    assert "version 1 of alpha in production" in run(own_server, "bundle", "promote", "staging", "production", *alpha)
    answer = json.loads(run(own_server, "bundle", "promote", "staging", "production", *alpha, "-o", "json"))
    assert (answer["environment"], answer["version"]) == ("production", 1)
    assert "answers 404: there is no version 7 of alpha" in run(own_server, "bundle", "rollback", 7, *alpha, code=2)
    assert "answers 403" in run(own_server, "bundle", "history", "--team", "beta", code=2)
    assert "either --team or --platform" in run(own_server, "bundle", "history", code=2)
    assert "is not a team id" in run(own_server, "bundle", "history", "--team", "../x", code=2)
    page = ("--server", f"{own_server.url}/?", *alpha)
    assert "but not as a bundle server" in run(own_server, "bundle", "history", *page, code=2)
    assert own_server.publish(of_platform()).status_code == 200
    assert "publish" in run(own_server, "bundle", "history", "--platform", who="platform")


def test_freeze_thaw_and_status(own_server: Server) -> None:
    assert own_server.publish(good("alpha", 1)).status_code == 200
    assert run(own_server, "server", "status", who="platform") == ""
    frozen = run(own_server, "server", "freeze", "team:alpha", "--reason", "an audit", who="platform")
    assert "team:alpha is frozen" in frozen
    back = ("bundle", "rollback", 1, "--team", "alpha", "--environment", "production")
    assert "refused  team:alpha is frozen since" in run(own_server, *back, code=1)
    assert "an audit" in json.loads(run(own_server, *back, "-o", "json", code=1))["error"]
    run(own_server, "server", "thaw", "team:alpha", who="platform")
    run(own_server, *back)
    assert "answers 404: team:alpha is not frozen" in run(
        own_server, "server", "thaw", "team:alpha", who="platform", code=2
    )
    assert "only the platform" in run(own_server, "server", "status", code=2)
    report = {"labels": {"id": "x\x1b[1m"}, "bundles": {"production": {"active_revision": "old"}}}
    assert own_server.ask("POST", "/status", "reader", json=report).is_success
    shown = run(own_server, "server", "status", who="platform", code=1)
    assert "production: runs old, which is not the present one" in shown
    assert "\x1b[1m" not in shown.replace("wrong", "")
    told = json.loads(run(own_server, "server", "status", "-o", "json", who="platform", code=1))
    assert told["withheld"] == []
