"""Aggregation without a server: artifacts, trusted keys, last good artifacts and bundles, each in a directory."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from airflow_team_authz.bundles import BundlesError
from airflow_team_authz.bundles.aggregate import (
    SIGN_AGAIN_HOURS,
    build,
    made_by,
    sign_again,
    team_bundle,
    wasm_bundle,
)
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, denying_artifact, read_artifact, root
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.files import replace_file
from airflow_team_authz.gate.check import check_package
from airflow_team_authz.gate.platform_part import check_platform
from airflow_team_authz.model import UnfitKeyError
from airflow_team_authz.opa.archive import BundleRefusedError, digest, read_manifest, unpack
from airflow_team_authz.opa.compile import CompileError

_SUFFIX = ".tar.gz"


class AggregationResult(NamedTuple):
    """The result for a team's artifact: ``published``, ``unchanged``, or ``refused``, and then why."""

    did: str
    team_id: str
    version: int
    detail: str = ""


class OfflineError(BundlesError):
    """The platform's own part is not fit to be published."""


class Site(NamedTuple):
    """The directories: ``artifacts/<team>.tar.gz``, ``trusted/<team>.pub``, and ``out`` for what is built.

    ``out/.good`` keeps the last good artifact of each team: it is what stays when a newer one is refused.
    """

    artifacts: Path
    trusted: Path
    out: Path

    def aggregate(
        self, environment: str, platform: Mapping[str, bytes], key: SigningKey, opa: str | None = None
    ) -> list[AggregationResult]:
        """Build the bundles from the platform's files and each team's newest artifact that is good.

        One team's bad artifact holds nobody up: its last good one stays. Raises ``OfflineError`` if the platform's
        part is not fit, ``CompileError`` if nothing can be compiled at all.
        """
        if findings := check_platform(platform, opa):
            raise OfflineError("; ".join(f"{found.file}:{found.line}: {found.message}" for found in findings))
        good, damaged = self._good()
        outcomes = []
        fresh: dict[str, bytes] = {}
        for file in sorted(self.artifacts.glob(f"*{_SUFFIX}")):
            team_id = file.name.removesuffix(_SUFFIX)
            outcome, admitted = self._admit(team_id, file, good.get(team_id), platform, good, opa)
            outcomes.append(outcome)
            if admitted is not None:
                good[team_id], fresh[team_id] = admitted
        for team_id in damaged.keys() - fresh.keys():
            # Only now: the platform's tests, which a package has to leave unharmed, need not allow for a denial.
            good[team_id] = denying_artifact(team_id, "the package of this team is damaged")
            outcomes.append(AggregationResult("refused", team_id, 0, damaged[team_id]))
        self._build(environment, platform, good, fresh.keys() | damaged.keys(), key, opa)
        for team_id, content in fresh.items():
            replace_file(self._kept(team_id), content)
        return outcomes

    def _good(self) -> tuple[dict[str, Artifact], dict[str, str]]:
        """The last good artifact of each team, and what is wrong with those that cannot be read any more.

        Their signatures were checked when they came; a key may have been retired since.
        """
        good, damaged = {}, {}
        for file in sorted((self.out / ".good").glob(f"*{_SUFFIX}")):
            team_id = file.name.removesuffix(_SUFFIX)
            try:
                files = unpack(file.read_bytes())
                version = int(read_manifest(files)["metadata"]["version"])
            except (OSError, BundleRefusedError, LookupError, ValueError, TypeError) as error:
                damaged[team_id] = f"its last good artifact {file} is damaged, so all is denied: {error}"
            else:
                own = {name: text for name, text in files.items() if name.startswith(f"{root(team_id)}/")}
                good[team_id] = Artifact(team_id, version, own)
        return good, damaged

    def _admit(
        self,
        team_id: str,
        file: Path,
        before: Artifact | None,
        platform: Mapping[str, bytes],
        good: Mapping[str, Artifact],
        opa: str | None,
    ) -> tuple[AggregationResult, tuple[Artifact, bytes] | None]:
        """The result for an artifact, and the artifact with the bytes that were checked, if it is new and good.

        The file is read once: somebody may replace it meanwhile.
        """
        version = before.version if before else 0
        try:
            content = file.read_bytes()
            if before and self._kept(team_id).read_bytes() == content:
                return AggregationResult("unchanged", team_id, version), None
            artifact = read_artifact(content, team_id, TrustedKeys.read(self.trusted / f"{team_id}.pub"), version)
        except (OSError, BundleRefusedError, UnfitKeyError) as error:
            return AggregationResult("refused", team_id, version, f"{file.name}: {error}"), None
        others = {name: text for other in good.values() if other.owner != team_id for name, text in other.files.items()}
        try:
            findings = check_package(artifact.files, team_id, {**platform, **others}, opa)
        except CompileError as error:
            return AggregationResult("refused", team_id, version, f"it could not be checked: {error}"), None
        if findings:
            told = "; ".join(f"{found.file}:{found.line}: {found.message} ({found.rule})" for found in findings)
            return AggregationResult("refused", team_id, version, told), None
        return AggregationResult("published", team_id, artifact.version), (artifact, content)

    def _build(
        self,
        environment: str,
        platform: Mapping[str, bytes],
        teams: Mapping[str, Artifact],
        changed: Collection[str],
        key: SigningKey,
        opa: str | None,
    ) -> None:
        state_file = self.out / ".state.json"
        before: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}
        platform_digest, maker = digest(platform), made_by(key, opa)
        everything = before.get("platform") != platform_digest or before.get("made_by") != maker
        if not everything and not changed:
            try:
                return self._sign_again(environment, before, key)
            except BundleRefusedError:
                # Somebody has written there: it is built anew.
                everything = True
        # By the clock, so that it also rises where the directory is lost.
        serial = max(int(before.get("serial", 0)) + 1, int(time.time()))
        artifact = Artifact(PLATFORM, int(before.get("platform_version", 0)) + everything, platform)
        built = build(environment, artifact, teams, serial, key, None if everything else changed, opa)
        for name, content in sorted(built.items(), reverse=True):
            replace_file(self.out / f"{name}{_SUFFIX}", content)
        state = {
            "serial": serial,
            "platform": platform_digest,
            "platform_version": artifact.version,
            "made_by": maker,
            "signed_at": int(time.time()),
        }
        replace_file(state_file, json.dumps(state).encode())

    def _sign_again(self, environment: str, state: Mapping[str, Any], key: SigningKey) -> None:
        """Signs unchanged bundles again now and then, so that engines can distinguish them from old ones."""
        now = int(time.time())
        if now - int(state.get("signed_at", 0)) < SIGN_AGAIN_HOURS * 3600:
            return
        teams = self.out.glob(f"{team_bundle(environment, '*')}{_SUFFIX}")
        for file in [
            *sorted(teams),
            *(self.out / f"{name}{_SUFFIX}" for name in (wasm_bundle(environment), environment)),
        ]:
            replace_file(file, sign_again(file.name.removesuffix(_SUFFIX), file.read_bytes(), key))
        replace_file(self.out / ".state.json", json.dumps({**state, "signed_at": now}).encode())

    def _kept(self, team_id: str) -> Path:
        return self.out / ".good" / f"{team_id}{_SUFFIX}"
