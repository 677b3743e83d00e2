"""Both engines over the same policies: in this process, and a real OPA server on a unix socket."""

from __future__ import annotations

import atexit
import io
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before anything imports Airflow, which writes its configuration into its home.
_AIRFLOW_HOME = tempfile.mkdtemp(prefix="team-authz-tests-")
atexit.register(shutil.rmtree, _AIRFLOW_HOME, ignore_errors=True)
os.environ["AIRFLOW_HOME"] = os.environ.get("AIRFLOW_HOME", _AIRFLOW_HOME)

# The commands of this environment, as if it were activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

# Guarded as in a process that has the package installed and configured, before anything imports the routes.
from airflow.api_fastapi.core_api import security as users_security  # noqa: E402

from airflow_team_authz.doors import names, user_requests, wall  # noqa: E402

wall.guard(users_security)
names.guard(sys.modules["airflow.models.dag"])
from airflow.api_fastapi.core_api import app as users_app  # noqa: E402

user_requests.guard(users_app)
from airflow.api_fastapi.core_api.services.public import task_instances  # noqa: E402

wall.guard(task_instances)
from airflow.api_fastapi.execution_api import security  # noqa: E402

from airflow_team_authz.doors import tasks  # noqa: E402

tasks.guard(security)
from airflow.api_fastapi.execution_api import app  # noqa: E402
from airflow.api_fastapi.execution_api.routes import xcoms  # noqa: E402

tasks.guard(xcoms)
tasks.guard(app)
wall.install()

from airflow_team_authz.decision_log import DecisionLog  # noqa: E402
from airflow_team_authz.decision_log.levels import Levels  # noqa: E402
from airflow_team_authz.decision_log.record import Form  # noqa: E402
from airflow_team_authz.doors import decision_point  # noqa: E402


# This process has no database of its own to record decisions in; tests of that have.
def log_without_sinks() -> DecisionLog:
    """Tells of refusals in the standard log only."""
    return DecisionLog([], Levels("changes"), Form())


decision_point.open_log = lambda *_: log_without_sinks()

from airflow_team_authz.engines import DecisionPoint  # noqa: E402
from airflow_team_authz.engines.in_process import InProcess  # noqa: E402
from airflow_team_authz.engines.opa_server import OpaServer  # noqa: E402
from airflow_team_authz.opa.compile import (  # noqa: E402
    ENTRYPOINTS,
    compile_directory,
    find_opa,
    shipped_policies,
    write_derived,
)

REPOSITORY = Path(__file__).resolve().parents[1]


# What takes longest, so that it does not come last while the other process has nothing to do.
_LONG = ("running", "keycloak", "worlds", "properties", "server", "integration", "gate")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, the long directories come first."""
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: _LONG.index(item.path.parent.name) if item.path.parent.name in _LONG else len(_LONG)
        )


# Where tests of several files share servers that take long to start.
_TOGETHER = ("running", "keycloak", "worlds", "integration")


@pytest.hookimpl(optionalhook=True)  # for when tests run two at a time
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one file run in one process, and so do those of a directory that share their servers."""
    from xdist.scheduler import LoadScopeScheduling

    class ByDirectory(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            directory = file.rpartition("/")[0]
            return directory if directory.rpartition("/")[2] in _TOGETHER else file

    return ByDirectory(config, log)


# Two cores under load are no reason for a failing test; tests about deadlines set their own.
PATIENT_MS = 20_000


@dataclass
class Opa:
    """A real OPA server on a unix socket, with the policies of a directory or with none."""

    socket: Path
    policies: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it and wait until it listens; with ``policies`` changed, it comes up with other ones."""
        self.socket.unlink(missing_ok=True)
        bundle = [] if self.policies is None else ["--bundle", str(self.policies)]
        command = [find_opa(), "run", "--server", "--addr", self.url, "--skip-version-check", "--log-level", "error"]
        self.process = subprocess.Popen([*command, *bundle], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            assert time.monotonic() < end, "OPA does not come up"
            assert self.process.poll() is None, "OPA ended at once"
            time.sleep(0.02)

    def send(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)
        if number == signal.SIGSTOP:
            # It takes a moment to reach a thread on another processor, which may answer until then.
            threads = Path(f"/proc/{self.process.pid}/task")
            eventually(lambda: all(") T " in (thread / "stat").read_text() for thread in threads.iterdir()))

    def stop(self) -> None:
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None


@dataclass(frozen=True)
class Engines:
    """The same policy behind both engines, and its bundle."""

    in_process: DecisionPoint
    server: DecisionPoint
    bundle: Path

    def both(self) -> tuple[DecisionPoint, DecisionPoint]:
        return self.in_process, self.server


def merge(source: Path, staged: Path) -> Path:
    """What ``compile_directory`` compiles of a site's policy directory, as a directory for an OPA server."""
    shutil.copytree(source, staged, ignore=shutil.ignore_patterns("*_test.rego", "schemas", "capabilities.json"))
    shutil.rmtree(staged / "airflow" / "authz", ignore_errors=True)
    for part in ("airflow/authz", "airflow/roles"):
        if not (staged / part).exists():
            shutil.copytree(shipped_policies() / part, staged / part, ignore=shutil.ignore_patterns("*_test.rego"))
    write_derived(staged)
    return staged


@pytest.fixture(scope="session")
def open_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Engines]]:
    """Both engines over a policy directory; closed at the end of the session."""
    opened: list[tuple[Engines, Opa]] = []

    def open_(source: Path) -> Engines:
        place = tmp_path_factory.mktemp("engines")
        bundle = place / "bundle.tar.gz"
        compile_directory(source, bundle)
        opa = Opa(place / "opa.sock", merge(source, place / "merged"))
        opa.start()
        server = DecisionPoint(OpaServer(opa.url, PATIENT_MS))
        engines = Engines(DecisionPoint(InProcess(bundle)), server, bundle)
        opened.append((engines, opa))
        return engines

    yield open_
    for engines, opa in opened:
        for engine in engines.both():
            engine.close()
        opa.stop()


@pytest.fixture(scope="session")
def example(open_engines: Callable[[Path], Engines]) -> Engines:
    """Both engines over the repository's policies, with the example site and teams."""
    return open_engines(REPOSITORY / "policies")


@pytest.fixture(params=["in process", "server"])
def engine(request: pytest.FixtureRequest, example: Engines) -> DecisionPoint:
    """Each of the two engines over the repository's policies."""
    return example.in_process if request.param == "in process" else example.server


@pytest.fixture
def opa(tmp_path: Path) -> Iterator[Opa]:
    """A real OPA server, not started yet."""
    server = Opa(tmp_path / "opa.sock")
    yield server
    server.stop()


def write(root: Path, files: dict[str, str]) -> Path:
    """A directory with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Makes a site's policy directory of these files; called again, it changes some of them."""
    return lambda files: write(tmp_path / "policy", files)


@contextmanager
def opened(source: Path) -> Iterator[DecisionPoint]:
    """The in-process engine over a bundle or a policy directory."""
    decisions = DecisionPoint(InProcess(source))
    try:
        yield decisions
    finally:
        decisions.close()


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.02)


@contextmanager
def forked(answer: Callable[[], object]) -> Iterator[Callable[[], Any]]:
    """A child of this process, which gives an answer each time that it is asked, or the error that comes of it."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def serve() -> None:
        while there.recv():
            try:
                there.send(answer())
            except Exception as error:
                there.send(error)

    child = context.Process(target=serve, daemon=True)
    child.start()

    def ask() -> Any:
        here.send(True)
        assert here.poll(60), "the child does not answer"
        return here.recv()

    try:
        yield ask
        here.send(False)
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def build(rego: str, entrypoints: tuple[str, ...] = ENTRYPOINTS) -> bytes:
    """The Wasm bundle of a policy that has nothing to do with the shipped one."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), {"policy.rego": rego})
        named = [argument for entrypoint in entrypoints for argument in ("--entrypoint", entrypoint)]
        subprocess.run([find_opa(), "build", "--target", "wasm", *named, "policy.rego"], cwd=place, check=True)
        return (Path(place) / "bundle.tar.gz").read_bytes()


def unpack(bundle: Path) -> dict[str, bytes]:
    with tarfile.open(bundle) as archive:
        files = {member.name.lstrip("/"): archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file is not None}


def pack(files: dict[str, bytes], **header: object) -> bytes:
    """A bundle of these files, with these values in the header of policy.wasm."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            for attribute, value in {"size": len(content), **(header if name == "policy.wasm" else {})}.items():
                setattr(member, attribute, value)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def restore(path: Path, content: bytes, older: int = 0) -> None:
    """Replaces a file's content and sets its time back to what it was or before, as `cp -p` does."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - older))
