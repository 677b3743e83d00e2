"""Tests of connections that write the connection if they succeed: it must still be whose it was when that was asked.

A person asks for such a test, a worker runs it later, and Airflow then writes whatever row has that name meanwhile.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import requests

log = logger(__name__)

_COMMIT = "commit_to_connection_table"


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: the method that writes the connection looks at its owner first."""
    tests: Any = module
    test = tests.ConnectionTestRequest
    commit = getattr(test, _COMMIT)
    if commit.__module__ == __name__:
        return

    def commit_if_same_owner(self: Any, *, session: Any) -> None:
        if _is_of_its_team(self, session):
            commit(self, session=session)
            return
        self.state = tests.ConnectionTestState.FAILED
        self.result_message = (
            f"The test has succeeded, but the connection is not written: there is one named {self.connection_id!r} by "
            f"now that does not belong to {_whose(self.team_name)}. Use another name."
        )
        log.warning("the tested connection %r is not written: it has another owner by now", self.connection_id)

    setattr(test, _COMMIT, commit_if_same_owner)


def _is_of_its_team(test: Any, session: Any) -> bool:
    from airflow.models import Connection
    from sqlalchemy import select

    # Locked until the row is written: nobody gives it away in between.
    owner = select(Connection.team_name).where(Connection.conn_id == test.connection_id).with_for_update()
    with requests.unfiltered():
        row = session.execute(owner).one_or_none()
    return row is None or row.team_name == test.team_name


def _whose(team_id: str | None) -> str:
    return "all teams" if team_id is None else f"team {team_id}"
