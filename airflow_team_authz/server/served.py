"""Serves the bundles from memory, also while the database is gone, and lets clients wait for the next one."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from airflow_team_authz.escaping import logger
from airflow_team_authz.server.database import Bundle

log = logger(__name__)

# What another server process has published is seen after this time.
LOOK_SECONDS = 0.25
# A publisher waits at most so long for the bundle to be served: the database may go meanwhile.
_CATCH_UP_SECONDS = 5.0
_GONE = "the database cannot be read: bundles are served from memory, and nothing can be published"


class ServedBundle(NamedTuple):
    """A bundle: its ETag, its bytes, and which revision and serial it is."""

    etag: str
    content: bytes
    revision: str
    serial: int


class Served:
    """All bundles by name. Of the event loop, except ``look``."""

    def __init__(self, engine: Engine, places: int) -> None:
        self._engine, self._places = engine, places
        self._bundles: dict[str, ServedBundle] = {}
        self._changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._now = asyncio.Event()
        self.trouble = "the database was not read yet"

    def get(self, name: str) -> ServedBundle | None:
        """A bundle, if there is one of this name."""
        return self._bundles.get(name)

    def names(self) -> dict[str, ServedBundle]:
        """All of them."""
        return dict(self._bundles)

    async def changed_from(self, name: str, etags: set[str], seconds: float) -> ServedBundle | None:
        """The bundle as soon as its ETag is none of these; after the time, whatever there is.

        Who waits costs neither a thread nor a question to the database.
        """
        end = time.monotonic() + seconds
        while (held := self._bundles.get(name)) and held.etag in etags and (left := end - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed[name].wait(), left)
        return held

    async def caught_up(self, name: str, serial: int) -> None:
        """Wait until the bundle that is served has this serial or a later one: its publisher may ask for it next."""
        end = time.monotonic() + _CATCH_UP_SECONDS
        while ((held := self._bundles.get(name)) is None or held.serial < serial) and (
            left := end - time.monotonic()
        ) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed[name].wait(), left)

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Whether there is a place to wait for a bundle; as long as it is held."""
        free = self._places > 0
        self._places -= free
        try:
            yield free
        finally:
            self._places += free

    def look_now(self) -> None:
        """Look at once: something was published here."""
        self._now.set()

    async def keep_looking(self) -> None:
        """Take over what is published, here or by other servers, until cancelled."""
        while True:
            try:
                fresh = await asyncio.to_thread(self._look)
                self.trouble = ""
            except Exception as error:  # whatever the driver raises: what is in memory goes on being served
                if self.trouble != _GONE:
                    log.error("%s: %s", _GONE, type(error).__name__)
                self.trouble = _GONE
                fresh = {}
            self._bundles |= fresh
            for name in fresh:
                self._changed.pop(name, asyncio.Event()).set()
            try:
                await asyncio.wait_for(self._now.wait(), LOOK_SECONDS)
                self._now.clear()
            except TimeoutError:
                pass

    def _look(self) -> dict[str, ServedBundle]:
        with Session(self._engine) as session:
            etags = {name: etag for name, etag in session.execute(select(Bundle.name, Bundle.etag))}  # noqa: C416 - rows
            news = [
                name for name, etag in etags.items() if name not in self._bundles or self._bundles[name].etag != etag
            ]
            rows = session.scalars(select(Bundle).where(Bundle.name.in_(news))).all()
            return {row.name: ServedBundle(row.etag, row.content, row.revision, row.serial) for row in rows}
