"""One decision, lists, and many teams: through the auth manager, beside a bare socket and SimpleAuthManager."""

from __future__ import annotations

import socket
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import msgspec

from benchmarks.harness import (
    BY_KIND,
    TEAM,
    Rows,
    compare,
    compiled,
    manager_with,
    op_of_team1,
    opa_server,
    opa_servers,
    simple_manager,
    write_policies,
)

_ABOUT_A_DAG = {
    "subject": {"type": "user", "id": "bob", "team_ids": ["team1"], "roles": ["op"]},
    "action": "read",
    "resource": {"type": "dag", "team_id": "team2", "id": "dag_2"},
}
_LIST_GOALS = {1_000: 2_000, 10_000: 20_000, 100_000: 200_000}


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """One decision, lists, and many teams."""
    rounds: int = options.rounds
    yield from one_decision(home, rounds)
    yield from lists(home)
    yield from team_counts(home, rounds // 4)


def peers(home: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """One decision, and a list of 1,000 Dags, beside everybody who can be asked the same."""
    yield from one_decision(home, rounds, with_others=True)
    yield from _lists(home / "list", (1_000,), BY_KIND, "", with_others=True)


def one_decision(home: Path, rounds: int, with_others: bool = False) -> Iterator[dict[str, Any]]:
    """May an op read a connection of the own team? Asked of the auth managers, and of OPA by a bare socket."""
    from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails

    policies = write_policies(home / "one", teams=100)
    with opa_server(policies) as address:
        question = {
            "subject": {"type": "user", "id": "bob", "team_ids": ["team1"], "roles": ["op"]},
            "action": "read",
            "resource": {"type": "connection", "team_id": "team1", "id": "pg"},
        }

        def through(manager: Any, again: bool = False, user: Any = None) -> Callable[[], None]:
            user, number = user or op_of_team1(), count()

            def ask() -> None:
                details = ConnectionDetails(conn_id="pg" if again else f"pg{next(number)}", team_name="team1")
                if manager.is_authorized_connection(method="GET", user=user, details=details) is not True:
                    raise AssertionError("an op may read a connection of the own team")

            return ask

        bundle = compiled(policies)
        in_process = manager_with(policy=bundle)
        contestants = {
            "OPA by a bare unix socket": bare_socket(address, question),
            "in process, through the auth manager": through(in_process),
            "the same asked again": through(in_process, again=True),
            "OPA server, through the auth manager": through(manager_with(opa_url=f"unix://{address}")),
            "SimpleAuthManager alone": through(simple_manager()),
        }
        if with_others:
            contestants["FabAuthManager alone, without teams"] = through(*_fab())
            contestants[PER_ITEM] = _by_http(address, question)
            contestants |= _other_wasm(bundle, question)
        yield from compare(
            "one decision",
            contestants,
            rounds,
            {
                "in process, through the auth manager": "0.5 or less",
                "OPA server, through the auth manager": "1.5 or less",
            },
        )


PER_ITEM = "an HTTP question per item, by httpx"


def _fab() -> tuple[Any, bool, Any]:
    """FAB's manager, and an op among its people."""
    from airflow.providers.fab.auth_manager import models
    from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager

    allowed = [
        models.Permission(action=models.Action(name=action), resource=models.Resource(name=resource))
        for action in ("can_create", "can_read", "can_edit", "can_delete")
        for resource in ("Connections", "DAGs", "Pools", "Variables")
    ]
    return FabAuthManager(), False, models.User(username="bob", roles=[models.Role(name="Op", permissions=allowed)])


def _by_http(address: str, question: dict[str, Any], items: int = 1) -> Callable[[], None]:
    """As auth managers for OPA ask that have no lists: one request for each item, over a kept connection."""
    client = httpx.Client(transport=httpx.HTTPTransport(uds=address), base_url="http://opa")

    def ask() -> None:
        for _ in range(items):
            answer = client.post("/v1/data/airflow/authz/decision", json={"input": question})
            if "allow" not in answer.json()["result"]:
                raise AssertionError("OPA does not decide")

    return ask


def _other_wasm(bundle: Path, question: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """Another package that runs OPA's Wasm, if somebody has installed it: `pip install opa-py-wasm`."""
    if find_spec("opapywasm") is None:
        return {}
    from opapywasm import OpaWasmPolicy, PolicyConfig

    from airflow_team_authz.opa.archive import unpack

    files = unpack(bundle.read_bytes())
    policy = OpaWasmPolicy.from_wasm_bytes(files["policy.wasm"], PolicyConfig())
    policy.set_data(files["data.json"].decode())

    def ask() -> None:
        if policy.evaluate(question, "airflow/authz/decision")["allow"] is not True:
            raise AssertionError("an op may read a connection of the own team")

    return {"opa-py-wasm alone": ask}


def lists(home: Path) -> Iterator[dict[str, Any]]:
    """Which of many Dags over 50 teams may an op of one team read? With rules that look at ids, and without."""
    yield from _lists(home / "lists", (1_000, 10_000, 100_000), BY_KIND, "")
    yield from _lists(home / "looking", (10_000,), TEAM, ", where all rules look at ids")


def _lists(
    policies: Path, sizes: tuple[int, ...], rules: str, which: str, with_others: bool = False
) -> Iterator[dict[str, Any]]:
    bundle = compiled(write_policies(policies, 50, rules))
    ops = (op_of_team1(f"bob{number}") for number in count())
    with opa_server(policies) as address:
        in_process = manager_with(policy=bundle)
        managers = {
            "in process": in_process,
            "OPA server": manager_with(opa_url=f"unix://{address}"),
            "SimpleAuthManager alone": simple_manager(),
        }
        for size in sizes:
            rows = Rows([(f"dag_{number}", f"team{number % 50}") for number in range(size)])

            def ask(manager: Any, user: Any = None, rows: Rows = rows, expected: int = size // 50) -> None:
                if len(manager.get_authorized_dag_ids(user=user or next(ops), session=rows)) != expected:
                    raise AssertionError("an op may read the Dags of the own team only")

            contestants = {name: (lambda manager=manager, ask=ask: ask(manager)) for name, manager in managers.items()}
            contestants["in process, asked again"] = lambda ask=ask: ask(in_process, op_of_team1())
            if with_others:
                contestants[PER_ITEM] = _by_http(address, _ABOUT_A_DAG, size)
            goal = {} if which else {"in process": f"below {_LIST_GOALS[size]:,} µs"}
            yield from compare(
                f"a list of {size:,} Dags over 50 teams{which}", contestants, 20 if size < 100_000 else 5, goal
            )


def team_counts(home: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """The same decision among 10, 100 and 1,000 teams that each have a package."""
    from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails

    user = op_of_team1()
    names = (f"pg{number}" for number in count())
    for engine in ("in process", "OPA server"):
        with opa_servers(
            [write_policies(home / f"{engine}{teams}", teams=teams) for teams in (10, 100, 1_000)]
        ) as served:
            contestants = {}
            for teams, (policies, address) in zip((10, 100, 1_000), served, strict=True):
                manager = (
                    manager_with(policy=compiled(policies))
                    if engine == "in process"
                    else manager_with(opa_url=f"unix://{address}")
                )
                contestants[f"{teams:,} teams"] = lambda manager=manager: manager.is_authorized_connection(
                    method="GET", user=user, details=ConnectionDetails(conn_id=next(names), team_name="team1")
                )
            yield from compare(
                f"one decision among many teams, {engine}", contestants, rounds, {"1,000 teams": "1.2 or less"}
            )


def bare_socket(address: str, question: dict[str, Any]) -> Callable[[], None]:
    """The least that a client can do: one prepared request over a kept connection, the answer not even parsed."""
    body = msgspec.json.encode({"input": question})
    head = b"POST /v1/data/airflow/authz/decision HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    plain = socket.socket(socket.AF_UNIX)
    plain.connect(address)

    def ask() -> None:
        plain.sendall(request)
        if b'"allow":true' not in plain.recv(65536):
            raise AssertionError("an op may read a connection of the own team")

    return ask
