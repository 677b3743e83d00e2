"""An OPA server beside Airflow, as a deployment would run one."""

from __future__ import annotations

import socket
from pathlib import Path

from airflow_team_authz.opa.compile import find_opa
from demo.process import Process, environment

_START_SECONDS = 30


class Opa:
    """OPA on a unix socket in ``home``, serving ``policy`` and following its changes.

    ``policy`` is a complete policy directory (the shipped part included), or ``None`` for an OPA that knows nothing.
    """

    def __init__(self, home: Path, policy: Path | None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._socket = home / "opa.sock"
        self.url = f"unix://{self._socket}"
        command = [find_opa(), "run", "--server", "--skip-version-check", "--addr", self.url]
        if policy is not None:
            command += ["--watch", "--ignore", "*_test.rego", "--bundle", str(policy)]
        self._server = Process("The OPA server", command, home / "opa.log", environment(HOME=str(home)))

    @property
    def pid(self) -> int:
        """The process id; 0 if it does not run."""
        return self._server.pid

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._socket.unlink(missing_ok=True)
        self._server.start(self._listens, _START_SECONDS)

    def stop(self) -> None:
        """Stop it."""
        self._server.stop()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0
