"""Held releases: changes that wait until somebody else has approved them (four eyes)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, defer

from airflow_team_authz.bundles.artifact import PLATFORM
from airflow_team_authz.review.selectors import FORM, Selector, SelectorError, parse
from airflow_team_authz.server import ServerError
from airflow_team_authz.server.access import LONGEST_NAME, Caller, is_usable, issued_name, token_name
from airflow_team_authz.server.database import HeldRelease, OwnerKeys
from airflow_team_authz.server.impact import Impact

WAITING, APPROVED, REFUSED, REPLACED, EXPIRED = "waiting", "approved", "refused", "replaced", "expired"
_CHANGE = "change"
_LISTED = 500
# What lists do not read.
_LARGE = defer(HeldRelease.impact), defer(HeldRelease.content)


class ApprovalError(ServerError):
    """It cannot be approved, or not any more; the message says why."""


class FourEyesError(ServerError):
    """Whoever wants to approve is not somebody else."""


class NotAnApproverError(ServerError):
    """Whoever wants to approve is not among those whom the server's setting names."""


class Waits(NamedTuple):
    """How many changes wait for an approval; for how long the first of them has, and the time until one expires."""

    number: int
    oldest_seconds: float | None
    expiry_seconds: float | None


class Rules(NamedTuple):
    """What waits for an approval: the kinds of differences, and the owners each of whose changes waits.

    ``environments``: only there; ``None`` for all. ``days``: until a held release expires. ``seconds``: how long the
    impact may be computed. ``rollback_at_once``: a rollback by the platform waits for nobody. ``approvers``: the only
    callers who approve, by their names; ``None`` for every caller of the platform.
    """

    kinds: tuple[Selector, ...] = ()
    owners: tuple[Selector, ...] = ()
    environments: frozenset[str] | None = None
    days: int = 7
    seconds: float = 45
    rollback_at_once: bool = False
    approvers: frozenset[str] | None = None

    def approver(self, actor: str) -> None:
        """Raise ``NotAnApproverError`` unless this caller may approve, as far as the setting goes."""
        if self.approvers is not None and actor not in self.approvers:
            raise NotAnApproverError(f"{actor} may not approve: the server's --approver does not name it")

    def whom_to_ask(self, publisher: str) -> str:
        """Who may approve what this caller has published, in words."""
        if self.approvers is None:
            return f"a platform token of another person than {publisher}"
        others = sorted(self.approvers - {publisher})
        if not others:
            return "nobody: --approver names no other caller"
        return f"{' or '.join(others)}, if that is another person than {publisher}"

    def of(self, environment: str, owner: str, is_alone: bool) -> Rules:
        """Those that may hold a change of this owner's package there. ``is_alone``: it decides about its own alone."""
        if self.environments is not None and environment not in self.environments:
            return self._replace(kinds=(), owners=())
        kinds = tuple(rule for rule in self.kinds if rule.concerns(owner)) if is_alone else self.kinds
        if owner == PLATFORM:
            return self._replace(kinds=kinds, owners=tuple(rule for rule in self.owners if "owner" not in rule.values))
        return self._replace(kinds=kinds, owners=tuple(rule for rule in self.owners if rule.concerns(owner)))


def read_rules(texts: Sequence[str]) -> Rules:
    """Rules as people write them: a selector, or ``change`` for every change. Raises ``SelectorError``."""
    kinds, owners = list[Selector](), list[Selector]()
    for text in texts:
        word, colon, rest = text.partition(":")
        if word != _CHANGE:
            kinds.append(_with_hint(text))
            continue
        rule = parse(f"any{colon}{rest}")._replace(text=text)
        if rule.values.keys() - {"owner"}:
            raise SelectorError(f"{text[:200]!r}: only an owner goes with {_CHANGE}, such as {_CHANGE}:owner=alpha")
        owners.append(rule)
    return Rules(tuple(kinds), tuple(owners))


def read_approvers(texts: Sequence[str], issuer: str | None) -> frozenset[str]:
    """Names of callers, of ids of tokens and ``sub:NAME`` for people of the issuer. Raises ``ServerError``."""
    return frozenset(_approver(text, issuer) for text in texts)


def _approver(text: str, issuer: str | None) -> str:
    if re.fullmatch(r"[0-9a-f]{12}", text):
        return token_name(text)
    word, _, name = text.partition(":")
    if word != "sub" or not name:
        raise ServerError(f"{text[:200]!r} is neither the id of a token, such as 5f0c2b7a9e11, nor sub: and a name")
    if issuer is None:
        raise ServerError(f"{text[:200]!r}: only with --oidc-issuer there are people")
    if len(found := issued_name(name, issuer)) >= LONGEST_NAME:
        raise ServerError(f"{text[:200]!r} is too long to tell it from others")
    return found


def _with_hint(text: str) -> Selector:
    try:
        return parse(text)
    except SelectorError as error:
        raise SelectorError(f"{error}. Or write {_CHANGE} for every change" if FORM in str(error) else error) from None


class Approval(NamedTuple):
    """Who approves which held release, and the impact that they have seen."""

    id: int
    seen: str
    actor: str
    person: str


class Held(NamedTuple):
    """A held release, as it was read."""

    id: int
    environment: str
    owner: str
    version: int
    digest: str
    action: str
    actor: str
    at: datetime
    expires_at: datetime
    state: str
    decided_by: str
    decided_at: datetime | None
    reason: str
    seen: str
    waits_for: list[str]
    impact: Impact | None


def hold(session: Session, row: HeldRelease, days: int) -> HeldRelease:
    """Keep a change until it is approved. It takes the place of the owner's last one; the same one stays what it is."""
    # Whoever else holds or puts in force something of this owner waits.
    session.get(OwnerKeys, row.owner, with_for_update=True)
    now = datetime.now(UTC)
    present = session.scalar(select(HeldRelease).where(HeldRelease.waiting == _place(row.environment, row.owner)))
    if present is not None:
        same = all(getattr(present, name) == getattr(row, name) for name in ("version", "digest", "action", "content"))
        if same and present.expires_at > now:
            present.impact, present.seen, present.waits_for = row.impact, row.seen, row.waits_for
            return present
        _close_for(present, row.actor)
        session.flush()
    row.waiting, row.state, row.at = _place(row.environment, row.owner), WAITING, now
    row.expires_at = now + timedelta(days=days)
    session.add(row)
    session.flush()
    return row


def in_force(session: Session, environment: str, owner: str, actor: str, approval: Approval | None) -> None:
    """Something of this owner comes into force: by this approval, or in the place of what waits there.

    Inside of the transaction that puts it in force. Raises ``ApprovalError`` and ``FourEyesError``.
    """
    if approval is not None:
        row = waiting(session, approval.id, lock=True)
        seen(row, approval)
        four_eyes(session, row, approval.person, approval.actor)
        _close(row, APPROVED, approval.actor, "")
        return
    place = select(HeldRelease).where(HeldRelease.waiting == _place(environment, owner)).with_for_update()
    for row in session.scalars(place):
        _close_for(row, actor)


def waiting(session: Session, id_: int, lock: bool = False) -> HeldRelease:
    """One that can still be decided about; ``ApprovalError`` if it was decided, or has expired."""
    row = session.get(HeldRelease, id_, with_for_update=lock or None, populate_existing=lock)
    if row is None:
        raise ApprovalError(f"there is no held release {id_}")
    state = _state(row)
    if state == EXPIRED:
        raise ApprovalError(f"it has expired at {row.expires_at:%Y-%m-%d %H:%M} UTC: let {row.actor} publish again")
    if state != WAITING:
        raise ApprovalError(f"it was {state} by {row.decided_by}: `team-authz server approvals list` shows what waits")
    return row


def four_eyes(session: Session, row: HeldRelease, person: str, actor: str) -> None:
    """``FourEyesError`` unless somebody else approves, as far as can be known; both have to be usable still."""
    if person == row.person or actor == row.actor:
        whose = "the token that published it" if actor == row.actor else "a token of the same origin"
        raise FourEyesError(
            f"{actor} is {whose}: another person has to approve, with a token that "
            "`team-authz server token create --platform` made, or one of the issuer"
        )
    if not is_usable(session, actor):
        raise FourEyesError(f"{actor} is not usable any more")
    if not is_usable(session, row.actor, or_over=True):
        raise ApprovalError(f"{row.actor}, which published it, was revoked: refuse it, and let the owner publish again")


def seen(row: HeldRelease, approval: Approval) -> None:
    """``ApprovalError`` unless what was approved is the present impact of a held release."""
    if row.seen != approval.seen:
        raise _changed()


def look_again(engine: Engine, id_: int, impact: Impact) -> ApprovalError:
    """Keep the present impact of a held release. Answers the error for whoever has approved another one."""
    with Session(engine) as session:
        row = waiting(session, id_, lock=True)
        keep_impact(row, impact)
        session.commit()
    return _changed()


def _changed() -> ApprovalError:
    return ApprovalError("its impact is another one than you have seen, since something else has changed: look again")


def refuse(engine: Engine, id_: int, actor: str, reason: str) -> Held:
    """Nobody can approve it any more."""
    with Session(engine) as session:
        row = waiting(session, id_, lock=True)
        _close(row, REFUSED, actor, reason)
        told = read(row)
        session.commit()
    return told


def find(engine: Engine, who: Caller, id_: int) -> Held | None:
    """A held release, if there is one that the caller may see."""
    with Session(engine) as session:
        row = session.get(HeldRelease, id_)
        return read(row) if row is not None and _may_see(who, row.owner) else None


def listed(engine: Engine, who: Caller, decided: bool = False) -> list[Held]:
    """The held releases that the caller may see, newest first: those that wait, or all."""
    wanted = select(HeldRelease).order_by(HeldRelease.id.desc())
    if not decided:
        wanted = wanted.where(HeldRelease.waiting.is_not(None), HeldRelease.expires_at > datetime.now(UTC))
    if who.kind != "platform":
        wanted = wanted.where(HeldRelease.owner.in_(who.team_ids))
    with Session(engine) as session:
        rows = session.scalars(wanted.limit(_LISTED).options(*_LARGE))
        return [read(row, whole=False) for row in rows if _may_see(who, row.owner)]


def waits(engine: Engine) -> Waits:
    """What waits now."""
    now = datetime.now(UTC)
    wanted = select(func.count(), func.min(HeldRelease.at), func.min(HeldRelease.expires_at)).where(
        HeldRelease.waiting.is_not(None), HeldRelease.expires_at > now
    )
    with Session(engine) as session:
        count, oldest, expiry = session.execute(wanted).one()
    if not count:
        return Waits(0, None, None)
    return Waits(count, max((now - oldest).total_seconds(), 0), (expiry - now).total_seconds())


def of_owner(session: Session, owner: str) -> list[Held]:
    """All of an owner, newest first."""
    rows = select(HeldRelease).where(HeldRelease.owner == owner).order_by(HeldRelease.id.desc()).limit(_LISTED)
    return [read(row, whole=False) for row in session.scalars(rows.options(*_LARGE))]


def keep_impact(row: HeldRelease, impact: Impact) -> None:
    """Write an impact into a row."""
    row.impact, row.seen = msgspec.json.encode(impact).decode(), impact.seen
    row.waits_for = msgspec.json.encode(impact.waits_for).decode()


def _may_see(who: Caller, owner: str) -> bool:
    # The platform's own part is not a team's, whatever a claim names.
    return who.owns(owner) and (who.kind == "platform" or owner != PLATFORM)


def _place(environment: str, owner: str) -> str:
    return f"{environment}/{owner}"


def _close(row: HeldRelease, state: str, by: str, reason: str) -> None:
    row.state, row.decided_by, row.decided_at, row.reason = state, by[:200], datetime.now(UTC), reason
    # What is in force is in the table of packages; nothing else needs it.
    row.waiting, row.content = None, None


def _close_for(row: HeldRelease, actor: str) -> None:
    """Something newer of the same owner is there."""
    is_over = _state(row) == EXPIRED
    _close(row, EXPIRED if is_over else REPLACED, "" if is_over else actor, "")


def _state(row: HeldRelease) -> str:
    return EXPIRED if row.state == WAITING and row.expires_at <= datetime.now(UTC) else row.state


def read(row: HeldRelease, whole: bool = True) -> Held:
    """What a row says; ``whole``: with its impact, which may be large."""
    impact = msgspec.json.decode(row.impact, type=Impact) if whole else None
    return Held(
        row.id, row.environment, row.owner, row.version, row.digest, row.action, row.actor, row.at, row.expires_at,
        _state(row), row.decided_by, row.decided_at, row.reason, row.seen, msgspec.json.decode(row.waits_for), impact,
    )  # fmt: skip
