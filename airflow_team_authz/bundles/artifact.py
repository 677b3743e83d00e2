"""A team's artifact: its package, tests and all, with a version, signed for the team."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey, TrustedKeys
from airflow_team_authz.opa.archive import MANIFEST, BundleRefusedError, canonical, digest, pack, read_manifest, unpack

MAX_ARTIFACT_BYTES = 4 * 1024 * 1024
# Whose the platform's own part is: no team can be called so.
PLATFORM = "@platform"


@dataclass(frozen=True)
class Artifact:
    """The published package of an owner (a team's id, or ``PLATFORM``): files by path, and the version, from 1."""

    owner: str
    version: int
    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits: the same files have the same."""
        return digest(self.files)


def root(owner: str) -> str:
    """The directory that all of the owner's files are in."""
    return "airflow" if owner == PLATFORM else f"teams/{owner}"


def build_artifact(artifact: Artifact, key: SigningKey) -> bytes:
    """The artifact as bytes: the same artifact and key make the same bytes."""
    manifest = {
        "revision": str(artifact.version),
        "roots": [root(artifact.owner)],
        "metadata": {"owner": artifact.owner, "version": artifact.version, "digest": artifact.digest},
    }
    return pack(key.sign({**artifact.files, MANIFEST: canonical(manifest)}, artifact.owner))


def read_artifact(content: bytes, owner: str, keys: TrustedKeys, newer_than: int = 0) -> Artifact:
    """The artifact that an owner has published.

    ``BundleRefusedError`` if it is broken or too large, if none of the keys has signed it for this owner, if it
    holds files of others, or if its version is not above ``newer_than``.
    """
    if len(content) > MAX_ARTIFACT_BYTES:
        raise BundleRefusedError(f"it is larger than {MAX_ARTIFACT_BYTES >> 20} MiB")
    files = unpack(content, MAX_ARTIFACT_BYTES * 2)
    keys.verify(files, owner)
    metadata = read_manifest(files)["metadata"]
    version = metadata.get("version")
    if type(version) is not int or not 0 < version < 2**53:
        raise BundleRefusedError("its version is not a positive integer")
    if version <= newer_than:
        raise BundleRefusedError(f"its version {version} is not above {newer_than}, which is published already")
    own = {name: text for name, text in files.items() if name not in {MANIFEST, SIGNATURES}}
    for name in sorted(own):
        if not name.startswith(f"{root(owner)}/") or name.startswith("airflow/authz/"):
            raise BundleRefusedError(f"{name} is not a file of {owner}")
    return Artifact(owner, version, own)


def denying_artifact(team_id: str, reason: str) -> Artifact:
    """A package that denies everything about what the team owns. Without any, the team's own ``deny`` would be gone."""
    rule = f'package teams["{team_id}"]\n\ndeny contains "{reason}"\n'
    return Artifact(team_id, 0, {f"{root(team_id)}/withheld.rego": rule.encode()})
