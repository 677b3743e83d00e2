"""Publishing: from an artifact to the bundles of all teams, in one transaction."""

from __future__ import annotations

import difflib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, and_, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.aggregate import SIGN_AGAIN_HOURS, made_by, sign_again
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, read_artifact, root
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.escaping import logger
from airflow_team_authz.gate.check import check_package
from airflow_team_authz.gate.findings import Finding, of_opa
from airflow_team_authz.gate.platform_part import check_platform
from airflow_team_authz.opa.archive import BundleRefusedError, manifest_of, unpack
from airflow_team_authz.opa.compile import CompileError, StartError, merged
from airflow_team_authz.server import ServerError, approvals
from airflow_team_authz.server.approvals import Approval, ApprovalError, Held, Rules
from airflow_team_authz.server.building import Builder, Whole, etag
from airflow_team_authz.server.comparing import Comparing, InForce
from airflow_team_authz.server.database import (
    Bundle,
    Environment,
    Freeze,
    HeldRelease,
    OwnerKeys,
    Package,
    Release,
    WithheldPackage,
)
from airflow_team_authz.server.impact import Impact

log = logger(__name__)

_PUBLISH, _ROLLBACK, _PROMOTE = "publish", "rollback", "promote"
_ATTEMPTS = 8
_NO_RULES = Rules()
# How many packages are tried in the place of one that no longer compiles.
_EARLIER = 5
# How many lines are compared with each other, which may take seconds.
_DIFF_PAIRS = 4_000_000


class NotFoundError(ServerError):
    """There is no such team, version or environment."""


class OutdatedError(ServerError):
    """The version is not above the one that is published already."""


class FrozenError(ServerError):
    """The platform has stopped changes for now."""


class NotPublishableError(ServerError):
    """The gate refuses the package."""

    def __init__(self, findings: list[Finding], files: Collection[str]) -> None:
        super().__init__(f"the package has {len(findings)} findings")
        self.findings, self.files = findings, files


class Published(NamedTuple):
    """The versions in force after a publication, and its impact if that was computed."""

    owner: str
    version: int
    environment: str
    serial: int
    bundles: list[str]
    impact: Impact | None = None


class Asker(NamedTuple):
    """Who asks for a change, and whether the answer is to have its impact. ``person``: see ``access.Caller``."""

    name: str
    person: str
    by_platform: bool = False
    impact: bool = False


class _Change(NamedTuple):
    """A change of a version; ``check`` is asked again inside the transaction. ``content``: to be kept as a package."""

    artifact: Artifact
    action: str
    asker: Asker
    check: Callable[[Session], None]
    content: bytes | None = None
    approval: Approval | None = None


class _Built(NamedTuple):
    """The serial and the names of the bundles, none if nothing was to be built; and what the change gives and takes."""

    serial: int
    bundles: list[str]
    impact: Impact | None


class Releases:
    """Publishing, rolling back and promoting. Thread-safe; several servers may share a database."""

    def __init__(
        self,
        engine: Engine,
        key: SigningKey,
        environments: list[str],
        opa: str | None,
        changed: Callable[[], None],
        rules: Rules = _NO_RULES,
    ) -> None:
        """``rules``: what waits for an approval."""
        self.environments, self.rules = environments, rules
        self._engine, self._builder, self._opa, self._changed = engine, Builder(key, opa), opa, changed
        self._comparing = Comparing(engine, self._builder, rules)
        self._building: dict[str, threading.Lock] = defaultdict(threading.Lock)
        # The packages in force in each environment, by owner, version and digest: unpacking all takes seconds.
        self._in_force: dict[str, dict[tuple[str, int, str | None], Artifact]] = {}
        # ETags of bundles that are not signed again, which is told once.
        self._not_ours: set[str] = set()

    def publish(self, owner: str, content: bytes, environment: str | None, asker: Asker) -> Published | Held:
        """Take an artifact: whose, newer than the last, fit to be published; and build the bundles with it."""
        environment = self._environment(environment)
        with Session(self._engine) as session:
            trusted = self._trusted(session, owner)
            self._not_frozen(session, owner, environment)
        artifact = read_artifact(content, owner, trusted)
        with Session(self._engine) as session:
            # Whoever did not hear the answer sends it again.
            repeated = self._present(session, environment, owner) == artifact
            if not repeated:
                _newest(session, artifact)
        if not repeated:
            self._gate(artifact, environment)
        return self._release(environment, self._publication(artifact, content, environment, asker))

    def _publication(self, artifact: Artifact, content: bytes, environment: str, asker: Asker) -> _Change:
        # While the gate runs, keys are taken away, changes are stopped, and newer versions are published.
        def check(session: Session) -> None:
            self._trusted(session, artifact.owner).verify(unpack(content), artifact.owner)
            self._not_frozen(session, artifact.owner, environment)
            _newest(session, artifact)

        return _Change(artifact, _PUBLISH, asker, check, content)

    def rollback(self, owner: str, version: int, environment: str | None, asker: Asker) -> Published | Held:
        """Put what an environment had in force before in force again, under a new serial. The platform: also if
        frozen.
        """
        environment = self._environment(environment)
        with Session(self._engine) as session:
            change = self._return(self._artifact(session, owner, version), environment, asker)
            change.check(session)
            was = select(Release.id).where(
                Release.environment == environment, Release.owner == owner, Release.version == version
            )
            # Else it would be a promotion without the gate.
            if session.scalar(was.limit(1)) is None:
                raise NotFoundError(
                    f"version {version} of {owner} was never in force in {environment}: promote it instead"
                )
        return self._release(environment, change)

    def _return(self, artifact: Artifact, environment: str, asker: Asker) -> _Change:
        def check(session: Session) -> None:
            if not asker.by_platform:
                self._still_signed(session, artifact)
                self._not_frozen(session, artifact.owner, environment)

        return _Change(artifact, _ROLLBACK, asker, check)

    def promote(self, owner: str, source: str, target: str, asker: Asker) -> Published | Held:
        """Put what one environment has in force in another one, checked together with what is there."""
        source, target = self._environment(source), self._environment(target)
        with Session(self._engine) as session:
            wanted, present = (self._present(session, name, owner) for name in (source, target))
        if wanted is None:
            raise NotFoundError(f"{owner} has nothing in {source}")
        change = self._promotion(wanted, target, asker)
        with Session(self._engine) as session:
            change.check(session)
        if wanted != present:
            self._gate(wanted, target)
        return self._release(target, change)

    def _promotion(self, artifact: Artifact, environment: str, asker: Asker) -> _Change:
        def check(session: Session) -> None:
            if not asker.by_platform:
                self._still_signed(session, artifact)
            self._trusted(session, artifact.owner)
            self._not_frozen(session, artifact.owner, environment)

        return _Change(artifact, _PROMOTE, asker, check)

    def approve(self, approval: Approval) -> Published:
        """Put a held release in force, checked again as when it came, if its impact is still the one that was seen.

        Raises ``NotAnApproverError``, ``ApprovalError``, ``FourEyesError``, and whatever publishing it anew would.
        """
        self.rules.approver(approval.actor)
        with Session(self._engine) as session:
            row = approvals.waiting(session, approval.id)
            approvals.four_eyes(session, row, approval.person, approval.actor)
            approvals.seen(row, approval)
            environment, asker = self._environment(row.environment), Asker(row.actor, row.person, row.by_platform)
            if row.action == _PUBLISH:
                content = row.content or b""
                artifact = read_artifact(content, row.owner, self._trusted(session, row.owner))
                change = self._publication(artifact, content, environment, asker)
            else:
                artifact = self._artifact(session, row.owner, row.version)
                made = self._return if row.action == _ROLLBACK else self._promotion
                change = made(artifact, environment, asker)
            change.check(session)
            if (artifact.version, artifact.digest) != (row.version, row.digest):
                raise ApprovalError("the database has another package under this version: refuse it")
        if change.action != _ROLLBACK:
            self._gate(artifact, environment)
        done = self._release(environment, change._replace(approval=approval))
        if isinstance(done, Held) or not done.bundles:
            raise ApprovalError(f"version {artifact.version} of {artifact.owner} is in force in {environment} already")
        return done

    def renew(self) -> None:
        """Build all bundles again that another key, shipped policy or OPA has made. What cannot be built stays."""
        for environment in self.environments:
            try:
                self._rebuild(environment, None)
            except (CompileError, SQLAlchemyError, OSError, OutdatedError) as error:
                # Not what the driver says: it may quote the database's address.
                told = type(error).__name__ if isinstance(error, SQLAlchemyError) else error
                log.error("the bundles of %s are still those of another key, package or OPA: %s", environment, told)

    def sign_again(self) -> None:
        """Sign all bundles again whose signature is old, so that engines can tell that they are the present ones."""
        try:
            with Session(self._engine) as session:
                names = session.scalars(select(Bundle.name).where(_signed_long_ago())).all()
            if sum(self._signed_again(name) for name in names):
                self._changed()
        except (SQLAlchemyError, OSError) as error:
            told = type(error).__name__ if isinstance(error, SQLAlchemyError) else error
            log.error("bundles are not signed again: %s", told)

    def _signed_again(self, name: str) -> bool:
        with Session(self._engine) as session:
            found = session.scalar(select(Bundle).where(Bundle.name == name, _signed_long_ago()).with_for_update())
            if found is None:
                return False
            try:
                # What another key has signed is left to whom it belongs to, and `renew`; what nobody has, to nobody.
                content = sign_again(name, found.content, self._builder.key)
            except BundleRefusedError as error:
                if found.etag not in self._not_ours:
                    log.error("the bundle %s in the database is not signed again: %s", name, error)
                self._not_ours.add(found.etag)
                return False
            found.content, found.etag, found.signed_at = content, etag(content), datetime.now(UTC)
            session.commit()
        return True

    def files(self, owner: str, version: int) -> Mapping[str, bytes]:
        """The files of a version."""
        with Session(self._engine) as session:
            return self._artifact(session, owner, version).files

    def diff(self, owner: str, old: int, new: int) -> str:
        """The difference of two versions, as ``diff -u`` tells it; of what is too large, only that it differs."""
        before, after = (self.files(owner, version) for version in (old, new))
        lines, left = list[str](), _DIFF_PAIRS
        for name in sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
            was, is_ = (side.get(name, b"").decode(errors="replace").splitlines() for side in (before, after))
            left -= len(was) * len(is_)
            if left < 0:
                lines.append(f"Files {name}@{old} and {name}@{new} differ")
            else:
                lines += difflib.unified_diff(was, is_, f"{name}@{old}", f"{name}@{new}", lineterm="")
        return "\n".join(lines)

    def _environment(self, name: str | None) -> str:
        if name is not None and name not in self.environments:
            raise NotFoundError(f"there is no environment {name[:60]}: there are {', '.join(self.environments)}")
        return name or self.environments[0]

    @staticmethod
    def _trusted(session: Session, owner: str) -> TrustedKeys:
        """The owner's keys. Until the session ends, whoever changes them waits, and whoever freezes."""
        keys = session.get(OwnerKeys, owner, with_for_update=True)
        if keys is None:
            raise NotFoundError(f"{owner} has no keys here: the platform registers them by PUT /teams/{owner}/keys")
        return TrustedKeys.load(keys.pem.encode(), owner)

    def _still_signed(self, session: Session, artifact: Artifact) -> None:
        """Once a key is removed, only the platform can roll back to or promote packages that it signed."""
        package = session.get_one(Package, (artifact.owner, artifact.version))
        self._trusted(session, artifact.owner).verify(unpack(package.content), artifact.owner)

    @staticmethod
    def _not_frozen(session: Session, owner: str, environment: str) -> None:
        for frozen in session.scalars(
            select(Freeze).where(Freeze.scope.in_(["*", f"team:{owner}", f"environment:{environment}"]))
        ):
            raise FrozenError(f"{frozen.scope} is frozen since {frozen.at:%Y-%m-%d %H:%M}: {frozen.reason}")

    def _gate(self, artifact: Artifact, environment: str) -> None:
        if artifact.owner == PLATFORM:
            findings = check_platform(artifact.files, self._opa)
        else:
            with Session(self._engine) as session:
                platform = self._present(session, environment, PLATFORM)
            # The platform's own tests are run while the bundles are built, in what all teams have.
            findings = check_package(
                artifact.files, artifact.owner, merged(platform.files if platform else {}), self._opa
            )
        if findings:
            raise NotPublishableError(findings, artifact.files)

    def _release(self, environment: str, change: _Change) -> Published | Held:
        done = self._rebuild(environment, change)
        if isinstance(done, Held):
            return done
        return Published(change.artifact.owner, change.artifact.version, environment, *done)

    def _rebuild(self, environment: str, change: _Change | None) -> _Built | Held:
        """Build outside of the transaction, and commit if nobody else has built meanwhile; else build again.

        Without a change: if something else makes bundles than before. What needs an approval is held instead.
        """
        for _ in range(_ATTEMPTS):
            with self._building[environment]:
                before = self._before(environment)
                maker = made_by(self._builder.key, self._opa)
                if (change is None or before.has(change.artifact)) and (before.serial == 0 or before.made_by == maker):
                    return _Built(before.serial, [], None)
                # By the clock, so that clients take what a server builds whose database was lost.
                serial = max(before.serial + 1, int(time.time()))
                whole = self._whole(environment, before, change, serial, before.made_by != maker)
                if change is None or not self._wants_impact(environment, before, change):
                    if self._commit(environment, before.serial, serial, maker, whole, change):
                        self._changed()
                        return _Built(serial, sorted(whole.bundles), None)
                    continue
            # Others publish meanwhile: it may take long, also because somebody wants that.
            impact = self._comparing.impact(environment, before, change.artifact, whole, maker)
            if self._waits(change, impact):
                return self._hold(environment, change, impact)
            if self._commit(environment, before.serial, serial, maker, whole, change):
                self._changed()
                return _Built(serial, sorted(whole.bundles), impact)
        raise OutdatedError(f"others publish to {environment} all the time: try again")

    def _wants_impact(self, environment: str, before: InForce, change: _Change) -> bool:
        """Whether somebody wants to know the impact of a change, or it may have to wait."""
        is_asked = change.asker.impact or change.approval is not None
        return is_asked or self._comparing.may_wait(environment, before, change.artifact.owner)

    def _waits(self, change: _Change, impact: Impact) -> bool:
        """Whether a change has to be held; ``ApprovalError`` if another impact of it was approved."""
        if change.approval is not None:
            if impact.seen != change.approval.seen:
                raise approvals.look_again(self._engine, change.approval.id, impact)
            return False
        at_once = change.action == _ROLLBACK and change.asker.by_platform and self.rules.rollback_at_once
        return bool(impact.waits_for) and not at_once

    def _hold(self, environment: str, change: _Change, impact: Impact) -> Held:
        asker, artifact = change.asker, change.artifact
        row = HeldRelease(
            environment=environment, owner=artifact.owner, version=artifact.version, digest=artifact.digest,
            action=change.action, actor=asker.name[:200], person=asker.person[:200], by_platform=asker.by_platform,
            content=change.content,
        )  # fmt: skip
        approvals.keep_impact(row, impact)
        with Session(self._engine) as session:
            change.check(session)
            held = approvals.read(approvals.hold(session, row, self.rules.days))
            session.commit()
        return held

    def _before(self, environment: str) -> InForce:
        with Session(self._engine) as session:
            known = session.get(Environment, environment)
            in_force = self._current(session, environment)
            withheld = select(WithheldPackage.owner).where(WithheldPackage.environment == environment)
            kept_out = session.scalars(withheld).all()
        return InForce(known.serial if known else 0, known.made_by if known else "", in_force, kept_out)

    def _whole(self, environment: str, before: InForce, change: _Change | None, serial: int, everything: bool) -> Whole:
        teams = before.artifacts | ({change.artifact.owner: change.artifact} if change else {})
        platform = teams.pop(PLATFORM, None)
        fresh = change.artifact.owner if change else None
        only = None if everything or fresh is None or fresh == PLATFORM else {fresh}
        earlier = partial(self._earlier, environment)
        try:
            whole = self._builder.build(environment, platform, teams, serial, only, fresh, earlier)
        except CompileError as error:
            if change is None:
                raise
            place = root(change.artifact.owner)
            findings = [*of_opa("merged", error.problems, place, change.artifact.files)]
            if not findings:
                help_ = "see which rule it is; what is in force stays"
                if isinstance(error, StartError):
                    help_ = "have less data or fewer rules, or ask the platform team: all packages take too much"
                findings = [Finding("merged", place, 1, str(error)[:500], help_)]
            raise NotPublishableError(findings, change.artifact.files) from None
        # Going back is not held up: it may be what repairs them.
        if whole.failing and change is not None and change.action != _ROLLBACK:
            told = f"together with all teams, the platform's own tests fail: {whole.failing}"
            help_ = "ask the platform team which rule of yours they meet"
            finding = Finding("platform-tests", root(change.artifact.owner), 1, told, help_)
            raise NotPublishableError([finding], change.artifact.files)
        return whole

    def _commit(
        self, environment: str, before: int, serial: int, maker: str, whole: Whole, change: _Change | None
    ) -> bool:
        """All that belongs together, in one transaction; False if somebody else was faster."""
        with Session(self._engine) as session:
            if not _taken(session, environment, before, serial, maker):
                return False
            if change is not None:
                change.check(session)
                self._put_in_force(session, environment, serial, change)
            session.execute(delete(WithheldPackage).where(WithheldPackage.environment == environment))
            session.add_all(WithheldPackage(environment=environment, **held._asdict()) for held in whole.withheld)
            for name, content in whole.bundles.items():
                revision = str(manifest_of(content)["revision"])
                made = {"serial": serial, "revision": revision, "etag": etag(content), "content": content}
                session.merge(Bundle(name=name, environment=environment, signed_at=datetime.now(UTC), **made))
            session.commit()
        return True

    @staticmethod
    def _put_in_force(session: Session, environment: str, serial: int, change: _Change) -> None:
        artifact, actor, now = change.artifact, change.asker.name[:200], datetime.now(UTC)
        if change.content is not None:
            package = {"digest": artifact.digest, "content": change.content, "actor": actor, "at": now}
            session.add(Package(owner=artifact.owner, version=artifact.version, **package))
        approved_by = "" if change.approval is None else change.approval.actor[:200]
        said = {"action": change.action, "actor": actor, "at": now, "approved_by": approved_by}
        place = {"environment": environment, "owner": artifact.owner, "version": artifact.version}
        session.add(Release(**place, serial=serial, **said))
        approvals.in_force(session, environment, artifact.owner, actor, change.approval)

    def _earlier(self, environment: str, owner: str) -> list[Artifact]:
        """The versions that were in force before the present one, newest first."""
        released = select(Release.version).where(Release.environment == environment, Release.owner == owner)
        newest_first = released.group_by(Release.version).order_by(func.max(Release.id).desc())
        with Session(self._engine) as session:
            versions = session.scalars(newest_first.offset(1).limit(_EARLIER)).all()
            return [self._artifact(session, owner, version) for version in versions]

    def _current(self, session: Session, environment: str) -> dict[str, Artifact]:
        """The artifacts in force in an environment, by owner."""
        newest = select(func.max(Release.id)).where(Release.environment == environment).group_by(Release.owner)
        package = and_(Package.owner == Release.owner, Package.version == Release.version)
        found = select(Release.owner, Release.version, Package.digest).outerjoin(Package, package)
        rows = session.execute(found.where(Release.id.in_(newest))).all()
        current = {(row.owner, row.version, row.digest): self._artifact(session, *row) for row in rows}
        self._in_force[environment] = current
        return {owner: artifact for (owner, _, _), artifact in current.items()}

    def _present(self, session: Session, environment: str, owner: str) -> Artifact | None:
        """The artifact of one owner that is in force in an environment."""
        released = select(Release.version).where(Release.environment == environment, Release.owner == owner)
        version = session.scalar(released.order_by(Release.id.desc()).limit(1))
        return None if version is None else self._artifact(session, owner, version)

    def _artifact(self, session: Session, owner: str, version: int, digest: str | None = None) -> Artifact:
        if digest is None:
            digest = session.scalar(select(Package.digest).where(Package.owner == owner, Package.version == version))
        if digest is None:
            raise NotFoundError(f"there is no version {version} of {owner}")
        # By the digest too: a database that was restored may have another package under the same version.
        key = (owner, version, digest)
        known = (artifacts[key] for artifacts in list(self._in_force.values()) if key in artifacts)
        return next(known, None) or _unpacked(session, owner, version)


def _signed_long_ago() -> ColumnElement[bool]:
    return or_(Bundle.signed_at.is_(None), Bundle.signed_at < datetime.now(UTC) - timedelta(hours=SIGN_AGAIN_HOURS))


def _unpacked(session: Session, owner: str, version: int) -> Artifact:
    """It was verified when it came; its key may have been retired since."""
    files = unpack(session.get_one(Package, (owner, version)).content)
    return Artifact(owner, version, {name: text for name, text in files.items() if name.startswith(f"{root(owner)}/")})


def _newest(session: Session, artifact: Artifact) -> None:
    """``OutdatedError`` unless the version is above all others."""
    newest = session.scalar(select(func.max(Package.version)).where(Package.owner == artifact.owner)) or 0
    if artifact.version <= newest:
        raise OutdatedError(f"its version {artifact.version} is not above {newest}, which is published already")


def _taken(session: Session, environment: str, before: int, serial: int, maker: str) -> bool:
    """Take the next serial, if the one before is still what it was."""
    if before == 0:
        session.add(Environment(name=environment, serial=serial, made_by=maker))
        try:
            session.flush()
        except IntegrityError:
            return False
        return True
    taken = update(Environment).where(Environment.name == environment, Environment.serial == before)
    return session.execute(taken.values(serial=serial, made_by=maker)).rowcount == 1  # type: ignore[attr-defined, no-any-return]
