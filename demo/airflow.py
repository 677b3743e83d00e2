"""An Airflow of its own: a home in a directory, a database, an API server. The integration tests use it too."""

from __future__ import annotations

import base64
import configparser
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

import httpx

from demo.process import Process, StartError, environment

Settings = Mapping[str, Mapping[str, str]]

_START_SECONDS = 300
_COMMAND_SECONDS = 300
_REQUEST_SECONDS = 30
# Importing Airflow takes two seconds of each process.
_COMMANDS = """
import json, sys
from airflow.__main__ import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["airflow", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


class Airflow:
    """Airflow in ``home``, configured by ``settings`` (section → key → value) and nothing of the caller's.

    ``python`` is the interpreter of the virtual environment that Airflow is taken from; ``components`` are what runs
    besides the API server, by what its health is called, with the arguments of `airflow`; ``variables`` are added to
    their environment. ``workers``: processes of the API server.
    """

    def __init__(
        self,
        home: Path,
        settings: Settings,
        python: Path = Path(sys.executable),
        components: Mapping[str, Sequence[str]] = MappingProxyType({}),
        variables: Mapping[str, str] = MappingProxyType({}),
        workers: int = 1,
    ) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._python = str(python)
        self._env = environment(AIRFLOW_HOME=str(home), HOME=str(home), **variables)
        home.mkdir(parents=True, exist_ok=True)
        write_configuration(home / "airflow.cfg", _with_basics(home, self.url, settings))
        command = [self._python, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(self.port)]
        log = home / "api-server.log"
        self._server = Process("The Airflow API server", [*command, "--workers", str(workers)], log, self._env)
        self._components = {
            name: Process(
                f"The Airflow {name}", [self._python, "-m", "airflow", *arguments], home / f"{name}.log", self._env
            )
            for name, arguments in components.items()
        }

    @property
    def pid(self) -> int:
        """The process id of the API server; 0 if it does not run."""
        return self._server.pid

    def run(self, *arguments: str) -> str:
        """Output of an ``airflow`` command; ``StartError`` with what it printed if it fails."""
        done = self.attempt("-m", "airflow", *arguments)
        if done.returncode != 0:
            raise StartError(f"`airflow {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def run_all(self, *commands: Sequence[str]) -> None:
        """Run several ``airflow`` commands in one process; ``StartError`` with all that was printed if one fails."""
        done = self.attempt("-c", _COMMANDS, json.dumps(commands))
        if done.returncode != 0:
            told = "; ".join(" ".join(words) for words in commands)
            raise StartError(f"one of the commands of `airflow` failed ({told}):\n{done.stdout}{done.stderr}")

    def attempt(self, *arguments: str, seconds: int = _COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run this Airflow's Python with ``arguments``, whatever comes of it, for so many seconds at most."""
        return subprocess.run(
            [self._python, *arguments], env=self._env, cwd=self.home, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip

    def program(self, name: str, *arguments: str) -> Process:
        """This Airflow's Python with ``arguments``, for the caller to start and to stop."""
        log = self.home / f"{name.replace(' ', '-')}.log"
        return Process(name, [self._python, *arguments], log, self._env)

    def start(self) -> None:
        """Start the API server and what runs besides, and wait until all of it is well."""
        self._server.start(self._answers, _START_SECONDS)
        for component in self._components.values():
            component.start(lambda: True, _START_SECONDS)
        for name, component in self._components.items():
            component.wait(lambda name=name: self.health(name) == "healthy", _START_SECONDS)  # type: ignore[misc]

    def stop(self) -> None:
        """Stop everything."""
        for component in self._components.values():
            component.stop()
        self._server.stop()

    def log(self, component: str | None = None) -> str:
        """What the API server, or a component, has printed so far."""
        process = self._server if component is None else self._components[component]
        return process.log.read_text(errors="replace")

    def health(self, component: str) -> str:
        """``healthy``, or not: as the API server says of a component."""
        with self.client() as client:
            return str(client.get("/api/v2/monitor/health").json().get(component, {}).get("status"))

    def client(self, token: str | None = None) -> httpx.Client:
        """An HTTP client of the API server, with a bearer token or without."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # The server closes a connection after five idle seconds: let go of it before, or a request may meet the end.
        limits = httpx.Limits(keepalive_expiry=2)
        return httpx.Client(
            base_url=self.url, headers=headers, trust_env=False, timeout=_REQUEST_SECONDS, limits=limits
        )

    def login(self, username: str, password: str) -> httpx.Client:
        """A client that is logged in by the login manager's token route."""
        with self.client() as client:
            answer = client.post("/auth/token", json={"username": username, "password": password})
        if answer.status_code != 201:
            raise StartError(f"{username} cannot log in: HTTP {answer.status_code} {answer.text}")
        return self.client(str(answer.json()["access_token"]))

    def __enter__(self) -> Airflow:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return client.get("/api/v2/version").status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_configuration(path: Path, settings: Settings) -> None:
    """Write an ``airflow.cfg``."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    for section, values in settings.items():
        parser[section] = {key: value.replace("%", "%%") for key, value in values.items()}
    with path.open("w") as file:
        parser.write(file)
    path.chmod(0o600)


def _with_basics(home: Path, url: str, settings: Settings) -> dict[str, dict[str, str]]:
    """What any Airflow has to be told, and what keeps this one small and quiet; ``settings`` go before it."""
    basics = {
        "core": {
            "load_examples": "False",
            "fernet_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "dags_folder": str(home / "dags"),
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home}/airflow.db"},
        "api": {"base_url": url, "secret_key": secrets.token_hex(32)},
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "logging": {"base_log_folder": str(home / "logs"), "colored_console_log": "False"},
        "usage_data_collection": {"enabled": "False"},
    }
    return merged(basics, settings)


def merged(*parts: Settings) -> dict[str, dict[str, str]]:
    """Settings put together; a later part goes before an earlier one."""
    whole: dict[str, dict[str, str]] = {}
    for part in parts:
        for section, values in part.items():
            whole.setdefault(section, {}).update(values)
    return whole
