"""``team-authz keys`` and ``team-authz bundle``: build, aggregate and push, without a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from airflow_team_authz.bundles import offline
from airflow_team_authz.bundles.aggregate import build, scope
from airflow_team_authz.bundles.artifact import build_artifact
from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey, TrustedKeys
from airflow_team_authz.cli import app
from airflow_team_authz.opa.archive import pack, read_manifest, unpack
from tests.bundles.conftest import lends
from tests.conftest import REPOSITORY


def run(*arguments: object, code: int = 0, **environment: str) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert done.exit_code == code, done.output
    return done


class Works:
    """A directory with keys, teams' repositories, artifacts, and what is built of them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.artifacts, self.trusted, self.out = (place / name for name in ("artifacts", "trusted", "out"))
        self.trusted.mkdir(parents=True)
        run("keys", "new", place / "production")

    def build(
        self, team_id: str, version: int, connection: str = "pg", code: int = 0, key: str | None = None
    ) -> Result:
        if not (self.place / (key or team_id)).exists():
            run("keys", "new", self.place / (key or team_id))
        public = self.place / f"{team_id}.pub"
        if public.exists():
            (self.trusted / f"{team_id}.pub").write_bytes(public.read_bytes())
        for name, content in lends(team_id, connection).files.items():
            (self.place / team_id.upper() / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / team_id.upper() / name).write_bytes(content)
        return run(
            "bundle", "build", self.place / team_id.upper(), "--key", self.place / (key or team_id),
            "--version", version, "--out", self.artifacts / f"{team_id}.tar.gz", code=code,
        )  # fmt: skip

    def aggregate(self, code: int = 0) -> dict[str, dict[str, object]]:
        done = run(
            "bundle", "aggregate", "--out", self.out, "--platform", REPOSITORY / "policies",
            "--artifacts", self.artifacts, "--trusted", self.trusted, "--key", self.place / "production",
            "--output", "json", code=code,
        )  # fmt: skip
        return {outcome["team_id"]: outcome for outcome in json.loads(done.stdout)}

    def versions(self) -> dict[str, int]:
        """The versions in the bundle of all teams, whose signature is checked."""
        files = unpack((self.out / "production.tar.gz").read_bytes())
        TrustedKeys.read(self.place / "production.pub").verify(files, scope("production"))
        teams = read_manifest(files)["metadata"]["teams"]
        return {team_id: said["version"] for team_id, said in teams.items()}

    def serial(self) -> int:
        return int(read_manifest(unpack((self.out / "production.tar.gz").read_bytes()))["metadata"]["serial"])


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path)


def test_a_bad_artifact_holds_nobody_up_and_its_last_good_one_stays(works: Works) -> None:
    works.build("alpha", 1)
    works.build("beta", 1)
    assert {outcome["did"] for outcome in works.aggregate().values()} == {"published"}
    assert works.versions() == {"alpha": 1, "beta": 1}
    before = works.serial()
    assert {outcome["did"] for outcome in works.aggregate().values()} == {"unchanged"}
    assert works.serial() == before
    good = (works.artifacts / "alpha.tar.gz").read_bytes()
    works.build("alpha", 2, "other")
    second = (works.artifacts / "alpha.tar.gz").read_bytes()
    for bad, told in (
        (second[:-20], "cannot be read"),
        (b"", "cannot be read"),
        ((works.artifacts / "beta.tar.gz").read_bytes(), "which is not trusted here"),
    ):
        (works.artifacts / "alpha.tar.gz").write_bytes(bad)
        works.build("beta", works.versions()["beta"] + 1)
        outcomes = works.aggregate(code=1)
        assert (outcomes["alpha"]["did"], outcomes["beta"]["did"]) == ("refused", "published")
        assert told in str(outcomes["alpha"]["detail"])
        assert works.versions()["alpha"] == 1
    (works.artifacts / "alpha.tar.gz").write_bytes(second)
    assert works.aggregate()["alpha"]["did"] == "published"
    (works.artifacts / "alpha.tar.gz").write_bytes(good)
    assert "is not above 2, which is published already" in str(works.aggregate(code=1)["alpha"]["detail"])
    assert works.versions()["alpha"] == 2
    assert works.serial() > before
    assert (works.out / "production.team.alpha.tar.gz").exists()


def test_what_stays_the_same_is_signed_again_now_and_then(works: Works) -> None:
    works.build("alpha", 1)
    works.aggregate()
    names = ("production", "production.wasm", "production.team.alpha")
    key = SigningKey.load((works.place / "production").read_bytes(), "production")

    def content(name: str) -> bytes:
        return (works.out / f"{name}.tar.gz").read_bytes()

    def signed_at(name: str) -> int:
        said = TrustedKeys.of([key.public]).verify(unpack(content(name)), scope(name))
        assert said.issued_at is not None
        return said.issued_at

    def without_signature(name: str) -> dict[str, bytes]:
        return {path: text for path, text in unpack(content(name)).items() if path != SIGNATURES}

    assert all(abs(time.time() - signed_at(name)) < 3600 for name in names)
    for name in names:
        (works.out / f"{name}.tar.gz").write_bytes(pack(key.sign(unpack(content(name)), scope(name), 1_000_000_000)))
    before = {name: content(name) for name in names}
    works.aggregate()
    assert {name: content(name) for name in names} == before
    state = json.loads((works.out / ".state.json").read_text())
    (works.out / ".state.json").write_text(json.dumps(state | {"signed_at": 1_000_000_000}))
    files, serial = {name: without_signature(name) for name in names}, works.serial()
    works.aggregate()
    assert all(abs(time.time() - signed_at(name)) < 3600 for name in names)
    assert ({name: without_signature(name) for name in names}, works.serial()) == (files, serial)
    # What somebody else has put there gets no signature, but is built anew.
    (works.out / "production.tar.gz").write_bytes(pack(SigningKey.new().sign({}, scope("production"))))
    (works.out / ".state.json").write_text(json.dumps(state | {"signed_at": 1_000_000_000}))
    works.aggregate()
    assert works.versions() == {"alpha": 1}
    assert works.serial() > serial


def test_an_artifact_that_is_replaced_meanwhile_is_not_kept_unchecked(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works.build("alpha", 1)
    artifact = works.artifacts / "alpha.tar.gz"
    checked = artifact.read_bytes()

    def build_slowly(*arguments: Any) -> dict[str, bytes]:
        artifact.write_bytes(b"unsigned")
        return build(*arguments)

    monkeypatch.setattr(offline, "build", build_slowly)
    works.aggregate()
    assert (works.out / ".good" / "alpha.tar.gz").read_bytes() == checked


def test_what_is_kept_is_a_teams_own_and_if_damaged_denied(works: Works) -> None:
    works.build("alpha", 1)
    works.build("beta", 1)
    works.aggregate()
    kept = works.out / ".good" / "alpha.tar.gz"
    good = kept.read_bytes()
    kept.write_bytes(pack(unpack(good) | {"teams/beta/alien.rego": b"package teams.beta"}))
    works.build("beta", 2)
    works.aggregate(code=1)
    assert "teams/beta/alien.rego" not in unpack((works.out / "production.tar.gz").read_bytes())
    kept.write_bytes(good[:-20])
    (works.artifacts / "alpha.tar.gz").write_bytes(b"")
    works.build("beta", 3)
    outcomes = works.aggregate(code=1)
    assert (outcomes["alpha"]["did"], outcomes["beta"]["did"]) == ("refused", "published")
    assert "is damaged, so all is denied" in str(outcomes["alpha"]["detail"])
    for name in ("production", "production.team.alpha"):
        assert b"deny contains" in unpack((works.out / f"{name}.tar.gz").read_bytes())["teams/alpha/withheld.rego"]
    works.build("alpha", 1)
    assert works.aggregate()["alpha"]["did"] == "published"
    assert kept.read_bytes() == good


def test_an_upgrade_of_opa_and_of_the_package_reaches_every_bundle(
    works: Works, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    works.build("alpha", 1)
    works.aggregate()
    before = works.serial()
    monkeypatch.setattr("airflow_team_authz.bundles.aggregate.opa_version", lambda _: (9, 9, 9))
    assert works.aggregate()["alpha"]["did"] == "unchanged"
    between = works.serial()
    assert between > before
    works.aggregate()
    assert works.serial() == between
    upgraded = tmp_path / "policies"
    shutil.copytree(REPOSITORY / "policies", upgraded)
    (upgraded / "airflow" / "authz" / "next.rego").write_text("package airflow.authz.next\n")
    monkeypatch.setattr("airflow_team_authz.opa.compile.shipped_policies", lambda: upgraded)
    works.aggregate()
    for name in ("production", "production.team.alpha"):
        assert "airflow/authz/next.rego" in unpack((works.out / f"{name}.tar.gz").read_bytes())


def test_what_the_gate_refuses_is_not_built_and_not_aggregated(works: Works) -> None:
    works.build("alpha", 1)
    stranger = works.place / "ALPHA" / "teams" / "alpha" / "x.rego"
    stranger.write_text("package teams.alpha\n\nx := data.teams.beta.y\n")
    refused = works.build("alpha", 2, code=1)
    assert "teams/alpha/x.rego:3: it reads data.teams.beta.y [foreign-data]" in refused.stdout
    # Who builds with another program is checked again.
    from airflow_team_authz.bundles.artifact import Artifact, build_artifact
    from airflow_team_authz.bundles.signing import SigningKey

    key = SigningKey.load((works.place / "alpha").read_bytes(), "alpha")
    files = {**lends("alpha").files, "teams/alpha/x.rego": stranger.read_bytes()}
    (works.artifacts / "alpha.tar.gz").write_bytes(build_artifact(Artifact("alpha", 2, files), key))
    assert "foreign-data" in str(works.aggregate(code=1)["alpha"]["detail"])


def test_the_same_build_is_the_same_bytes_and_git_numbers_versions(works: Works) -> None:
    works.build("alpha", 1)
    first = (works.artifacts / "alpha.tar.gz").read_bytes()
    works.build("alpha", 1)
    assert (works.artifacts / "alpha.tar.gz").read_bytes() == first
    repository = works.place / "ALPHA"
    build = ("bundle", "build", repository, "--key", works.place / "alpha", "--out", works.artifacts / "alpha.tar.gz")
    assert "name one by --version" in run(*build, code=2).stderr
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["commit", "-qm", "two", "--allow-empty"]):
        subprocess.run([*git, *command], check=True)
    assert json.loads(run(*build, "--output", "json").stdout)["version"] == 2
    pem = (works.place / "alpha").read_text()
    environment = [part for part in build if part not in {"--key", works.place / "alpha"}]
    assert run(*environment, TEAM_AUTHZ_SIGNING_KEY=pem).exit_code == 0
    assert "TEAM_AUTHZ_SIGNING_KEY" in run(*environment, code=2, TEAM_AUTHZ_SIGNING_KEY="").stderr
    assert "BEGIN" not in run(*environment, code=2, TEAM_AUTHZ_SIGNING_KEY=pem[:90]).stderr


def test_push(works: Works, tmp_path: Path) -> None:
    works.build("alpha", 1)
    works.aggregate()
    target = tmp_path / "store"
    written = json.loads(run("bundle", "push", works.out, target.as_uri(), "--output", "json").stdout)
    assert [Path(name).name for name in written][-1] == "production.tar.gz"
    assert (target / "production.wasm.tar.gz").read_bytes() == (works.out / "production.wasm.tar.gz").read_bytes()
    assert "there are no bundles" in run("bundle", "push", tmp_path / "nothing", target.as_uri(), code=2).stderr
    assert "does not take the bundles" in run("bundle", "push", works.out, "nosuch://x", code=2).stderr


def test_keys(tmp_path: Path) -> None:
    key, public = tmp_path / "key", tmp_path / "key.pub"
    (first,) = json.loads(run("keys", "new", key, "--output", "json").stdout)
    assert key.stat().st_mode & 0o777 == 0o600
    assert "exists" in run("keys", "new", key, code=2).stderr
    old = key.read_bytes()
    rotated = json.loads(run("keys", "rotate", key, "--output", "json").stdout)
    assert [entry["id"] for entry in rotated][1] == first["id"]
    assert key.read_bytes() != old
    assert key.stat().st_mode & 0o777 == 0o600
    assert "team-authz keys retire" in run("keys", "rotate", key, code=2).stderr
    shown = run("keys", "show", public, "--opa").stdout
    assert shown.count("algorithm: ES256") == 2
    assert [entry["id"] for entry in json.loads(run("keys", "retire", key, "--output", "json").stdout)] == [
        rotated[0]["id"]
    ]
    assert "PRIVATE" not in public.read_text()
    for command in (("show", tmp_path / "no"), ("rotate", tmp_path / "no"), ("show", key)):
        assert run("keys", *command, code=2).stderr.startswith("team-authz: ")


IN_FORCE = {"owner": "alpha", "version": 1, "environment": "staging", "serial": 7}
FOUND = {"rule": "x", "file": "f.rego", "line": 1, "message": "m", "help": "h"}


@pytest.mark.parametrize(("status", "told", "code", "said"), [
    (200, IN_FORCE, 0, "version 1 of alpha, serial 7"),
    (200, IN_FORCE | {"version": 2}, 2, "answers 200, but not as a bundle server"),
    (200, IN_FORCE | {"owner": "beta"}, 2, "answers 200, but not as a bundle server"),
    (200, {}, 2, "answers 200, but not as a bundle server"),
    (200, [], 2, "answers 200, but not as a bundle server"),
    (202, IN_FORCE, 2, "answers 202"),
    (302, {}, 2, "answers 302"),
    (422, {"findings": [FOUND | {"column": 3}]}, 1, "f.rego:1: m [x]"),
    (422, {"findings": [{"rule": "x"}]}, 2, "answers 422, but not as a bundle server"),
    (422, {"findings": "x"}, 2, "answers 422, but not as a bundle server"),
])  # fmt: skip
def test_only_what_a_bundle_server_says_is_success(
    status: int, told: object, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "artifact.tar.gz"
    artifact.write_bytes(build_artifact(lends("alpha"), SigningKey.new()))
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(status, json=told))
    publish = ("bundle", "publish", artifact, "--server", "http://127.0.0.1:9")
    assert said in run(*publish, code=code, TEAM_AUTHZ_TOKEN="x").output  # noqa: S106


def test_secrets_of_the_address_and_the_token_are_not_shown(tmp_path: Path) -> None:
    artifact, token = tmp_path / "artifact.tar.gz", tmp_path / "token"
    artifact.write_bytes(build_artifact(lends("alpha"), SigningKey.new()))
    publish = ("bundle", "publish", artifact, "--server")
    with_user = run(*publish, "http://user:s3cret@127.0.0.1:9", code=2, TEAM_AUTHZ_TOKEN="x")  # noqa: S106
    token.write_text("s3cret\nsecond line")
    in_file = run(*publish, "http://127.0.0.1:9", "--token-file", token, code=2)
    in_environment = run(*publish, "http://127.0.0.1:9", code=2, TEAM_AUTHZ_TOKEN="s3cr\u00e9t")  # noqa: S106
    for refused, why in (
        (with_user, "--server: messages show this address"),
        (in_file, f"{token} holds no token"),
        (in_environment, "TEAM_AUTHZ_TOKEN holds no token"),
    ):
        assert why in refused.output
        assert "s3c" not in refused.output


def test_the_server_cannot_be_reached(works: Works) -> None:
    works.build("alpha", 1)
    artifact = works.artifacts / "alpha.tar.gz"
    publish = ("bundle", "publish", artifact, "--server", "http://127.0.0.1:9")
    assert "does not answer" in run(*publish, code=2, TEAM_AUTHZ_TOKEN="x").stderr  # noqa: S106
    assert "TEAM_AUTHZ_TOKEN" in run(*publish, code=2, TEAM_AUTHZ_TOKEN="").stderr
    artifact.write_bytes(b"x")
    assert "is not an artifact" in run(*publish, code=2).stderr
    assert os.listdir(works.trusted) == ["alpha.pub"]
