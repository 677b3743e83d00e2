"""The OPA configurations in `bundles/` are started as their comments say, by a real OPA, from real servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from airflow_team_authz.bundles.aggregate import build, scope
from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.bundles.push import PushError, push
from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import DecisionPoint, downloads
from airflow_team_authz.engines.downloads import Downloaded
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.opa.archive import pack, unpack
from airflow_team_authz.opa.compile import find_opa
from demo.airflow import free_port
from tests.bundles.conftest import lends
from tests.conftest import REPOSITORY, eventually
from tests.engines.test_downloads import Web

# What a test asks OPA for to wait less.
HURRIED = "--set=bundles.airflow.polling.min_delay_seconds=1,bundles.airflow.polling.max_delay_seconds=1"

NGINX = """
daemon off; pid {place}/nginx.pid; error_log stderr warn; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;
  uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@pytest.fixture(scope="module")
def built(platform: Artifact, key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of bundles, as an aggregate is."""
    place = tmp_path_factory.mktemp("built")
    teams = {team_id: lends(team_id, version=2) for team_id in ("alpha", "beta")}
    for name, content in build("production", platform, teams, 7, key).items():
        (place / f"{name}.tar.gz").write_bytes(content)
    return place


@pytest.fixture(scope="module")
def nginx(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an nginx that serves them; under ``bundles`` by the names that a bundle server has."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        assert "REQUIRE_ALL" not in os.environ
        pytest.skip("nginx is not installed")
    place, port = tmp_path_factory.mktemp("nginx"), free_port()
    (built / "bundles").mkdir()
    for file in built.glob("*.tar.gz"):
        (built / "bundles" / file.name.removesuffix(".tar.gz")).symlink_to(file)
    place.chmod(0o755)
    (place / "nginx.conf").write_text(NGINX.format(place=place, port=port, root=built))
    command = [program, "-p", str(place), "-c", str(place / "nginx.conf"), "-g", "user root;"]
    with started(command, place, {}):
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: reached(url))
        yield url


def reached(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.HTTPError:
        return False
    return True


@contextmanager
def started(command: list[str], place: Path, environment: dict[str, str]) -> Iterator[None]:
    with (place / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=place, env=os.environ | environment, stderr=log)
    try:
        yield
    finally:
        running.terminate()
        running.wait()


@contextmanager
def opa(configuration: str, key: SigningKey, place: Path, *options: str, **environment: str) -> Iterator[OpaServer]:
    """An OPA with a configuration of `bundles/` and the keys that `team-authz keys show --opa` prints."""
    (place / "key.pub").write_bytes(key.public.pem())
    keys = subprocess.run(
        ["team-authz", "keys", "show", str(place / "key.pub"), "--opa"], capture_output=True, check=True, text=True
    )
    (place / "opa.yaml").write_text((REPOSITORY / "bundles" / configuration).read_text() + keys.stdout)
    (place / "token").write_text("secret")
    address = f"unix://{place}/opa.sock"
    command = [find_opa(), "run", "--server", "--config-file", str(place / "opa.yaml"), "--addr", address, *options]
    environment |= {"BUNDLE_TOKEN_FILE": str(place / "token"), "HOST_NAME": "here"}
    command += ["--skip-version-check", "--log-level-request", "debug"]
    with started(command, place, environment), closing(OpaServer(address, deadline_ms=5_000)) as server:
        yield server


def lent(server: OpaServer | Downloaded, team_id: str) -> tuple[bool, str] | None:
    """Whether anybody may read a team's connection, and the revision that says so; ``None``: no decision."""
    question = Evaluations(Subject("user", "gus"), "read", [Resource("connection", team_id, "pg")])
    try:
        (decision,), revision, _ = DecisionPoint(server).decide(question)
    except EngineError:
        return None
    return decision.allow, revision.partition("-")[0]


ALL_TEAMS = {"alpha": (True, "7"), "beta": (True, "7")}
ONLY_ALPHA = {"alpha": (True, "7"), "beta": (False, "7")}


@pytest.mark.parametrize(
    ("configuration", "environment", "answers"),
    [
        ("opa.yaml", {"BUNDLE_SERVER_URL": "{}"}, ALL_TEAMS),
        ("team-opa.yaml", {"BUNDLE_SERVER_URL": "{}", "TEAM_ID": "alpha"}, ONLY_ALPHA),
        ("web.yaml", {"WEB_SERVER_URL": "{}"}, ALL_TEAMS),
    ],
)
def test_from_a_web_server(
    configuration: str,
    environment: dict[str, str],
    answers: dict[str, tuple[bool, str]],
    nginx: str,
    key: SigningKey,
    tmp_path: Path,
) -> None:
    with opa(
        configuration, key, tmp_path, **{name: value.format(nginx) for name, value in environment.items()}
    ) as server:
        eventually(lambda: lent(server, "alpha") is not None)
        assert {team_id: lent(server, team_id) for team_id in ("alpha", "beta")} == answers
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "opa.sock"))) as client:
            written = client.put("http://localhost/v1/policies/mine", content="package airflow.site")
        assert written.status_code == 400
        assert "bundle" in written.text


def bad_ones(bundle: bytes, key: SigningKey) -> dict[str, bytes]:
    """What is not to be trusted, made of a bundle that is; by what an OPA says of it."""
    files = unpack(bundle)
    patch = {"data": [{"op": "upsert", "path": "/airflow/revisions/serial", "value": 9}]}
    return {
        "digest mismatch": pack(files | {"airflow/revisions/data.json": b"{}"}),
        "unexpected EOF": bundle[: len(bundle) // 2],
        "gzip: invalid header": b"<html>sign in</html>",
        "verification key corresponding to ID .* not found": pack(SigningKey.new().sign(files, scope("production"))),
        "scope mismatch": pack(key.sign(files, scope("staging"))),
        "missing .signatures.json": pack({name: files[name] for name in files.keys() - {SIGNATURES}}),
        "delta bundles do not support signature verification": pack(
            {"patch.json": json.dumps(patch).encode(), ".manifest": files[".manifest"]}
        ),
        "exceeds configured size_limit_bytes": pack(
            key.sign(files | {"x.rego": b"package x #" + bytes(64 << 20)}, scope("production")), level=1
        ),
    }


def test_the_last_good_one_stays_in_force(key: SigningKey, tmp_path: Path) -> None:
    lending, other = (
        build("production", None, {"alpha": lends("alpha", connection)}, serial, key)["production"]
        for serial, connection in ((7, "pg"), (8, "other"))
    )
    with Web() as web:
        address = f"http://127.0.0.1:{web.server_port}"

        def said(told: str) -> bool:
            return any(re.search(told, str(status.get("bundles"))) for status in web.told)

        web.content = lending
        with opa("opa.yaml", key, tmp_path, HURRIED, BUNDLE_SERVER_URL=address) as server:
            eventually(lambda: lent(server, "alpha") == (True, "7"))
            for told, web.content in bad_ones(other, key).items():
                eventually(lambda told=told: said(told))  # type: ignore[misc]
                assert lent(server, "alpha") == (True, "7"), told
            web.status = 500
            eventually(lambda: said("server replied with Internal Server Error"))
            assert lent(server, "alpha") == (True, "7")
            web.status, web.content = 200, other
            eventually(lambda: lent(server, "alpha") == (False, "8"))
            # An OPA keeps no serial: docs/bundles.md says what that means.
            web.content = lending
            eventually(lambda: lent(server, "alpha") == (True, "7"))
        web.shutdown()
    with opa("opa.yaml", key, tmp_path, HURRIED, BUNDLE_SERVER_URL=address) as server:
        eventually(lambda: lent(server, "alpha") == (True, "7"))


@pytest.mark.parametrize(("team_id", "answers"), [("alpha", ONLY_ALPHA), ("", ALL_TEAMS)])
def test_discovered(
    team_id: str, answers: dict[str, tuple[bool, str]], nginx: str, built: Path, key: SigningKey, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(key.pem())
    (tmp_path / "claims.json").write_text(json.dumps({"scope": "discovery", "keyid": key.public.id}))
    command = [find_opa(), "build", "--bundle", str(REPOSITORY / "bundles" / "discovery"), "--signing-alg", "ES256"]
    signed = ["--signing-key", "key", "--claims-file", "claims.json", "--output", str(built / "discovery.tar.gz")]
    subprocess.run([*command, *signed], cwd=tmp_path, check=True)
    with Web() as web:
        known = {"WEB_SERVER_URL": nginx, "BUNDLE_SERVER_URL": f"http://127.0.0.1:{web.server_port}"}
        with opa("discovery.yaml", key, tmp_path, TEAM_ID=team_id, **known) as server:
            eventually(lambda: lent(server, "alpha") is not None)
            assert {team: lent(server, team) for team in ("alpha", "beta")} == answers
            eventually(lambda: "'active_revision': '7-" in str([status.get("bundles") for status in web.told]))
        web.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server with an empty bucket ``policies``, known to everything that reads the environment. It
    takes only requests that are signed by the key there.
    """
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{port}"
    known = {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": url,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in known.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(
            Bucket="policies", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        iam = boto3.client("iam")
        iam.create_user(UserName="airflow")
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="airflow", PolicyName="bundles", PolicyDocument=policy)
        made = iam.create_access_key(UserName="airflow")["AccessKey"]
        patch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
        assert httpx.post(f"{url}/moto-api/reset-auth", content="0").is_success
        yield url
        httpx.post(f"{url}/moto-api/reset-auth", content="inf")
    server.stop()


def test_pushed_to_s3_and_fetched_by_both_engines(
    s3: str, built: Path, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "POLL_SECONDS", 0.2)
    written = push(sorted(built.glob("production*.tar.gz")), "s3://policies/airflow")
    assert sorted(written) == [
        f"s3://policies/airflow/{file.name}" for file in sorted(built.glob("production*.tar.gz"))
    ]
    assert written[-1] == "s3://policies/airflow/production.tar.gz"
    assert httpx.get(f"{s3}/policies/airflow/production.tar.gz").is_error
    trust = Trust(tmp_path / "key.pub", "production.wasm")
    with opa("s3.yaml", key, tmp_path, HURRIED, BUCKET_URL=f"{s3}/policies/airflow") as server:
        engine = Downloaded("s3://policies/airflow/production.wasm.tar.gz", tmp_path / "state", trust)
        with closing(engine):
            eventually(lambda: lent(server, "alpha") is not None)
            for asked in (server, engine):
                assert {team_id: lent(asked, team_id) for team_id in ("alpha", "beta")} == ALL_TEAMS
            for name, content in build("production", None, {"alpha": lends("alpha", "other")}, 8, key).items():
                (tmp_path / f"{name}.tar.gz").write_bytes(content)
            push(sorted(tmp_path.glob("production*.tar.gz")), "s3://policies/airflow")
            eventually(lambda: lent(server, "alpha") == lent(engine, "alpha") == (False, "8"))


def test_a_store_that_does_not_take_them_is_told(s3: str, built: Path, tmp_path: Path) -> None:  # noqa: ARG001
    with pytest.raises(PushError, match="s3://nobodys/x does not take the bundles"):
        push([built / "production.tar.gz"], "s3://nobodys/x")
    with pytest.raises(PushError, match="nosuch://x does not take the bundles"):
        push([built / "production.tar.gz"], "nosuch://x")
    with pytest.raises(PushError, match="does not take"):
        push([tmp_path / "missing.tar.gz"], tmp_path.as_uri())
    assert push([built / "production.tar.gz"], f"{tmp_path.as_uri()}/out") == [
        f"file://{tmp_path}/out/production.tar.gz"
    ]
