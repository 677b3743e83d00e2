"""Builds the bundles that engines load from the artifacts of the platform and the teams.

One source, three forms: one bundle for an OPA that all teams share, the same compiled for the in-process engine (OPA
refuses a bundle with Wasm inside), and one per team, with the platform's part and that team's.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.opa.archive import MANIFEST, canonical, digest, load_json, pack, unpack
from airflow_team_authz.opa.compile import (
    CompileError,
    StartError,
    check_ownership,
    compile_bundle,
    derived,
    find_opa,
    merged,
    opa_version,
    scratch_directory,
    shipped_policies,
)
from airflow_team_authz.opa.wasm import START_SECONDS, trouble_at_start

REVISIONS = "airflow/revisions/data.json"
WASM = "policy.wasm"
# A bundle that stays the same is signed again after this time, so that engines can tell it from an old one.
SIGN_AGAIN_HOURS = 6
# Processor time for compiling and starting it; engines, which may be slower, have three times as much.
_START_SECONDS = START_SECONDS // 3


def scope(name: str) -> str:
    """The scope of a signature for the bundle of this name. It never equals the scope of a team's artifact."""
    return f"bundles/{name}"


def wasm_bundle(environment: str) -> str:
    """Name of the bundle for the in-process engine."""
    return f"{environment}.wasm"


def team_bundle(environment: str, team_id: str) -> str:
    """Name of the bundle for a team's own OPA."""
    return f"{environment}.team.{team_id}"


def team_of_bundle(name: str) -> str:
    """The team whose own bundle has this name; empty for a bundle of all teams."""
    return name.partition(".team.")[2]


def made_by(key: SigningKey, opa: str | None = None) -> str:
    """The inputs of bundles beside packages: key, shipped policy and OPA. A change rebuilds all bundles."""
    capabilities = (shipped_policies() / "capabilities.json").read_bytes()
    shipped = digest({**merged({}), "capabilities.json": capabilities})
    return f"{key.public.id} {shipped} {'.'.join(map(str, opa_version(find_opa(opa))))}"


def build(
    environment: str,
    platform: Artifact | None,
    teams: Mapping[str, Artifact],
    serial: int,
    key: SigningKey,
    only: Collection[str] | None = None,
    opa: str | None = None,
) -> dict[str, bytes]:
    """Bundles by name, signed: ``environment``, ``environment.wasm``, and ``environment.team.<id>`` of each team.

    ``serial`` is an integer that rises with each build; engines of ours refuse a lower one than they have. ``only``
    names the teams that have changed since
    the last build: only their own bundles are made. Raises ``CompileError`` if the whole does not compile, and
    ``StartError`` if no engine can start what it compiles to.
    """
    part = _Part(platform, serial, key)
    everything = part.files(teams.values())
    changed = list(teams.values()) if only is None else [teams[team_id] for team_id in teams.keys() & set(only)]
    with ThreadPoolExecutor(1) as pool:
        # By another program: the other bundles are made meanwhile.
        compiling = pool.submit(_compiled, everything, part.files(changed), opa)
        bundles = {environment: part.bundle(environment, everything, teams.values())}
        for artifact in changed:
            name = team_bundle(environment, artifact.owner)
            bundles[name] = part.bundle(name, part.files([artifact]), [artifact])
        compiled = compiling.result()
    bundles[wasm_bundle(environment)] = part.bundle(wasm_bundle(environment), compiled, teams.values())
    return bundles


def sign_again(name: str, content: bytes, key: SigningKey) -> bytes:
    """The same bundle with a signature of now; ``BundleRefusedError`` unless this key has signed it before."""
    files = unpack(content)
    TrustedKeys.of([key.public]).verify(files, scope(name))
    return pack(key.sign(files, scope(name), int(time.time())))


class _Part:
    """The common parts of all bundles of one build."""

    def __init__(self, platform: Artifact | None, serial: int, key: SigningKey) -> None:
        self._platform = platform
        self._serial = serial
        self._key = key
        self._common = merged(platform.files if platform else {})

    def files(self, teams: Collection[Artifact]) -> dict[str, bytes]:
        """The policy of the platform and some teams, as OPA loads it."""
        files = dict(self._common)
        for artifact in teams:
            files |= {name: content for name, content in artifact.files.items() if _decides(name)}
        versions = {artifact.owner: artifact.version for artifact in teams}
        known = {REVISIONS: canonical({"serial": self._serial, "teams": versions})}
        return files | known | derived(files)

    def bundle(self, name: str, files: Mapping[str, bytes], teams: Collection[Artifact]) -> bytes:
        """The signed bundle. Data is in the form that OPA hashes, so that its bytes are what is signed."""
        content = {path: _as_hashed(path, text) for path, text in files.items()}
        manifest = {
            # It owns every path: OPA then refuses to have policy or data written past it.
            "roots": [""],
            "revision": f"{self._serial}-{digest(content)}",
            "metadata": {
                "name": name,
                "serial": self._serial,
                "platform": self._platform and {"version": self._platform.version, "digest": self._platform.digest},
                "teams": {
                    artifact.owner: {"version": artifact.version, "digest": artifact.digest} for artifact in teams
                },
            },
        }
        return pack(self._key.sign({**content, MANIFEST: canonical(manifest)}, scope(name), int(time.time())))


def _as_hashed(path: str, content: bytes) -> bytes:
    if not path.endswith("data.json"):
        return content
    try:
        return canonical(load_json(content))
    except (ValueError, RecursionError) as error:
        raise CompileError(f"{path} is not JSON: {error}") from None


def _decides(name: str) -> bool:
    """Whether a team's file is part of what decides, rather than of its tests and schemas."""
    return name.endswith("data.json") or (name.endswith(".rego") and not name.endswith("_test.rego"))


def _compiled(files: Mapping[str, bytes], changed: Mapping[str, bytes], opa: str | None) -> dict[str, bytes]:
    """All files as Wasm and data, if those that have changed declare only what is theirs."""
    with scratch_directory() as directory:
        fresh, everything, out = (Path(directory) / f"{name}.tar.gz" for name in ("changed", "everything", "wasm"))
        # An archive instead of thousands of files: a third of the time.
        everything.write_bytes(pack(files, level=1))
        fresh.write_bytes(pack(changed, level=1))
        with ThreadPoolExecutor(1) as pool:
            compiling = pool.submit(compile_bundle, everything, out, opa)
            check_ownership(fresh, find_opa(opa))
            compiling.result()
        built = unpack(out.read_bytes())
    # OPA's compiler minds neither a function with too many variables nor how much memory data takes.
    if trouble := trouble_at_start(built.get(WASM, b""), built.get("data.json", b"{}"), _START_SECONDS):
        raise StartError(f"no engine can start what it compiles to: {trouble}")
    # Without the source: an engine needs none, and what it does not get it cannot show.
    return {name: built[name] for name in (WASM, "data.json") if name in built}
