"""A program that publishes an artifact and dies just before its n-th statement or commit, and says how it ended.

Each line that it reads is such an n. It ends well if there are not so many.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sqlalchemy import event

from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.server import releases
from airflow_team_authz.server.database import connect


def publish(database: str, key: bytes, artifact: bytes, last: int) -> None:
    engine = connect(database)
    left = iter(range(last - 1))

    def step(*_: object) -> None:
        if next(left, None) is None:
            os._exit(1)

    event.listen(engine, "before_cursor_execute", step)
    event.listen(engine, "commit", step)
    # It takes most of the time, and says nothing to the database.
    releases.check_package = lambda *_: []
    publishing = releases.Releases(engine, SigningKey.load(key, "the test"), ["production"], None, lambda: None)
    publishing.publish("alpha", artifact, "production", releases.Asker("a test", "a test"))
    os._exit(0)


def main(database: str, key: str, artifact: str) -> None:
    read = [Path(name).read_bytes() for name in (key, artifact)]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            publish(database, *read, int(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


main(*sys.argv[1:])
