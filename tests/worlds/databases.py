"""Where the worlds' databases are: files of SQLite, or databases of a PostgreSQL server."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from sqlalchemy import create_engine, text

from tests.support.postgres import Postgres

# What Airflow counts itself goes on here, in both worlds.
_NEXT_NUMBER = 100_000


class Databases:
    """One database for each world, and a copy of each as it was in the beginning."""

    def url(self, world: str) -> str:
        """SQLAlchemy's address."""
        raise NotImplementedError

    def copy(self, source: str, target: str) -> None:
        """Make one database as another is."""
        raise NotImplementedError

    def start(self) -> None:
        """Before anybody connects."""

    def stop(self) -> None:
        """After that."""

    def keep(self, world: str) -> None:
        """Remember how it is now."""
        self.copy(world, f"{world}_kept")

    def restore(self, world: str) -> None:
        """Set back to how it was, also while an Airflow is connected."""
        self.copy(f"{world}_kept", world)


class SqliteFiles(Databases):
    """In a directory."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def url(self, world: str) -> str:
        return f"sqlite:///{self._home / world}.db"

    def copy(self, source: str, target: str) -> None:
        paths = (self._home / f"{source}.db", self._home / f"{target}.db")
        old, new = (sqlite3.connect(path, timeout=60) for path in paths)
        with old, new:
            old.backup(new)
        old.close()
        new.close()


class PostgresDatabases(Databases):
    """In a server of its own."""

    def __init__(self, home: Path) -> None:
        self._server = Postgres(home / "postgres")

    def url(self, world: str) -> str:
        return self._server.url.removesuffix("/postgres") + f"/{world}"

    def start(self) -> None:
        self._server.start()
        engine = create_engine(self._server.url)
        with engine.connect() as connection:
            made = connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = 'without_alpha'"))
        engine.dispose()
        if not made:
            self._do("CREATE DATABASE without_alpha")

    def stop(self) -> None:
        self._server.stop()

    def copy(self, source: str, target: str) -> None:
        if target.endswith("_kept"):
            self._count_on(source)
        self._do(f"DROP DATABASE IF EXISTS {target} WITH (FORCE)", f"CREATE DATABASE {target} TEMPLATE {source}")

    def _count_on(self, world: str) -> None:
        """Rows came with their numbers, which the server has not counted."""
        engine = create_engine(self.url(world))
        with engine.begin() as connection:
            for (name,) in connection.execute(text("SELECT sequencename FROM pg_sequences")).all():
                connection.execute(text(f"SELECT setval('\"{name}\"', {_NEXT_NUMBER})"))
        engine.dispose()

    def _do(self, *statements: str) -> None:
        engine = create_engine(self._server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()


def copy_logs(source: Path, target: Path) -> None:
    """The tasks' logs, which are files."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
