"""Compares what an environment has in force with what a change would put there, and says what has to wait."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.aggregate import wasm_bundle
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import EngineError
from airflow_team_authz.opa.archive import BundleRefusedError
from airflow_team_authz.opa.compile import CompileError
from airflow_team_authz.server.approvals import Rules
from airflow_team_authz.server.building import Builder, Whole, etag
from airflow_team_authz.server.database import Bundle
from airflow_team_authz.server.impact import Impact, Sides, impact_of, unknown
from airflow_team_authz.server.policies import point_of

log = logger(__name__)

# How many decision points are kept: each has the policy of all teams.
_KEPT_POINTS = 2
# Rules that may look into teams' packages: by their path, or by one that is computed. A word of a comment may be one.
_INTO_TEAMS = re.compile(rb"\bteams\b|\bdata\b(?!\s*\.)")


class InForce(NamedTuple):
    """What an environment has: its serial (0: no bundles yet), what made all its bundles, packages by owner, and whose
    of them are not in the bundles.
    """

    serial: int
    made_by: str
    artifacts: dict[str, Artifact]
    withheld: Collection[str]

    def has(self, artifact: Artifact) -> bool:
        """Whether there is nothing to change."""
        return self.artifacts.get(artifact.owner) == artifact and artifact.owner not in self.withheld

    def decides_alone(self, owner: str) -> bool:
        """Whether a package decides about its owner's resources alone.

        A team's does by the shipped policy, as long as the platform's own rules do not look into teams' packages.
        """
        platform = self.artifacts.get(PLATFORM)
        rules = [text for name, text in platform.files.items() if name.endswith(".rego")] if platform else []
        return owner != PLATFORM and not any(map(_INTO_TEAMS.search, rules))


class Comparing:
    """Computes impacts. Thread-safe."""

    def __init__(self, engine: Engine, builder: Builder, rules: Rules) -> None:
        """``rules``: what waits for an approval."""
        self._engine, self._builder, self._rules = engine, builder, rules
        # Decision points over the newest bundles, by ETag.
        self._points: dict[str, DecisionPoint] = {}

    def may_wait(self, environment: str, before: InForce, owner: str) -> bool:
        """Whether a change of this owner's package may have to wait, by its impact."""
        rules = self._rules_for(environment, before, owner)
        return bool(rules.kinds or rules.owners)

    def _rules_for(self, environment: str, before: InForce, owner: str) -> Rules:
        return self._rules.of(environment, owner, before.decides_alone(owner))

    def impact(self, environment: str, before: InForce, artifact: Artifact, whole: Whole, maker: str) -> Impact:
        """What an artifact gives and takes, and what it has to wait for. ``whole``: the bundles with it."""
        owner, rules = artifact.owner, self._rules_for(environment, before, artifact.owner)
        # What else makes the bundles different may be so about all.
        is_alone = before.decides_alone(owner) and before.made_by == maker
        is_alone &= sorted(before.withheld) == sorted(held.owner for held in whole.withheld)
        after = before.artifacts | {owner: artifact}
        used = {PLATFORM, owner} if is_alone else after.keys()
        try:
            old, new = self._point(self._wasm(environment)), self._point(whole.bundles[wasm_bundle(environment)])
        except (EngineError, CompileError, BundleRefusedError) as error:
            log.error("the impact of a change of %s in %s cannot be computed: %s", owner, environment, error)
            impact = unknown(str(error)[:1000], before.serial, rules.kinds)
        else:
            old_files, new_files = _files(before.artifacts, used), _files(after, used)
            compared = Sides(old, new, old_files, new_files, owner, owner if is_alone else None, before.serial)
            impact = impact_of(compared, rules.kinds, rules.seconds, self._builder.opa)
        every = tuple(rule.text for rule in rules.owners)
        return msgspec.structs.replace(impact, waits_for=(*impact.waits_for, *every))

    def _wasm(self, environment: str) -> bytes:
        """The bundle of all teams that an environment has in force; without one, the shipped policy alone."""
        with Session(self._engine) as session:
            found = session.get(Bundle, wasm_bundle(environment))
        if found is not None:
            return found.content
        nothing = self._builder.build(environment, None, {}, 1, (), None, lambda _: ())
        return nothing.bundles[wasm_bundle(environment)]

    def _point(self, bundle: bytes) -> DecisionPoint:
        name = etag(bundle)
        found = self._points.pop(name, None) or point_of(bundle, name)
        self._points[name] = found
        for longest_unused in list(self._points)[:-_KEPT_POINTS]:
            self._points.pop(longest_unused, None)
        return found


def _files(in_force: Mapping[str, Artifact], owners: Collection[str]) -> dict[str, bytes]:
    return {name: text for owner in in_force.keys() & owners for name, text in in_force[owner].files.items()}
