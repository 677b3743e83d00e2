"""The bundles that engines load: from one source, signed, and one team's never another's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import wasmtime

from airflow_team_authz.bundles import aggregate
from airflow_team_authz.bundles.aggregate import WASM, build, scope
from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey, TrustedKeys
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import Decision, EngineError, Evaluations, PolicyBrokenError, Resource, Subject
from airflow_team_authz.opa.archive import BundleRefusedError, pack, read_manifest, unpack
from airflow_team_authz.opa.compile import CompileError, find_opa
from airflow_team_authz.opa.kinds import REGARDLESS_OF_ID
from tests.bundles.conftest import lends
from tests.conftest import eventually

GUS = Subject("user", "gus")


def question(team_id: str) -> Evaluations:
    return Evaluations(GUS, "read", [Resource("connection", team_id, "pg")])


def decide(engine: InProcess | OpaServer, team_id: str) -> tuple[Decision, str]:
    (decision,), revision, _ = DecisionPoint(engine).decide(question(team_id))
    return decision, revision


@pytest.fixture(scope="module")
def teams() -> dict[str, Artifact]:
    return {"alpha": lends("alpha", version=3), "gamma": lends("gamma", "other", version=7)}


@pytest.fixture(scope="module")
def built(platform: Artifact, teams: dict[str, Artifact], key: SigningKey) -> dict[str, bytes]:
    return build("production", platform, teams, 12, key)


@contextmanager
def opa(bundle: bytes, key: SigningKey, place: Path, name: str) -> Iterator[OpaServer]:
    """A real OPA that has loaded a bundle from a file, if it is signed for this name."""
    (place / "bundle.tar.gz").write_bytes(bundle)
    configuration = {
        "keys": {key.public.id: {"algorithm": "ES256", "key": key.public.pem().decode()}},
        "bundles": {"airflow": {"resource": f"file://{place}/bundle.tar.gz", "signing": {"scope": scope(name)}}},
    }
    (place / "opa.json").write_text(json.dumps(configuration))
    address = f"unix://{place}/opa.sock"
    command = [find_opa(), "run", "--server", "--config-file", str(place / "opa.json"), "--addr", address]
    with (place / "opa.log").open("wb") as told:
        running = subprocess.Popen([*command, "--skip-version-check"], stderr=told, cwd=place)
    try:
        eventually((place / "opa.sock").exists)
        with closing(OpaServer(address, deadline_ms=5_000)) as server:
            yield server
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()


def test_both_engines_load_their_bundle_and_answer_the_same(
    built: dict[str, bytes], key: SigningKey, tmp_path: Path, keys_file: Path
) -> None:
    (tmp_path / "wasm.tar.gz").write_bytes(built["production.wasm"])
    own = InProcess(tmp_path / "wasm.tar.gz", trust=Trust(keys_file, "production.wasm"))
    with opa(built["production"], key, tmp_path, "production") as server:
        eventually(lambda: answers(server))
        for team_id, allowed, version in (("alpha", True, 3), ("gamma", False, 7)):
            decisions = [decide(engine, team_id) for engine in (own, server)]
            assert decisions[0][0] == decisions[1][0]
            assert (decisions[0][0].allow, decisions[0][0].team_version) == (allowed, version)
            assert all(revision.startswith("12-") for _, revision in decisions)


def answers(server: OpaServer) -> bool:
    try:
        decide(server, "alpha")
    except EngineError:
        return False
    return True


def test_a_teams_own_bundle_has_nothing_of_other_teams(
    built: dict[str, bytes], key: SigningKey, tmp_path: Path
) -> None:
    files = unpack(built["production.team.alpha"])
    assert not [name for name in files if name.startswith("teams/") and not name.startswith("teams/alpha/")]
    assert b"gamma" not in b"".join(text for name, text in files.items() if not name.startswith("airflow/"))
    assert read_manifest(files)["metadata"]["teams"] == {"alpha": {"version": 3, "digest": lends("alpha").digest}}
    with opa(built["production.team.alpha"], key, tmp_path, "production.team.alpha") as server:
        eventually(lambda: answers(server))
        assert decide(server, "alpha")[0].reasons == ("alpha lends pg",)


def test_tests_and_sources_stay_where_they_are_not_needed(built: dict[str, bytes]) -> None:
    assert not [name for name in unpack(built["production"]) if name.endswith("_test.rego")]
    assert sorted(unpack(built["production.wasm"])) == [".manifest", SIGNATURES, "data.json", "policy.wasm"]


def test_bundles_say_which_rules_look_at_ids_whatever_the_platform_says_of_that(
    built: dict[str, bytes], platform: Artifact, teams: dict[str, Artifact], key: SigningKey
) -> None:
    for name in ("production", "production.team.alpha"):
        told = json.loads(unpack(built[name])[REGARDLESS_OF_ID])
        assert (told["others"], told["teams"]["alpha"]) == (True, False)
    lie = b'{"others":true,"site":true,"teams":{"alpha":true}}'
    lying = Artifact(platform.owner, platform.version, {**platform.files, REGARDLESS_OF_ID: lie})
    files = aggregate._Part(lying, 1, key).files(teams.values())
    assert json.loads(files[REGARDLESS_OF_ID])["teams"]["alpha"] is False


def test_one_changed_team_makes_its_bundle_and_the_shared_ones(
    platform: Artifact, teams: dict[str, Artifact], key: SigningKey, built: dict[str, bytes]
) -> None:
    fresh = build("production", platform, teams, 12, key, only={"gamma", "nobody"})
    assert sorted(fresh) == ["production", "production.team.gamma", "production.wasm"]
    # The same but for their signatures, which tell the time.
    for name, content in fresh.items():
        assert unpack(content) | {SIGNATURES: b""} == unpack(built[name]) | {SIGNATURES: b""}


def test_who_declares_what_is_others_is_not_built(
    platform: Artifact, teams: dict[str, Artifact], key: SigningKey
) -> None:
    stranger = Artifact("beta", 1, {"teams/beta/beta.rego": b"package teams.alpha\n\nallow contains 1"})
    with pytest.raises(CompileError, match=r"teams/beta/beta\.rego declares package teams\.alpha"):
        build("production", platform, {**teams, "beta": stranger}, 13, key, only={"beta"})
    site = Artifact("@platform", 5, {"airflow/site/site.rego": b"package airflow.authz\n\nx := 1"})
    with pytest.raises(CompileError, match=r"declares package airflow\.authz"):
        build("production", site, teams, 13, key, only=set())
    numbers = Artifact("beta", 1, {"teams/beta/data.json": b'{"x": 1e400}'})
    with pytest.raises(CompileError, match=r"teams/beta/data\.json is not JSON"):
        build("production", platform, {**teams, "beta": numbers}, 13, key, only={"beta"})


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (f"(module (func (local {'i32 ' * 50_001})))", "too many locals"),
        ("(module)", "it lacks the entrypoint airflow/authz/decision"),
    ],
    ids=["locals", "entrypoints"],
)
def test_what_only_the_engine_would_refuse_is_not_built(
    program: str, told: str, platform: Artifact, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack({WASM: bytes(wasmtime.wat2wasm(program))})
    monkeypatch.setattr(aggregate, "compile_bundle", lambda _, out, __: out.write_bytes(made))
    with pytest.raises(CompileError, match=f"no engine can start what it compiles to: .*{told}"):
        build("production", platform, {}, 13, key)


def changed(bundle: bytes, **files: bytes) -> bytes:
    return pack(unpack(bundle) | {name.replace("__", "/"): content for name, content in files.items()})


def test_what_is_not_to_be_trusted_is_refused(
    built: dict[str, bytes], key: SigningKey, keys_file: Path, tmp_path: Path
) -> None:
    good = built["production.wasm"]
    files = unpack(good)
    unsigned = pack({name: content for name, content in files.items() if name != SIGNATURES})
    delta = pack(key.sign({"patch.json": b'{"data": []}', ".manifest": files[".manifest"]}, scope("production.wasm")))
    no_serial = pack(key.sign(files | {".manifest": b"{}"}, scope("production.wasm")))
    bad = {
        good[:-9]: "cannot be read",
        changed(good, **{"data.json": b"{}"}): "data.json is not what was signed",
        changed(good, x=b""): "x is not covered by its signature",
        unsigned: "it is not signed",
        delta: "delta bundle",
        no_serial: "no serial",
        built["production"]: "signed for 'bundles/production', not for 'bundles/production.wasm'",
    }
    trust = Trust(keys_file, "production.wasm")
    assert trust.open(good).serial == 12
    for content, told in bad.items():
        with pytest.raises(BundleRefusedError, match=told):
            trust.open(content)
        (tmp_path / "bad.tar.gz").write_bytes(content)
        with pytest.raises(PolicyBrokenError, match=told):
            InProcess(tmp_path / "bad.tar.gz", trust=trust)
    keys_file.write_bytes(SigningKey.new().public.pem())
    with pytest.raises(BundleRefusedError, match="not trusted here"):
        trust.open(good)
    keys_file.unlink()
    with pytest.raises(BundleRefusedError, match="nobody can be trusted"):
        trust.open(good)


def test_opa_refuses_what_nobody_has_signed_for_it(built: dict[str, bytes], key: SigningKey, tmp_path: Path) -> None:
    files = unpack(built["production"])
    unsigned = pack({name: content for name, content in files.items() if name != SIGNATURES})
    stranger = pack(SigningKey.new().sign(files, scope("production")))
    bad = {
        "bundle missing .signatures.json file": unsigned,
        "failed to verify JWT signature|not found": stranger,
        "scope mismatch": built["production.team.alpha"],
        "not included in bundle signature": changed(built["production"], **{"x.rego": b"package x"}),
    }
    for i, (told, content) in enumerate(bad.items()):
        place = tmp_path / str(i)
        place.mkdir()
        with opa(content, key, place, "production") as server:
            eventually(lambda place=place, told=told: re.search(told, (place / "opa.log").read_text()))  # type: ignore[misc]
            assert not answers(server)
    assert TrustedKeys.of([key.public]).verify(files, scope("production"))
