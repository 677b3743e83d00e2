"""The commands for held releases, and the example of the documentation, by a running server."""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from airflow_team_authz.bundles.artifact import build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.cli import app
from airflow_team_authz.cli.server import _tell_of_approvers
from airflow_team_authz.server.access import PLATFORM, TEAM, issue
from airflow_team_authz.server.approvals import read_approvers
from airflow_team_authz.server.database import Token, connect, migrate
from tests.conftest import REPOSITORY
from tests.server.conftest import Server, of_platform
from tests.server.test_approvals import CLOSED, Rule, artifact
from tests.server.test_commands import run

PAGE = (REPOSITORY / "docs/bundle-server.md").read_text().partition("## Approvals")[2].partition("\n## ")[0]
RULES = re.findall(r"--approval (gained\S+)", PAGE)
(_REGO,) = re.findall(r"```rego\npackage teams.alpha\n\n(.*?)```", PAGE, re.DOTALL)
(TOLD,) = re.findall(r"```\n(waiting .*?)```", PAGE, re.DOTALL)
POOL = {"action": "use", "resource": {"type": "pool", "id": "production"}, "subject": {"team_ids": ["beta"]}}
LENT = Rule(_REGO, f"count(team.allow) == 1 with input as {json.dumps(POOL)}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--approval", "gained:ownr=alpha"], "--approval: 'ownr=alpha' is no condition: write one of team, owner"),
        (["--approval", "widened"], "Or write change for every change"),
        (["--approval", "change:id=x"], "--approval: 'change:id=x': only an owner goes with change"),
        (["--approver", "token 5f0c2b7a9e11"], "--approver: 'token 5f0c2b7a9e11' is neither the id of a token"),
        (["--approver", "5f0c2b7a9e1"], "--approver: '5f0c2b7a9e1' is neither the id of a token"),
        (["--approver", ""], "--approver: '' is neither the id of a token"),
        (["--approver", "sub:ann"], "--approver: 'sub:ann': only with --oidc-issuer there are people"),
        (["--approval-environment", "prodution"], "--approval-environment: there is no environment prodution"),
    ],
)
def test_a_misspelt_rule_is_an_error_at_the_start_that_names_the_option(
    options: list[str], told: str, tmp_path: Path
) -> None:
    key = {"TEAM_AUTHZ_SIGNING_KEY": SigningKey.new().pem().decode()}
    database = ("--database", f"sqlite:///{tmp_path}/never.db")
    result = CliRunner().invoke(app, ["server", "run", *database, *options], env=key)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "never.db").exists()


def test_an_approver_that_there_is_not_is_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = connect(f"sqlite:///{tmp_path}/server.db")
    migrate(engine)
    with Session(engine) as session:
        known, revoked = (issue(session, PLATFORM, 90) for _ in range(2))
        of_team = issue(session, TEAM, 90, "alpha")
        session.commit()
        session.execute(update(Token).where(Token.id == revoked.id).values(revoked_at=datetime.now(UTC)))
        session.commit()
    caplog.clear()
    _tell_of_approvers(engine, read_approvers([known.id, revoked.id, of_team.id, "0" * 12, "sub:ann"], "https://i"))
    told = ", ".join(sorted([f"token {revoked.id}", f"token {of_team.id}", "token 000000000000"]))
    assert [record.getMessage() for record in caplog.records] == [
        f"--approver: nobody can approve by {told}: there is no such platform token, or it is over"
    ]
    engine.dispose()


@pytest.mark.exhaustive
def test_the_example_of_the_page_waits_and_is_approved(own_server: Server, tmp_path: Path) -> None:
    own_server.stop(signal.SIGTERM)
    own_server.start(*(f"--approval={rule}" for rule in RULES), "--approval-environment=production")
    own_server.tokens["second"] = own_server.command("token", "create", "--platform")
    # The platform's first part gives rights to write what is common.
    first = own_server.publish(of_platform())
    assert first.status_code == 202, first.text
    shown = run(own_server, "server", "approvals", "show", first.json()["id"], who="second")
    (command,) = re.findall(r"To approve this: team-authz (.*)", shown)
    assert "answers 403" in run(own_server, *command.split(), who="platform", code=2)
    assert "ok  version 1 of @platform in production" in run(own_server, *command.split(), who="second")

    own_server.tokens["alpha"] = own_server.command("token", "create", "--team", "alpha")
    (tmp_path / "1").write_bytes(build_artifact(artifact(1, CLOSED), own_server.keys["alpha"]))
    (tmp_path / "2").write_bytes(build_artifact(artifact(2, CLOSED, LENT), own_server.keys["alpha"]))
    publish = ("bundle", "publish", "--environment", "production")
    assert "lose" in run(own_server, *publish, tmp_path / "1")
    told = run(own_server, *publish, tmp_path / "2", code=3)
    held = json.loads(run(own_server, *publish, tmp_path / "2", "-o", "json", code=3))
    told = re.sub(r"token [0-9a-f]{12}", "token 5f0c2b7a9e11", re.sub(r"until \S+", "until 2026-12-04T10:00:00Z", told))
    shown = told.replace(f"waiting {held['id']}", "waiting 1").splitlines()
    assert shown[:-1] == TOLD.splitlines()

    listed = run(own_server, "server", "approvals", "list").split()
    assert listed[:6] == [str(held["id"]), "waiting", "production", "alpha", "2", "publish"]
    approve = ("server", "approvals", "approve", held["id"], "--seen")
    assert "only the platform" in run(own_server, *approve, held["seen"], code=2)
    assert "refused  its impact is another one" in run(own_server, *approve, "0" * 32, who="second", code=1)
    refuse = ("server", "approvals", "refuse", held["id"], "--reason", "a\x1b[1m\npool of its own")
    run(own_server, *refuse, who="second")
    assert "it was refused by token" in run(own_server, *approve, held["seen"], who="second", code=1)
    shown = run(own_server, "server", "approvals", "show", held["id"])
    assert "\x1b" not in shown
    assert (
        json.loads(run(own_server, "server", "approvals", "list", "--decided", "-o", "json"))[0]["state"] == "refused"
    )
    assert run(own_server, "server", "approvals", "list") == ""
    history = run(own_server, "bundle", "history", "--team", "alpha").splitlines()
    assert [line.split()[2] for line in history] == ["refused", "held", "publish"]
    history = run(own_server, "bundle", "history", "--platform", who="platform").splitlines()
    assert "approved by token" in history[0]
