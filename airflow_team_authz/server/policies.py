"""The policies of the environments in this process: the Wasm that Airflow's processes fetch, by the same interface."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from airflow_team_authz.bundles.aggregate import WASM, wasm_bundle
from airflow_team_authz.engines import DecisionPoint, Reply
from airflow_team_authz.engines.instances import Instances
from airflow_team_authz.opa.archive import unpack
from airflow_team_authz.opa.wasm import Policy, compiled
from airflow_team_authz.server import ServerError
from airflow_team_authz.server.served import ServedBundle


class NoPolicyError(ServerError):
    """No policy is in force that could decide."""


class Policies:
    """A decision point for each environment that has a policy. Thread-safe."""

    def __init__(self, environments: Sequence[str]) -> None:
        self.environments = tuple(environments)
        self._lock = threading.Lock()
        self._points: dict[str, tuple[str, DecisionPoint]] = {}
        self._held: dict[str, ServedBundle] = {}

    def with_bundles(self, held: Mapping[str, ServedBundle]) -> Policies:
        """The same, now with these bundles."""
        names = map(wasm_bundle, self.environments)
        self._held = {name: held[name] for name in names if name in held}
        return self

    def all(self) -> list[DecisionPoint]:
        """Those of all environments. Raises ``NoPolicyError`` and ``EngineError``."""
        if not (held := self._held):
            raise NoPolicyError(
                "there is no policy yet that could say who may see decisions: publish the platform's part"
            )
        return [self._point(name, bundle) for name, bundle in held.items()]

    def of(self, environment: str) -> DecisionPoint:
        """That of one environment. Raises ``NoPolicyError`` and ``EngineError``."""
        name = wasm_bundle(environment)
        if (bundle := self._held.get(name)) is None:
            raise NoPolicyError(f"{environment} has no policy yet: publish the platform's part")
        return self._point(name, bundle)

    def _point(self, name: str, bundle: ServedBundle) -> DecisionPoint:
        with self._lock:
            if name not in self._points or self._points[name][0] != bundle.etag:
                self._points[name] = (bundle.etag, point_of(bundle.content, bundle.revision))
            return self._points[name][1]


class _Engine:
    """An ``Engine`` over a bundle of this server's own making."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._instances = policy, Instances(policy)

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1, pace: float | None = None) -> Reply:
        """See ``engines.Engine``."""
        machine, fit = self._instances.take(), False
        try:
            value = machine.evaluate(entrypoint, question, self._policy.fuel(question, size, teams, pace))
            fit = True
        finally:
            self._instances.give(machine) if fit else self._instances.discard()
        return Reply(value, self._policy.revision)

    def close(self) -> None:
        """See ``engines.Engine``."""


def point_of(content: bytes, revision: str) -> DecisionPoint:
    """A decision point over a bundle of this server's own making. Raises an ``EngineError``."""
    files = unpack(content)
    return DecisionPoint(_Engine(compiled(files[WASM], files.get("data.json", b"{}"), revision, quick=True)))
