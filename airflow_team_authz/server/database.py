"""The server's tables, in SQLite or PostgreSQL. The migrations beside this file make them."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import DateTime, TypeDecorator

from airflow_team_authz.server import ServerError

_BUSY_SECONDS = 15
_GONE_SECONDS = 5
_IDLE_SECONDS = 30
# Any number, the same in all servers: migrations of PostgreSQL wait for each other by it.
_MIGRATION_LOCK = 7_205_759
# A pattern for what PostgreSQL keeps.
TEXT = r"^[^\x00]*$"


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, also where the database does not keep the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """See the base class."""
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(column_0_label)s"})
    type_annotation_map = {datetime: Moment, dict[str, Any]: JSON, int: BigInteger}  # noqa: RUF012 - SQLAlchemy's


class OwnerKeys(Base):
    """The public keys of a team, or of the platform, that sign its artifacts: one, or two while one is replaced."""

    __tablename__ = "owner_keys"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    pem: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]


class Package(Base):
    """An artifact that has passed the gate, as it came. Never changed, never deleted."""

    __tablename__ = "package"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(12))
    content: Mapped[bytes] = mapped_column(LargeBinary)
    actor: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]


class Release(Base):
    """Which version of an owner's package an environment has from then on. The newest counts; rows are only added."""

    __tablename__ = "release"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(64), index=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[int]
    serial: Mapped[int]
    action: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]
    approved_by: Mapped[str] = mapped_column(String(200), server_default="", default="")


class HeldRelease(Base):
    """A change that waits for an approval, or once did. ``waiting``: environment and owner as long as it does.

    ``person`` is who stands behind ``actor``, see ``access.Caller``. ``content``: the artifact, if it is not among the
    packages yet. ``impact`` is JSON of an ``impact.Impact``; ``seen`` and ``waits_for`` are its own.
    """

    __tablename__ = "held_release"
    __table_args__ = (UniqueConstraint("waiting", name="uq_held_release_waiting"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(12))
    action: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(200))
    person: Mapped[str] = mapped_column(String(200))
    by_platform: Mapped[bool]
    content: Mapped[bytes | None] = mapped_column(LargeBinary)
    impact: Mapped[str] = mapped_column(Text)
    seen: Mapped[str] = mapped_column(String(32))
    waits_for: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime]
    expires_at: Mapped[datetime]
    waiting: Mapped[str | None] = mapped_column(String(140))
    state: Mapped[str] = mapped_column(String(16))
    decided_by: Mapped[str] = mapped_column(String(200), default="")
    decided_at: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(String(500), default="")


class Environment(Base):
    """The serial of an environment's newest bundles, and by which key, shipped policy and OPA all were made."""

    __tablename__ = "environment"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    serial: Mapped[int]
    made_by: Mapped[str] = mapped_column(String(120), server_default="")


class WithheldPackage(Base):
    """See ``building.Withheld``."""

    __tablename__ = "withheld"
    environment: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    instead: Mapped[int]
    why: Mapped[str] = mapped_column(String(500))


class Bundle(Base):
    """A bundle as it is handed out."""

    __tablename__ = "bundle"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    environment: Mapped[str] = mapped_column(String(64))
    serial: Mapped[int]
    revision: Mapped[str] = mapped_column(String(64))
    etag: Mapped[str] = mapped_column(String(80))
    content: Mapped[bytes] = mapped_column(LargeBinary)
    signed_at: Mapped[datetime | None]


class Token(Base):
    """A token of a caller. The table stores only a hash of the secret."""

    __tablename__ = "token"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    team_id: Mapped[str | None] = mapped_column(String(64))
    bundle: Mapped[str | None] = mapped_column(String(200))
    # Who asked the server for it; empty if it was made in the database.
    made_by: Mapped[str] = mapped_column(String(200), server_default="", default="")
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class Freeze(Base):
    """A freeze of ``*``, ``team:<id>`` or ``environment:<name>``."""

    __tablename__ = "freeze"
    scope: Mapped[str] = mapped_column(String(80), primary_key=True)
    reason: Mapped[str] = mapped_column(String(500))
    actor: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]


class Client(Base):
    """An OPA or an Airflow process, and what it said last.

    ``reporter`` is whose token it used, ``bundle`` the only bundle that this token fetches. A client's id is its own
    word, so it counts only together with the reporter.
    """

    __tablename__ = "client"
    __table_args__ = (UniqueConstraint("reporter", "id", name="uq_client_reporter_id"),)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    reporter: Mapped[str] = mapped_column(String(200))
    id: Mapped[str] = mapped_column(String(200))
    bundle: Mapped[str | None] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(100))
    version: Mapped[str] = mapped_column(String(40))
    bundles: Mapped[dict[str, Any]]
    seen_at: Mapped[datetime]


class Decision(Base):
    """A record of a decision log, see ``decision_log.tables``: by whose token it came, and which record it belongs to.

    ``related`` is the id of an OPA server's own record of the same question.
    """

    __tablename__ = "decision"
    __table_args__ = (
        UniqueConstraint("reporter", "decision_id", name="uq_decision_reporter_decision_id"),
        Index("ix_decision_decision_id", "decision_id"),
        Index("ix_decision_related", "related"),
        Index("ix_decision_decided_at", "decided_at"),
        Index("ix_decision_subject", "subject", "decided_at"),
    )
    number: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    decision_id: Mapped[str] = mapped_column(String(64))
    reporter: Mapped[str] = mapped_column(String(200))
    related: Mapped[str] = mapped_column(String(64))
    decided_at: Mapped[datetime]
    outcome: Mapped[str] = mapped_column(String(10))
    subject: Mapped[str] = mapped_column(String(250))
    action: Mapped[str] = mapped_column(String(250))
    type: Mapped[str] = mapped_column(String(50))
    resource: Mapped[str] = mapped_column(String(250))
    teams: Mapped[str] = mapped_column(String(500))
    record: Mapped[str] = mapped_column(Text)


class UnfitDatabaseError(ServerError):
    """The address of the database cannot be used; the message says why."""


def connect(url: str) -> Engine:
    """The database at an address such as ``sqlite:///bundles.db`` or ``postgresql+psycopg2://user@host/name``."""
    # A host that is gone does not refuse: without these a thread would wait for it for many minutes.
    patience = {
        "connect_timeout": _GONE_SECONDS, "tcp_user_timeout": _GONE_SECONDS * 1000,
        "keepalives_idle": _GONE_SECONDS, "keepalives_interval": 1, "keepalives_count": _GONE_SECONDS,
    }  # fmt: skip
    try:
        address = make_url(url)
        arguments = patience if address.get_driver_name() in {"psycopg", "psycopg2"} else {}
        engine = create_engine(address, pool_pre_ping=True, connect_args=arguments)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        # Not the address itself: it may hold a password.
        raise UnfitDatabaseError(f"the database's address cannot be used: {error.__class__.__name__}") from None
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _prepare_postgresql)
    if engine.driver == "psycopg2":
        from psycopg2.extensions import set_wait_callback  # type: ignore[import-untyped]

        set_wait_callback(_wait)
    if engine.dialect.name == "sqlite":
        _make_private(address.database)
        event.listen(engine, "connect", _prepare_sqlite)
        # Writing from the start: two that read first and write then would refuse each other.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _make_private(file: str | None) -> None:
    """Make the database's file readable for this user only. SQLite reports a file that cannot be created."""
    if file and file != ":memory:" and not file.startswith("file:"):
        with suppress(OSError):
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))


def _wait(connection: Any) -> None:
    """For psycopg2's answers, which it would do for ever while PostgreSQL's process is stopped."""
    from psycopg2 import OperationalError  # type: ignore[import-untyped]
    from psycopg2.extensions import POLL_OK, POLL_READ

    while (state := connection.poll()) != POLL_OK:
        wanted = select.POLLIN if state == POLL_READ else select.POLLOUT
        waiting = select.poll()
        waiting.register(connection.fileno(), wanted)
        if not waiting.poll(_GONE_SECONDS * 1000):
            raise OperationalError("timeout expired")


def _prepare_postgresql(connection: Any, _: object) -> None:
    # What nobody waits for any more, such as of a server that was stopped, is not to hold up others.
    for setting, seconds in (
        ("statement_timeout", _GONE_SECONDS),
        ("idle_in_transaction_session_timeout", _IDLE_SECONDS),
    ):
        connection.cursor().execute(f"SET {setting} = '{seconds}s'")
    connection.commit()


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver must not begin transactions by itself.
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = FULL", f"busy_timeout = {_BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {setting}")


def migrate(engine: Engine) -> None:
    """Bring the tables up to date; servers that start at once wait for each other."""
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
