"""A PostgreSQL of Debian's package, with a database of its own, on a socket and loopback."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from demo.airflow import free_port
from demo.process import Process, environment

_PASSWORD = "only-for-this-test"  # noqa: S105 - of a database that lives as long as the test
_START_SECONDS = 60


def programs() -> Path | None:
    """Where `initdb` and `postgres` are: Debian keeps those of each version off PATH."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "pg_isready").exists()]
    return max(versions, default=None, key=lambda path: int(path.parent.name))


class Postgres:
    """A server with its files in ``home``; as root it runs as the user `postgres`, since it refuses to be root."""

    def __init__(self, home: Path) -> None:
        where = programs()
        assert where is not None
        self._programs, self._home, self._port = where, home, free_port()
        self._as: list[str] = []
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            self._as = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        self.url = f"postgresql+psycopg2://airflow:{_PASSWORD}@127.0.0.1:{self._port}/postgres"
        home.mkdir(parents=True, exist_ok=True)
        if self._as:
            os.chown(home, owner.pw_uid, owner.pw_gid)
            # pytest's directories are the user's own, and this is another user.
            for directory in (home, *home.parents):
                if directory.stat().st_uid == 0 and directory != Path("/"):
                    directory.chmod(directory.stat().st_mode | 0o011)
        command = [str(where / "postgres"), "-D", str(home / "data"), "-p", str(self._port), "-k", str(home)]
        log = home.with_suffix(".log")
        self._server = Process("PostgreSQL", [*self._as, *command, "-h", "127.0.0.1"], log, environment(HOME=str(home)))

    def processor_seconds(self) -> float:
        """What its processes have taken: those that run, to the nanosecond, and those that have ended."""
        pid = self._server.pid
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds = sum(map(int, stat[13:15])) / os.sysconf("SC_CLK_TCK")
        for process in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
            with suppress(FileNotFoundError):
                seconds += int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
        return seconds

    def start(self) -> None:
        if not (self._home / "data").exists():
            self._make()
        self._server.start(self._answers, _START_SECONDS)

    def _make(self) -> None:
        password = self._home / "password"
        password.write_text(_PASSWORD)
        password.chmod(0o644)
        made = ["-D", str(self._home / "data"), "-U", "airflow", f"--pwfile={password}", "--auth=scram-sha-256"]
        subprocess.run(
            [*self._as, str(self._programs / "initdb"), *made], check=True, capture_output=True, cwd=self._home
        )

    def stop(self) -> None:
        # Asked politely, it would wait until everybody has gone.
        if self._server.pid:
            os.kill(self._server.pid, signal.SIGINT)
        self._server.stop()

    def _answers(self) -> bool:
        asked = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0
