"""The bundles of an environment, also while packages that were good once do not compile, or take too much of an engine.

Such as with a newer OPA, or a newer shipped policy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from airflow_team_authz.bundles.aggregate import build
from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, denying_artifact, root
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.gate.platform_part import failing_tests
from airflow_team_authz.opa.compile import CompileError, StartError

# What one item more takes in an engine.
_PART_BYTES = 100
_TOO_MUCH = "it takes more of an engine than any other package"
_PLACE = re.compile(r"teams/([\w-]+)/")


class Withheld(NamedTuple):
    """A package that is in force, and not in the bundles. ``instead``: the version that is; 0 if all is denied."""

    owner: str
    version: int
    instead: int
    why: str


class Whole(NamedTuple):
    """All bundles that were built, which packages are not in them, and which of the platform's own tests fail."""

    bundles: dict[str, bytes]
    withheld: list[Withheld]
    failing: str


def etag(content: bytes) -> str:
    """The ETag of a bundle."""
    return f'"{hashlib.sha256(content).hexdigest()}"'


class Builder(NamedTuple):
    """Builds bundles."""

    key: SigningKey
    opa: str | None

    def build(
        self,
        environment: str,
        platform: Artifact | None,
        teams: Mapping[str, Artifact],
        serial: int,
        only: Collection[str] | None,
        fresh: str | None,
        earlier: Callable[[str], Iterable[Artifact]],
    ) -> Whole:
        """As ``aggregate.build``, but a team that does not even compile alone, or takes more of an engine than there
        is, holds nobody up: the newest of its ``earlier`` packages that is better takes its place. ``fresh`` is who
        publishes: nothing takes the place of that.
        """
        used, withheld = dict(teams), dict[str, Withheld]()
        while True:
            changed = None if only is None else {*only, *withheld}
            try:
                with ThreadPoolExecutor(1) as pool:
                    testing = pool.submit(self._failing, platform, list(used.values()))
                    bundles = build(environment, platform, used, serial, self.key, changed, self.opa)
                    return Whole(bundles, list(withheld.values()), testing.result())
            except StartError as error:
                broken = self._heaviest(platform, used, fresh, withheld.keys(), error)
                if not broken:
                    raise
            except CompileError as error:
                places = [_PLACE.match(problem.file) for problem in error.problems]
                suspects = {place[1] for place in places if place} & used.keys() - withheld.keys() - {fresh}
                broken = {team_id: why for team_id in suspects if (why := self._trouble(used[team_id]))}
                if not broken:
                    raise
            for team_id, why in broken.items():
                present = weight(used[team_id])
                lighter = (one for one in earlier(team_id) if not why.startswith(_TOO_MUCH) or weight(one) < present)
                good = (artifact for artifact in lighter if not self._trouble(artifact))
                used[team_id] = next(good, _denies_all(team_id, why))
                withheld[team_id] = Withheld(team_id, teams[team_id].version, used[team_id].version, why)

    def _heaviest(
        self,
        platform: Artifact | None,
        used: Mapping[str, Artifact],
        fresh: str | None,
        withheld: Collection[str],
        error: StartError,
    ) -> dict[str, str]:
        """The team whose package takes most, if an engine cannot start without what is published either."""
        others = {team_id: artifact for team_id, artifact in used.items() if team_id != fresh}
        if fresh is not None and self._starts(None if fresh == PLATFORM else platform, others):
            return {}
        rest = {team_id: weight(artifact) for team_id, artifact in others.items() if team_id not in withheld}
        return {max(rest, key=lambda team_id: rest[team_id]): f"{_TOO_MUCH}: {error}"[:500]} if rest else {}

    def _starts(self, platform: Artifact | None, teams: Mapping[str, Artifact]) -> bool:
        try:
            build("others", platform, teams, 1, self.key, (), self.opa)
        except StartError:
            return False
        except CompileError:
            # Not of this kind: told when all is built.
            return True
        return True

    def _failing(self, platform: Artifact | None, teams: list[Artifact]) -> str:
        files = {name: text for artifact in teams for name, text in artifact.files.items()}
        return failing_tests(platform.files, files, self.opa) if platform else ""

    def _trouble(self, artifact: Artifact) -> str:
        """Why a package does not compile with the shipped policy alone."""
        try:
            build("alone", None, {artifact.owner: artifact}, 1, self.key, (), self.opa)
        except CompileError as error:
            return str(error)[:500]
        return ""


def weight(artifact: Artifact) -> int:
    """About how much of an engine's memory a package takes: for each part of its data, and for each letter."""
    data = artifact.files.get(f"{root(artifact.owner)}/data.json", b"")
    parts = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    return _PART_BYTES * parts + sum(
        len(text) for name, text in artifact.files.items() if not name.endswith("_test.rego")
    )


def _denies_all(team_id: str, why: str) -> Artifact:
    what = "takes too much of an engine" if why.startswith(_TOO_MUCH) else "no longer compiles"
    return denying_artifact(team_id, f"the package of {team_id} {what}: publish a new one")
