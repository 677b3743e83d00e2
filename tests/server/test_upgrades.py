"""What another signing key, another OPA and another version of this package change: every bundle, at the start."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.aggregate import scope
from airflow_team_authz.bundles.artifact import Artifact, build_artifact
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.opa.archive import BundleRefusedError, unpack
from airflow_team_authz.opa.compile import find_opa
from airflow_team_authz.server.database import Package, Release, connect
from tests.conftest import REPOSITORY, eventually
from tests.server.conftest import Server, good
from tests.server.test_failures import serial
from tests.server.test_protocol import lent, opa


def signed_by(server: Server, name: str, key: SigningKey) -> bool:
    try:
        return bool(TrustedKeys.of([key.public]).verify(unpack(server.bundle(name).content), scope(name)))
    except BundleRefusedError:
        return False


def test_a_new_signing_key_signs_every_bundle(own_server: Server, tmp_path: Path) -> None:
    for team_id in ("alpha", "beta"):
        assert own_server.publish(good(team_id, 1)).status_code == 200
    new = SigningKey.new()
    trusted = own_server.home / "trusted.pub"
    trusted.write_bytes(own_server.key.public.pem() + new.public.pem())
    before = serial(own_server)
    with opa(own_server, "team-opa.yaml", tmp_path / "both", "reader", TEAM_ID="alpha") as both:
        eventually(lambda: lent(both) == (True, 1))
        own_server.stop()
        (own_server.home / "signing").write_bytes(new.pem())
        own_server.start()
        for name in ("production", "production.wasm", "production.team.alpha", "production.team.beta"):
            eventually(lambda name=name: signed_by(own_server, name, new))  # type: ignore[misc]
        assert own_server.publish(good("alpha", 2)).status_code == 200
        eventually(lambda: lent(both) == (True, 2))
    own_server.key = new
    assert serial(own_server, "production.team.alpha") > serial(own_server, "production.team.beta") > before
    assert [entry["version"] for entry in own_server.ask("GET", "/teams/beta/history").json()] == [1]
    trusted.write_bytes(new.public.pem())
    with opa(own_server, "team-opa.yaml", tmp_path / "new", "reader", TEAM_ID="beta") as only_new:
        eventually(lambda: lent(only_new, "beta") == (True, 1))


def test_a_new_opa_and_a_new_shipped_policy_reach_every_bundle(own_server: Server, tmp_path: Path) -> None:
    for team_id in ("alpha", "beta"):
        assert own_server.publish(good(team_id, 1)).status_code == 200
    eventually(lambda: own_server.bundle("production.team.beta").status_code == 200)
    before = serial(own_server, "production.team.alpha")

    def restarted(*options: str, **environment: str) -> None:
        own_server.stop()
        own_server.start(*options, **environment)

    restarted()
    time.sleep(1)
    assert serial(own_server, "production.team.alpha") == before
    failing = tmp_path / "failing-opa"
    failing.write_text('#!/bin/sh\n[ "$1" = version ] && echo Version: 9.9.8\n')
    failing.chmod(0o755)
    restarted("--opa", str(failing))
    eventually(lambda: "production are still those of another key, package or OPA" in own_server.log())
    assert serial(own_server, "production.team.alpha") == before
    newer = tmp_path / "newer-opa"
    newer.write_text(f'#!/bin/sh\n[ "$1" = version ] && echo Version: 9.9.9 || exec "{find_opa()}" "$@"\n')
    newer.chmod(0o755)
    restarted("--opa", str(newer))
    eventually(lambda: serial(own_server, "production.team.alpha") > before)
    for directory in ("airflow_team_authz", "policies"):
        shutil.copytree(REPOSITORY / directory, tmp_path / "upgraded" / directory)
    rule = "# Of the next version of the package.\npackage airflow.authz.next\n"
    (tmp_path / "upgraded" / "policies" / "airflow" / "authz" / "next.rego").write_text(rule)
    restarted("--opa", str(newer), PYTHONPATH=str(tmp_path / "upgraded"))
    for name in ("production", "production.team.alpha", "production.team.beta"):
        eventually(lambda name=name: "airflow/authz/next.rego" in unpack(own_server.bundle(name).content))  # type: ignore[misc]


def test_a_package_that_no_longer_compiles_holds_nobody_up(own_server: Server) -> None:
    for team_id in ("alpha", "gamma"):
        own_server.keys[team_id] = SigningKey.new()
        own_server.register(team_id, own_server.keys[team_id].public.pem().decode())
    assert own_server.publish(good("alpha", 1)).status_code == 200
    broken = b'package teams.%s\n\nallow contains "x" if gone_from_opa(1)\n'
    engine = connect(own_server.database)
    with Session(engine) as session:
        # As if they had compiled with the OPA that was there then.
        for team_id, version in (("alpha", 2), ("gamma", 1)):
            files = {f"teams/{team_id}/{team_id}.rego": broken % team_id.encode()}
            artifact = Artifact(team_id, version, files)
            content = build_artifact(artifact, own_server.keys[team_id])
            said = {"owner": team_id, "version": version, "actor": "a test", "at": datetime.now(UTC)}
            session.add(Package(**said, digest=artifact.digest, content=content))
            session.add(Release(**said, environment="production", serial=1, action="publish"))
        session.commit()
    engine.dispose()
    assert own_server.publish(good("beta", 1)).status_code == 200
    eventually(lambda: own_server.bundle("production.team.beta").status_code == 200)
    files = unpack(own_server.bundle("production").content)
    assert b"alpha lends pg" in files["teams/alpha/alpha.rego"]
    assert b'deny contains "the package of gamma no longer compiles' in files["teams/gamma/withheld.rego"]
    withheld = own_server.ask("GET", "/status").json()["withheld"]
    assert [(alarm["team_id"], alarm["version"], alarm["instead"]) for alarm in withheld] == [
        ("alpha", 2, 1), ("gamma", 1, 0),
    ]  # fmt: skip
    assert "undefined function gone_from_opa" in withheld[0]["why"]
    page = httpx.get(own_server.url, auth=("x", own_server.tokens["platform"])).text
    assert "2 packages no longer compile." in page
    # Who publishes is told what is wrong with the own package.
    back = {"version": 1, "environment": "production"}
    refused = own_server.ask("POST", "/teams/gamma/rollback", json=back)
    assert (refused.status_code, refused.json()["findings"][0]["rule"]) == (422, "merged")
    published = own_server.publish(good("gamma", 2), who="platform")
    assert published.status_code == 200, published.text
    assert own_server.publish(good("alpha", 3)).status_code == 200
    assert own_server.ask("GET", "/status").json() == {"clients": [], "next": None, "withheld": []}
