"""The bundles of an environment, also while a package that was good once does not compile.

Such as with a newer OPA, or a newer shipped policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from airflow_team_authz.bundles.aggregate import build
from airflow_team_authz.bundles.artifact import Artifact, root
from airflow_team_authz.bundles.platform_check import failing_tests
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.compile import CompileError

_PLACE = re.compile(r"teams/([\w-]+)/[^\s:]*:\d+: ")


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


class Builder(NamedTuple):
    """What builds bundles."""

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
        """As ``aggregate.build``, but a team that does not even compile alone holds nobody up: the newest of its
        ``earlier`` packages that compiles takes its place. ``fresh`` is who publishes: nothing takes the place of that.
        """
        used, withheld = dict(teams), dict[str, Withheld]()
        while True:
            changed = None if only is None else {*only, *withheld}
            try:
                with ThreadPoolExecutor(1) as pool:
                    testing = pool.submit(self._failing, platform, list(used.values()))
                    bundles = build(environment, platform, used, serial, self.key, changed, self.opa)
                    return Whole(bundles, list(withheld.values()), testing.result())
            except CompileError as error:
                suspects = set(_PLACE.findall(str(error))) & used.keys() - withheld.keys() - {fresh}
                broken = {team_id: why for team_id in suspects if (why := self._trouble(used[team_id]))}
                if not broken:
                    raise
            for team_id, why in broken.items():
                good = (artifact for artifact in earlier(team_id) if not self._trouble(artifact))
                used[team_id] = next(good, _denies_all(team_id))
                withheld[team_id] = Withheld(team_id, teams[team_id].version, used[team_id].version, why)

    def _failing(self, platform: Artifact | None, teams: list[Artifact]) -> str:
        files = {name: text for artifact in teams for name, text in artifact.files.items()}
        return failing_tests(platform.files, files, self.opa) if platform else ""

    def _trouble(self, artifact: Artifact) -> str:
        """Why a package does not compile with the shipped policy alone."""
        try:
            build("alone", None, {artifact.owner: artifact}, 1, self.key, (), self.opa)
        except CompileError as error:
            return " ".join(str(error).split())[:500]
        return ""


def _denies_all(team_id: str) -> Artifact:
    """Left out, its own `deny` would be gone without a word."""
    reason = f"the package of {team_id} no longer compiles: publish a new one"
    rule = f'package teams["{team_id}"]\n\ndeny contains "{reason}"\n'
    return Artifact(team_id, 0, {f"{root(team_id)}/withheld.rego": rule.encode()})
