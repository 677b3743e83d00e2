"""Artifacts: whose, which version, and that nobody publishes for somebody else."""

from __future__ import annotations

import pytest

from airflow_team_authz.bundles.artifact import (
    MAX_ARTIFACT_BYTES,
    PLATFORM,
    Artifact,
    build_artifact,
    digest,
    read_artifact,
)
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.opa.archive import MANIFEST, BundleRefusedError, canonical, pack
from tests.bundles.conftest import lends


def test_the_same_artifact_is_the_same_bytes(key: SigningKey) -> None:
    built = build_artifact(lends("alpha", version=3), key)
    assert built == build_artifact(lends("alpha", version=3), key)
    assert built != build_artifact(lends("alpha", version=4), key)
    assert read_artifact(built, "alpha", TrustedKeys.of([key.public]), 2) == lends("alpha", version=3)


@pytest.mark.parametrize("newer_than", [3, 4, 2**40])
def test_an_older_version_is_refused_also_when_replayed(newer_than: int, key: SigningKey) -> None:
    with pytest.raises(
        BundleRefusedError, match=f"its version 3 is not above {newer_than}, which is published already"
    ):
        read_artifact(build_artifact(lends("alpha", version=3), key), "alpha", TrustedKeys.of([key.public]), newer_than)


def test_another_teams_artifact_and_a_retired_key_are_refused(key: SigningKey) -> None:
    built = build_artifact(lends("alpha"), key)
    with pytest.raises(BundleRefusedError, match="it is signed for 'alpha', not for 'beta'"):
        read_artifact(built, "beta", TrustedKeys.of([key.public]))
    with pytest.raises(BundleRefusedError, match="not trusted here"):
        read_artifact(built, "alpha", TrustedKeys.of([SigningKey.new().public]))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("alpha", "teams/beta/beta.rego"),
        ("alpha", "teams/alphabet/x.rego"),
        ("alpha", "airflow/site/site.rego"),
        ("alpha", "data.json"),
        (PLATFORM, "teams/alpha/alpha.rego"),
        (PLATFORM, "airflow/authz/authz.rego"),
    ],
)
def test_files_of_others_are_refused(owner: str, name: str, key: SigningKey) -> None:
    with pytest.raises(BundleRefusedError, match=f"{name} is not a file of {owner}"):
        read_artifact(build_artifact(Artifact(owner, 1, {name: b""}), key), owner, TrustedKeys.of([key.public]))


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None, 2**53])
def test_a_version_that_is_none_is_refused(version: object, key: SigningKey) -> None:
    files = {MANIFEST: canonical({"metadata": {"version": version}})}
    with pytest.raises(BundleRefusedError, match="not a positive integer"):
        read_artifact(pack(key.sign(files, "alpha")), "alpha", TrustedKeys.of([key.public]))


def test_what_is_too_large_is_refused(key: SigningKey) -> None:
    trusted = TrustedKeys.of([key.public])
    with pytest.raises(BundleRefusedError, match="larger than 4 MiB"):
        read_artifact(b"x" * (MAX_ARTIFACT_BYTES + 1), "alpha", trusted)
    bomb = build_artifact(Artifact("alpha", 1, {"teams/alpha/x.rego": b"#" * 3 * MAX_ARTIFACT_BYTES}), key)
    assert len(bomb) < MAX_ARTIFACT_BYTES
    with pytest.raises(BundleRefusedError, match="unpacks to more than 8 MiB"):
        read_artifact(bomb, "alpha", trusted)


def test_digests_tell_names_from_content() -> None:
    assert digest({"a": b"bc"}) != digest({"ab": b"c"})
    assert digest({"a": b"1", "b": b"2"}) == digest({"b": b"2", "a": b"1"})
