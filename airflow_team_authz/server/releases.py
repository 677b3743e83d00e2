"""What is published: from an artifact that somebody sends to the bundles that everybody gets, in one transaction."""

from __future__ import annotations

import difflib
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.aggregate import build
from airflow_team_authz.bundles.archive import manifest_of, unpack
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, read_artifact, root
from airflow_team_authz.bundles.findings import Finding
from airflow_team_authz.bundles.gate import check_package
from airflow_team_authz.bundles.platform_check import check_platform
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.compile import CompileError
from airflow_team_authz.server.database import Bundle, Environment, Freeze, OwnerKeys, Package, Release

_ATTEMPTS = 8


class NotThere(Exception):
    """There is no such team, version or environment."""


class Outdated(Exception):
    """The version is not above the one that is published already."""


class Frozen(Exception):
    """The platform has stopped changes for now."""


class NotPublishable(Exception):
    """The gate refuses the package."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__(f"the package has {len(findings)} findings")
        self.findings = findings


class Published(NamedTuple):
    """What is in force from now on."""

    owner: str
    version: int
    environment: str
    serial: int
    bundles: list[str]


class Releases:
    """Publishing, rolling back and promoting. Thread-safe; several servers may share a database."""

    def __init__(
        self, engine: Engine, key: SigningKey, environments: list[str], opa: str | None, changed: Callable[[], None]
    ) -> None:
        self.environments = environments
        self._engine, self._key, self._opa, self._changed = engine, key, opa, changed
        self._building: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._read: dict[tuple[str, int], Artifact] = {}

    def publish(self, owner: str, content: bytes, environment: str | None, actor: str) -> Published:
        """Take an artifact: whose, newer than the last, fit to be published; and build the bundles with it."""
        environment = self._environment(environment)
        with Session(self._engine) as session:
            self._not_frozen(session, owner, environment)
            keys = session.get(OwnerKeys, owner)
            if keys is None:
                raise NotThere(f"{owner} has no keys here: the platform registers them by PUT /teams/{owner}/keys")
            newest = session.scalar(select(func.max(Package.version)).where(Package.owner == owner)) or 0
            trusted = TrustedKeys.load(keys.pem.encode(), owner)
        artifact = read_artifact(content, owner, trusted)
        if artifact.version <= newest:
            raise Outdated(f"its version {artifact.version} is not above {newest}, which is published already")
        self._gate(artifact, environment)
        now = datetime.now(UTC)

        def keep(session: Session) -> None:
            session.add(
                Package(
                    owner=owner,
                    version=artifact.version,
                    digest=artifact.digest,
                    content=content,
                    actor=actor[:200],
                    at=now,
                )
            )

        try:
            return self._release(environment, artifact, "publish", actor, keep)
        except IntegrityError:
            raise Outdated(f"version {artifact.version} of {owner} was published by somebody else meanwhile") from None

    def rollback(self, owner: str, version: int, environment: str | None, actor: str, force: bool) -> Published:
        """Put what an environment had in force before in force again, under a new serial. ``force``: also if frozen."""
        environment = self._environment(environment)
        with Session(self._engine) as session:
            if not force:
                self._not_frozen(session, owner, environment)
            artifact = self._artifact(session, owner, version)
            was = select(Release.id).where(
                Release.environment == environment, Release.owner == owner, Release.version == version
            )
            # Else it would be a promotion without the gate.
            if session.scalar(was.limit(1)) is None:
                raise NotThere(f"version {version} of {owner} was never in force in {environment}: promote it instead")
        return self._release(environment, artifact, "rollback", actor)

    def promote(self, owner: str, source: str, target: str, actor: str) -> Published:
        """Put what one environment has in force in another one, checked together with what is there."""
        source, target = self._environment(source), self._environment(target)
        with Session(self._engine) as session:
            self._not_frozen(session, owner, target)
            current = self._current(session, source)
        if owner not in current:
            raise NotThere(f"{owner} has nothing in {source}")
        self._gate(current[owner], target)
        return self._release(target, current[owner], "promote", actor)

    def files(self, owner: str, version: int) -> Mapping[str, bytes]:
        """The files of a version."""
        with Session(self._engine) as session:
            return self._artifact(session, owner, version).files

    def diff(self, owner: str, old: int, new: int) -> str:
        """The difference of two versions, as ``diff -u`` tells it."""
        before, after = (self.files(owner, version) for version in (old, new))
        lines: list[str] = []
        for name in sorted(before.keys() | after.keys()):
            was, is_ = (side.get(name, b"").decode(errors="replace").splitlines() for side in (before, after))
            lines += difflib.unified_diff(was, is_, f"{name}@{old}", f"{name}@{new}", lineterm="")
        return "\n".join(lines)

    def _environment(self, name: str | None) -> str:
        if name is not None and name not in self.environments:
            raise NotThere(f"there is no environment {name[:60]}: there are {', '.join(self.environments)}")
        return name or self.environments[0]

    @staticmethod
    def _not_frozen(session: Session, owner: str, environment: str) -> None:
        for frozen in session.scalars(
            select(Freeze).where(Freeze.scope.in_(["*", f"team:{owner}", f"environment:{environment}"]))
        ):
            raise Frozen(f"{frozen.scope} is frozen since {frozen.at:%Y-%m-%d %H:%M}: {frozen.reason}")

    def _gate(self, artifact: Artifact, environment: str) -> None:
        if artifact.owner == PLATFORM:
            findings = check_platform(artifact.files, self._opa)
        else:
            with Session(self._engine) as session:
                platform = self._current(session, environment).get(PLATFORM)
            findings = check_package(artifact.files, artifact.owner, platform.files if platform else None, self._opa)
        if findings:
            raise NotPublishable(findings)

    def _release(
        self,
        environment: str,
        artifact: Artifact,
        action: str,
        actor: str,
        keep: Callable[[Session], None] = lambda _: None,
    ) -> Published:
        """Build outside of the transaction, and commit if nobody else has built meanwhile; else build again."""
        with self._building[environment]:
            for _ in range(_ATTEMPTS):
                with Session(self._engine) as session:
                    before = session.scalar(select(Environment.serial).where(Environment.name == environment)) or 0
                    teams = self._current(session, environment) | {artifact.owner: artifact}
                platform = teams.pop(PLATFORM, None)
                # By the clock, so that clients take what a server builds whose database was lost.
                serial = max(before + 1, int(time.time()))
                only = None if artifact.owner == PLATFORM or before == 0 else {artifact.owner}
                try:
                    built = build(environment, platform, teams, serial, self._key, only, self._opa)
                except CompileError as error:
                    told = " ".join(str(error).split())[:500]
                    help_ = "see which rule it is; what is in force stays"
                    raise NotPublishable([Finding("merged", root(artifact.owner), 1, told, help_)]) from None
                if self._commit(environment, before, serial, artifact, action, actor, built, keep):
                    self._changed()
                    return Published(artifact.owner, artifact.version, environment, serial, sorted(built))
        raise Outdated(f"others publish to {environment} all the time: try again")

    def _commit(
        self,
        environment: str,
        before: int,
        serial: int,
        artifact: Artifact,
        action: str,
        actor: str,
        built: Mapping[str, bytes],
        keep: Callable[[Session], None],
    ) -> bool:
        with Session(self._engine) as session:
            if before == 0:
                session.add(Environment(name=environment, serial=serial))
                try:
                    session.flush()
                except IntegrityError:
                    session.rollback()
                    return False
            else:
                taken = update(Environment).where(Environment.name == environment, Environment.serial == before)
                if session.execute(taken.values(serial=serial)).rowcount != 1:  # type: ignore[attr-defined]
                    return False
            keep(session)
            session.add(
                Release(
                    environment=environment,
                    owner=artifact.owner,
                    version=artifact.version,
                    serial=serial,
                    action=action,
                    actor=actor[:200],
                    at=datetime.now(UTC),
                )
            )
            for name, content in built.items():
                revision = str(manifest_of(content)["revision"])
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                session.merge(
                    Bundle(
                        name=name,
                        environment=environment,
                        serial=serial,
                        revision=revision,
                        etag=etag,
                        content=content,
                    )
                )
            session.commit()
        return True

    def _current(self, session: Session, environment: str) -> dict[str, Artifact]:
        """What an environment has in force, by owner."""
        newest = select(func.max(Release.id)).where(Release.environment == environment).group_by(Release.owner)
        rows = session.execute(select(Release.owner, Release.version).where(Release.id.in_(newest)))
        return {owner: self._artifact(session, owner, version) for owner, version in rows}

    def _artifact(self, session: Session, owner: str, version: int) -> Artifact:
        found = self._read.get((owner, version))
        if found is None:
            package = session.get(Package, (owner, version))
            if package is None:
                raise NotThere(f"there is no version {version} of {owner}")
            # It was verified when it came; its key may have been retired since.
            files = unpack(package.content)
            own = {name: text for name, text in files.items() if name.startswith(f"{root(owner)}/")}
            found = self._read[owner, version] = Artifact(owner, version, own)
        return found
