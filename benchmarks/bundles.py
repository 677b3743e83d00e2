"""What policy bundles cost: from publishing to enforcing, many teams, many waiting OPAs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from airflow_team_authz.bundles.aggregate import WASM, build
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import DecisionPoint, Engine
from airflow_team_authz.engines.in_process import load_bundle
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.gate.platform_part import read_platform
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.opa.archive import unpack
from airflow_team_authz.opa.compile import compile_directory, find_opa, shipped_policies
from airflow_team_authz.opa.wasm import trouble_at_start
from benchmarks.harness import write_files

PUBLISHED_TEAMS = 200
MANY_TEAMS = 1_000
SIZES = (10, 100, MANY_TEAMS, 3_000)
BUILDING, STARTING = "building the bundles when one team has changed", "OPA from start to its first answer"
GOALS = {BUILDING: "below 2 s", STARTING: "below 1 s"}
PUBLISHES = 20
CLIENTS = 500
REAL = 3
PROCESSES = 8
COMMAND = (sys.executable, "-m", "airflow_team_authz.cli")
_TICK = os.sysconf("SC_CLK_TCK")

Row = dict[str, Any]


def comparisons(home: Path, _: Namespace) -> Iterator[Row]:
    """All of them, in rows that the main program shows."""
    # It is asked from its start on whether an OPA answers already.
    logging.getLogger("airflow_team_authz").setLevel(logging.CRITICAL)
    yield from sizes(home)
    for teams in (PUBLISHED_TEAMS, MANY_TEAMS):
        place = home / f"{teams} teams"
        place.mkdir()
        with serving(place, teams) as server:
            yield from publishes(server, teams)
            if teams == PUBLISHED_TEAMS:
                yield from waiting(server)


def package(number: int, version: int = 1) -> Artifact:
    """A team's package with a rule, data and a test; the version is in the reason."""
    team = f"team_{number}"
    rego = f"""package teams.{team}

allow contains "version {version}" if {{
	input.resource.type == "connection"
	input.resource.id in data.teams.{team}.lent
}}
"""
    test = f"""package teams.{team}_test

import data.teams.{team}

test_lent if {{
	reasons := {team}.allow with input as {{"resource": {{"type": "connection", "id": "pg"}}}}
	count(reasons) == 1
}}
"""
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"lent": {"type": "array", "items": {"type": "string"}}},
    }
    place = f"teams/{team}"
    files = {
        f"{place}/{team}.rego": rego.encode(),
        f"{place}/{team}_test.rego": test.encode(),
        f"{place}/data.json": b'{"lent": ["pg"]}',
        f"{place}/schema.json": json.dumps(schema).encode(),
    }
    return Artifact(team, version, files)


def platform() -> Artifact:
    return Artifact(PLATFORM, 1, read_platform(shipped_policies()))


def row(comparison: str, what: str, seconds: float, first: float, goal: str = "") -> Row:
    return {"comparison": comparison, "what": what, "value": seconds * 1e6, "ratio": seconds / first, "goal": goal}


def sizes(home: Path) -> Iterator[Row]:
    """What each step of a change takes, with more and more teams."""
    measured = {teams: _steps(home / str(teams), teams) for teams in SIZES}
    for step, (first, _) in measured[SIZES[0]].items():
        for teams, taken in measured.items():
            seconds, note = taken[step]
            goal = GOALS.get(step, "") if teams == MANY_TEAMS else ""
            yield row(step, f"{teams:,} teams{note}", seconds, first, goal)


def _steps(home: Path, teams: int) -> dict[str, tuple[float, str]]:
    """Seconds for each step, and a note."""
    home.mkdir()
    key = SigningKey.new()
    (home / "trusted.pub").write_bytes(key.public.pem())
    packages = {artifact.owner: artifact for artifact in map(package, range(teams))}
    bundles = build("production", platform(), packages, 1, key, only=set())
    built, tried, loaded = [], [], []
    for version in (2, 3, 4):
        packages["team_1"] = package(1, version)
        began = time.perf_counter()
        bundles = build("production", platform(), packages, version, key, only={"team_1"})
        built.append(time.perf_counter() - began)
        for name, content in bundles.items():
            (home / f"{name}.tar.gz").write_bytes(content)
        kept, files = home / "state" / "compiled", unpack(bundles["production.wasm"])
        before = _processor_seconds()
        if trouble := trouble_at_start(files[WASM], files["data.json"], quick=True, kept=kept):
            raise SystemExit(trouble)
        tried.append(_processor_seconds() - before)
        trust = Trust(home / "trusted.pub", "production.wasm")
        # The first time takes what a process loads only once: modules, and the keys' library.
        for _ in range(2):
            before = _processor_seconds()
            load_bundle(home / "production.wasm.tar.gz", trust, quick=True, kept_code=kept)
            took = _processor_seconds() - before
        loaded.append(took)
    for artifact in packages.values():
        write_files(home / "directory", artifact.files)
    before = _processor_seconds()
    compile_directory(home / "directory", home / "directory.tar.gz")
    directory = _processor_seconds() - before
    started, memory = zip(*(cold_start(home) for _ in range(3)), strict=True)
    return {
        BUILDING: (statistics.median(built), ""),
        "trying a downloaded bundle, once for a host, of a processor": (statistics.median(tried), ""),
        "loading it then, in each process, of a processor": (statistics.median(loaded), ""),
        "building the bundle of a directory, once for a host, of a processor": (directory, ""),
        STARTING: (statistics.median(started), f", {statistics.median(memory):.0f} MB"),
    }


def _processor_seconds() -> float:
    """Of this process, and of all that it has started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def cold_start(home: Path) -> tuple[float, float]:
    """Seconds from starting an OPA with the bundle to its first answer, and its memory in MB then."""
    address = home / "cold.sock"
    address.unlink(missing_ok=True)
    command = [find_opa(), "run", "--server", "--addr", f"unix://{address}", "--skip-version-check", "--skip-verify"]
    began = time.perf_counter()
    opa = subprocess.Popen([*command, "--bundle", str(home / "production.tar.gz")], stderr=subprocess.DEVNULL)
    try:
        engine = OpaServer(f"unix://{address}", deadline_ms=5_000)
        while version_of(engine, "team_1") is None:
            time.sleep(0.002)
        return time.perf_counter() - began, resident(opa.pid)
    finally:
        opa.kill()
        opa.wait()


def resident(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


# Prints when another version is in force.
_WATCH = """
import sys, time
from pathlib import Path
from airflow_team_authz.engines.choice import open_engine
from airflow_team_authz.settings import Settings
from benchmarks.bundles import version_of
url, home = sys.argv[1], Path(sys.argv[2])
keys, token = home / "trusted.pub", home / "token"
settings = Settings(policy=url, policy_keys_file=keys, policy_token_file=token, state=home / "state")
engine = open_engine(settings)
seen = None
while True:
    version = version_of(engine, "team_7")
    if version != seen:
        print(time.time_ns(), flush=True)
        seen = version
    time.sleep(0.01)
"""


@contextmanager
def processes_of_a_host(server: Server) -> Iterator[list[subprocess.Popen[str]]]:
    """They take the policy from the server, and share a state, as those of an Airflow do."""
    command = [sys.executable, "-c", _WATCH, f"{server.url}/bundles/production.wasm", str(server.home)]
    watching = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    try:
        for process in watching:
            _moment(process)
        yield watching
    finally:
        for process in watching:
            process.kill()
            process.wait()


def _moment(process: subprocess.Popen[str]) -> int:
    """When it tells of another version, in nanoseconds of ``time.time_ns``."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def version_of(engine: Engine, team_id: str) -> object:
    """Which version of a team's package an engine has in force; ``None`` if it decides nothing."""
    question = Evaluations(Subject("user", "gus"), "read", [Resource("connection", team_id, "pg")])
    try:
        (decision,) = DecisionPoint(engine).decide(question).decisions
    except EngineError:
        return None
    return decision.team_version


class Server:
    """A bundle server whose database has all teams in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key, self.team_key = SigningKey.new(), SigningKey.new()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.tokens: dict[str, str] = {}
        self.pid = 0
        # One for all requests: making one takes 20 ms.
        self.client = httpx.Client(base_url=self.url, timeout=120)

    def put(self, artifact: Artifact) -> httpx.Response:
        place = "platform" if artifact.owner == PLATFORM else f"teams/{artifact.owner}"
        return self.client.put(
            f"/{place}/package",
            content=build_artifact(artifact, self.team_key),
            headers={"Authorization": f"Bearer {self.tokens['platform']}"},
        )

    def processor_seconds(self) -> float:
        """What the server has used so far, without the programs that it has started."""
        parts = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / _TICK


@contextmanager
def serving(home: Path, teams: int) -> Iterator[Server]:
    from sqlalchemy.orm import Session

    from airflow_team_authz.server import access
    from airflow_team_authz.server.database import OwnerKeys, Package, Release, connect, migrate

    server = Server(home)
    (home / "signing").write_bytes(server.key.pem())
    (home / "trusted.pub").write_bytes(server.key.public.pem())
    engine = connect(f"sqlite:///{home}/server.db")
    migrate(engine)
    now = datetime.now(UTC)
    with Session(engine) as session:
        for kind in (access.PLATFORM, access.READER):
            server.tokens[kind] = access.issue(session, kind, 1).secret
        pem = server.team_key.public.pem().decode()
        session.add(OwnerKeys(owner=PLATFORM, pem=pem, actor="benchmark", at=now))
        for number in range(teams):
            artifact = package(number)
            content = build_artifact(artifact, server.team_key)
            said = {"owner": artifact.owner, "version": 1, "actor": "benchmark", "at": now}
            session.add(OwnerKeys(owner=artifact.owner, pem=pem, actor="benchmark", at=now))
            session.add(Package(**said, digest=artifact.digest, content=content))
            session.add(Release(**said, environment="production", serial=0, action="publish"))
        session.commit()
    (home / "token").write_text(server.tokens[access.READER])
    command = [*COMMAND, "server", "run", "--database", f"sqlite:///{home}/server.db", "--port", str(server.port)]
    with (home / "server.log").open("wb") as log:
        running = subprocess.Popen([*command, "--signing-key", str(home / "signing")], stdout=log, stderr=log)
    try:
        server.pid = running.pid
        while not answers(server.url):
            time.sleep(0.05)
        server.put(platform()).raise_for_status()
        yield server
    finally:
        running.terminate()
        running.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


def publishes(server: Server, teams: int) -> Iterator[Row]:
    """From the request that publishes until each engine decides by it."""
    last = f"the last of {PROCESSES} processes of a host"
    taken: dict[str, list[float]] = {"the server's answer": [], "OPA server": [], "the first process": [], last: []}
    with downloading_opa(server, "publishes") as opa, processes_of_a_host(server) as watching:
        for version in range(2, PUBLISHES + 2):
            # Nobody publishes once a second all day: what the last one has left to do is done by then.
            time.sleep(5)
            with ThreadPoolExecutor(1) as pool:
                began = time.time_ns()
                seen = pool.submit(wait_for, opa, version)
                server.put(package(7, version)).raise_for_status()
                answered = time.time_ns()
                moments = sorted(map(_moment, watching))
                for name, moment in zip(taken, (answered, seen.result(), moments[0], moments[-1]), strict=True):
                    taken[name].append((moment - began) / 1e9)
    title = f"from publishing to enforcing, {teams:,} teams, {PUBLISHES} times"
    first = statistics.median(taken["the server's answer"])
    for name, seconds in taken.items():
        goal = "below 1 s" if name in ("OPA server", last) else ""
        yield row(title, f"{name}, p50", statistics.median(seconds), first)
        yield row(title, f"{name}, p95", statistics.quantiles(seconds, n=20)[-1], first, goal)


@contextmanager
def downloading_opa(server: Server, name: str) -> Iterator[OpaServer]:
    """A real OPA that takes its bundle from the server, as `bundles/opa.yaml` has it; with a bundle in force."""
    keys = [*COMMAND, "keys", "show", str(server.home / "trusted.pub"), "--opa"]
    configuration = (Path(__file__).resolve().parents[1] / "bundles" / "opa.yaml").read_text()
    shown = subprocess.run(keys, capture_output=True, text=True, check=True).stdout
    place = server.home / name
    place.mkdir()
    (place / "opa.yaml").write_text(configuration + shown)
    known = {"BUNDLE_SERVER_URL": server.url, "BUNDLE_TOKEN_FILE": str(server.home / "token"), "HOST_NAME": name}
    address = f"unix://{place}/opa.sock"
    command = [find_opa(), "run", "--server", "--config-file", str(place / "opa.yaml"), "--addr", address]
    opa = subprocess.Popen(
        [*command, "--skip-version-check"], env=os.environ | known, cwd=place, stderr=subprocess.DEVNULL
    )
    try:
        engine = OpaServer(address, 5_000)
        while version_of(engine, "team_1") is None:
            time.sleep(0.02)
        yield engine
    finally:
        opa.terminate()
        opa.wait()


def wait_for(engine: Engine, version: int, team_id: str = "team_7") -> int:
    """When an engine has a team's version in force, in nanoseconds of ``time.time_ns``."""
    end = time.monotonic() + 30
    while version_of(engine, team_id) != version:
        if time.monotonic() > end:
            raise SystemExit(f"version {version} of {team_id} was not in force after 30 seconds.")
        time.sleep(0.01)
    return time.time_ns()


def waiting(server: Server) -> Iterator[Row]:
    """Many OPAs that wait at one server, as OPA's protocol has it; and what asking for nothing new costs."""
    url = f"{server.url}/bundles/production"
    headers = {"Authorization": f"Bearer {server.tokens['reader']}"}
    etag = httpx.get(url, headers=headers).headers["ETag"]
    with httpx.Client(headers=headers | {"If-None-Match": etag}) as client:
        used, began = server.processor_seconds(), time.perf_counter()
        for _ in range(2_000):
            assert client.get(url).status_code == 304
        unchanged = (time.perf_counter() - began) / 2_000
        of_server = (server.processor_seconds() - used) / 2_000
    yield row("a question that finds nothing new", "until the answer", unchanged, unchanged)
    yield row("a question that finds nothing new", "processor time of the server", of_server, unchanged)
    with ExitStack() as stack:
        real = [stack.enter_context(downloading_opa(server, f"waiting {number}")) for number in range(REAL)]
        idle, arrived, enforced, busy = asyncio.run(wait_together(server, etag, real))
    title = f"{CLIENTS} waiting OPAs: from publishing to each having the bundle"
    spread = sorted(arrived)
    yield row(title, "the first", spread[0], spread[0])
    yield row(title, "the median", statistics.median(spread), spread[0])
    yield row(title, "the last", spread[-1], spread[0])
    yield row(title, f"the last of {REAL} real OPAs among them, by its decisions", max(enforced), spread[0])
    yield row(title, "processor time of the server, publishing included", busy, spread[0])
    yield row(title, "processor time in a second of waiting", idle, spread[0])


async def wait_together(
    server: Server, etag: str, real: list[OpaServer]
) -> tuple[float, list[float], list[float], float]:
    """Seconds of the server's processor in one second of waiting, seconds until each client has the bundle and until
    each real OPA decides by it, and the server's processor seconds for all that.
    """
    request = (
        f"GET /bundles/production HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.tokens['reader']}\r\n"
        f"If-None-Match: {etag}\r\nPrefer: modes=snapshot,delta;wait=60\r\n\r\n"
    ).encode()

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
        await reader.readexactly(length)
        writer.close()
        return time.time_ns()

    clients = [asyncio.create_task(one()) for _ in range(CLIENTS - REAL)]
    await asyncio.sleep(3)
    used = server.processor_seconds()
    await asyncio.sleep(5)
    idle = (server.processor_seconds() - used) / 5
    used, began = server.processor_seconds(), time.time_ns()
    put = asyncio.to_thread(server.put, package(9, 2))
    deciding = [asyncio.to_thread(wait_for, engine, 2, "team_9") for engine in real]
    answer, enforced, done = await asyncio.gather(put, asyncio.gather(*deciding), asyncio.gather(*clients))
    answer.raise_for_status()
    waited = [[(moment - began) / 1e9 for moment in moments] for moments in (done, enforced)]
    return idle, waited[0], waited[1], server.processor_seconds() - used
