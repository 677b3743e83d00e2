"""What the server builds when packages take more of an engine than there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from airflow_team_authz.bundles import aggregate
from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import StartError
from airflow_team_authz.server.building import Builder, Whole
from tests.bundles.conftest import lends, nested

WASM = "production.wasm"
GUS = Subject("user", "gus")


def heavy(team_id: str, version: int, numbers: int) -> Artifact:
    """A package with data that no gate of today lets through."""
    files = lends(team_id, version=version).files
    data = b'{"numbers": [%s1]}' % (b"1," * numbers)
    return Artifact(team_id, version, {**files, f"teams/{team_id}/data.json": data})


def built(
    teams: Mapping[str, Artifact], fresh: str | None, earlier: Mapping[str, list[Artifact]] | None = None
) -> Whole:
    builder = Builder(SigningKey.new(), None)
    return builder.build("production", None, teams, 1, None, fresh, lambda team_id: (earlier or {}).get(team_id, []))


def allowed(whole: Whole, place: Path, *teams: str) -> list[bool]:
    """What an engine that is started anew with the bundle says of each team's connection."""
    (place / "bundle.tar.gz").write_bytes(whole.bundles[WASM])
    engine = DecisionPoint(InProcess(place / "bundle.tar.gz"))
    try:
        listed = [Resource("connection", team_id, "pg") for team_id in teams]
        return [decision.allow for decision in engine.decide(Evaluations(GUS, "read", listed)).decisions]
    finally:
        engine.close()


def test_who_publishes_what_leaves_no_memory_is_refused() -> None:
    teams = {"alpha": heavy("alpha", 1, 400_000), "beta": heavy("beta", 1, 420_000), "gamma": lends("gamma")}
    with pytest.raises(StartError, match=r"take .* MiB before the first question"):
        built(teams, "alpha")


def test_who_publishes_what_takes_long_to_compile_for_speed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "_START_SECONDS", 3)
    with pytest.raises(StartError, match="does not compile and start within 3 seconds of a processor"):
        built({"alpha": nested("alpha"), "gamma": lends("gamma")}, "alpha")


def test_packages_that_take_too_much_hold_nobody_else_up(tmp_path: Path) -> None:
    """As after an upgrade: what was published with other limits is there, and neither starts nor holds up."""
    teams = {
        "alpha": heavy("alpha", 3, 800_000),
        "beta": heavy("beta", 1, 700_000),
        "gamma": lends("gamma"),
        "delta": heavy("delta", 1, 1_000),
    }
    earlier = {"alpha": [heavy("alpha", 2, 790_000), lends("alpha")]}
    whole = built(teams, "gamma", earlier)
    held = {withheld.owner: (withheld.version, withheld.instead) for withheld in whole.withheld}
    assert held == {"alpha": (3, 1), "beta": (1, 0)}
    assert all("takes more of an engine than any other package" in withheld.why for withheld in whole.withheld)
    assert allowed(whole, tmp_path, "alpha", "beta", "gamma", "delta") == [True, False, True, True]
