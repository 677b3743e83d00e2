"""One team's slow rules do not slow everybody's lists: what it owns is left out, and comes back when it is fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz import engines as engines_package
from airflow_team_authz.engines import DecisionPoint, Engine, Reply, left_out
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import DeadlineExceededError, Evaluations, PolicyBrokenError, Resource, Subject
from tests.conftest import Engines, errors, eventually, write

Policy = Callable[[dict[str, str]], Path]
EVE = Subject("user", "eve")
OTHERS = tuple(f"team{number}" for number in range(12))
MANY = "data.teams.TEAM.many"
FEW = f"array.slice({MANY}, 0, 9)"
SOME = f"array.slice({MANY}, 0, 15)"
# Each a way for a rule to take its time: far more than a share of a list, and less than a single decision may.
SLOW: dict[str, str] = {
    "comprehensions": f"count([1 | some n in {MANY}; some m in {MANY}; n != m]) == 22350",
    "sets": f"count({{x | some n in {SOME}; some m in {MANY}; x := [n, [m]]}}) > 150",
    "walking": f"count([1 | some n in {MANY}; walk([[[n], n], n], [_, x]); walk([[[x]]], [_, y]); y == n]) > 0",
    "graphs": f"count(graph.reachable({{n: {MANY} | some n in {SOME}}}, {FEW})) == 150",
    "patterns": f"count([1 | some n in {MANY}; regex.match(`^(a|n|[0-9])*c{{1,200}}$`, concat(n, {MANY}))]) == 0",
    "texts": f'count(split(concat("-", [t | some _ in {MANY}; t := concat("-", {MANY})]), "-")) == 22500',
    "products": f"count([1 | some n, _ in {MANY}; some m, _ in {MANY}; n > m]) == 11175",
    "a large value": f'count(concat("", [t | some _ in {MANY}; t := concat("a long text", {MANY})])) > 22500',
}
NAMES = {case: f"slow_{number}" for number, case in enumerate(SLOW)}


def rules(team: str, slow: str = "") -> str:
    """Rules of a team that lend one connection, and look at something slow before they deny."""
    lends = f'package teams.{team}\n\nallow contains "lent" if input.resource.id == "lent"\n'
    denies = f'\ndeny contains "no" if {{\n\t{slow.replace("TEAM", team)}\n\tupper(input.subject.id) == "GUS"\n}}\n'
    return lends + (denies if slow else "")


def site(slow: dict[str, str]) -> dict[str, str]:
    """A policy directory of quick teams, and of slow ones with their data."""
    files = {f"teams/{team}/x.rego": rules(team) for team in OTHERS}
    files |= {f"teams/{team}/x.rego": rules(team, what) for team, what in slow.items()}
    data = json.dumps({"many": [f"n{number}" for number in range(150)]})
    return files | {f"teams/{team}/data.json": data for team in slow}


def listed(*teams: str | None) -> list[Resource]:
    return [Resource("connection", team, name) for name in ("lent", "kept") for team in teams]


class Noted:
    """An engine that keeps whom each question is about."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.asked: list[set[str | None]] = []
        self.close = engine.close

    def query(self, entrypoint: str, question: bytes, *more: Any) -> Reply:
        self.asked.append({resource["team_id"] for resource in json.loads(question)["resources"]})
        return self._engine.query(entrypoint, question, *more)


@pytest.fixture(scope="module")
def engines(open_engines: Callable[[Path], Engines], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    slow = {NAMES[case]: what for case, what in SLOW.items()}
    return open_engines(write(tmp_path_factory.mktemp("slow"), site(slow)))


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_team_is_left_out_of_the_next_lists(
    case: str, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    noted, slow = Noted(engines.in_process._engine), NAMES[case]
    point = DecisionPoint(noted)
    everything = Evaluations(EVE, "read", listed(None, slow, *OTHERS))
    lent = [Resource("connection", team, "lent") for team in OTHERS]
    for _ in range(3):
        noted.asked.clear()
        assert point.allowed(everything) == lent
    # The others' lists cost what they do without that team: it is not in the question.
    assert noted.asked == [{None, *OTHERS}]
    assert ["left out" in error or f"lists leave out what team {slow} owns" in error for error in errors(caplog)] == [
        True
    ]
    # Nobody else pays for who asks about that team alone.
    assert [decision.allow for decision in point.decide(Evaluations(EVE, "read", listed(slow))).decisions] == [
        True,
        False,
    ]
    assert point.allowed(Evaluations(EVE, "read", listed(slow))) == [Resource("connection", slow, "lent")]
    assert noted.asked[1:] == [{slow}, {slow}]


ENDLESS = f"count([1 | {'; '.join(f'some {name} in {MANY}' for name in 'abcdef')}]) > 0"
FAILS = "data.teams.TEAM.conflict == 1"
CONFLICT = "\nconflict := 1\n\nconflict := 2 if input.action\n"


def test_a_team_comes_back_when_its_package_changes(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    directory = policy(site({"slow": SLOW["texts"]}))
    noted = Noted(InProcess(directory))
    point = DecisionPoint(noted)
    everything = Evaluations(EVE, "read", listed(*OTHERS, "slow"))
    lent = [Resource("connection", team, "lent") for team in (*OTHERS, "slow")]
    assert point.allowed(everything) == lent[:-1]
    # Another team's change is a reason to ask again, alone.
    before = point.decide(everything).revision
    policy({"teams/team1/x.rego": rules("team1", "input.action")})
    eventually(lambda: point.decide(everything).revision != before)
    noted.asked.clear()
    for _ in range(2):
        assert point.allowed(everything) == lent[:-1]
    assert noted.asked == [set(OTHERS), {"slow"}, set(OTHERS)]
    policy({"teams/slow/x.rego": rules("slow")})
    eventually(lambda: point.allowed(everything) == lent)
    noted.asked.clear()
    assert point.allowed(everything) == lent
    assert noted.asked == [{*OTHERS, "slow"}]
    assert len(errors(caplog)) == 1
    assert "lists hold again what team slow owns" in caplog.text
    point.close()


def test_a_team_is_asked_again_alone_after_a_while(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "_FIRST_PAUSE_SECONDS", 0.0)
    noted, slow = Noted(engines.in_process._engine), NAMES["walking"]
    point = DecisionPoint(noted)
    # Somebody who has not asked before: an answer that is kept takes no time.
    everything = Evaluations(Subject("user", "new", ("nobodys",)), "read", listed(slow, *OTHERS))
    lent = [Resource("connection", team, "lent") for team in OTHERS]
    assert point.allowed(everything) == lent
    noted.asked.clear()
    assert point.allowed(everything) == lent
    assert noted.asked == [set(OTHERS), {slow}]
    # Such as when it was the machine that was slow.
    monkeypatch.setattr(engines_package, "_SHARE", 1e6)
    assert len(point.allowed(everything)) == len(lent) + 1
    assert point._left_out.told() == ""


@pytest.mark.parametrize("engine", ["in process", "server"])
def test_several_teams_that_are_slow_or_fail_end_up_left_out(
    engine: str, open_engines: Callable[[Path], Engines], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = {f"slow{number}": ENDLESS for number in range(4)} | {"fails": FAILS}
    files = site(slow)
    files["teams/fails/x.rego"] += CONFLICT
    both = open_engines(write(tmp_path / "policy", files))
    noted = Noted(both.in_process._engine if engine == "in process" else both.server._engine)
    if engine == "server":
        noted._engine._deadline = 1.0  # type: ignore[attr-defined]
    point = DecisionPoint(noted)
    everything = Evaluations(EVE, "read", listed(*OTHERS, *slow))
    lent = [Resource("connection", team, "lent") for team in OTHERS]

    def only_others_are_asked() -> bool:
        noted.asked.clear()
        with suppress(DeadlineExceededError):
            # Whatever is late, nothing of the slow ones is ever shown, and nothing of the others' lacks.
            assert point.allowed(everything) == lent
        return noted.asked == [set(OTHERS)]

    eventually(only_others_are_asked)
    named = [team for error in errors(caplog) for team in slow if f"what team {team} owns" in error]
    assert sorted(named) == sorted(slow)
    assert all(team in point._left_out.told() for team in slow)
    with pytest.raises((PolicyBrokenError, DeadlineExceededError)):
        point.decide(Evaluations(EVE, "read", listed("slow0")))


def test_many_teams_that_all_take_more_than_usual_are_not_left_out(
    open_engines: Callable[[Path], Engines], tmp_path: Path
) -> None:
    """None of them is slow; all together take more than lists usually do."""
    busy = dict.fromkeys(OTHERS, f"count([1 | some n in {MANY}; some m in {FEW}; n == m]) == 9")
    noted = Noted(open_engines(write(tmp_path / "policy", site(busy))).in_process._engine)
    point = DecisionPoint(noted)
    everything = Evaluations(EVE, "read", listed(*OTHERS))
    lent = [Resource("connection", team, "lent") for team in OTHERS]

    def asked_at_once() -> bool:
        noted.asked.clear()
        assert point.allowed(everything) == lent
        return noted.asked == [set(OTHERS)]

    assert not asked_at_once()
    eventually(asked_at_once)
    assert point._left_out.told() == ""


def test_if_all_teams_fail_it_is_an_error_and_nobody_is_left_out(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    files = site({"one": FAILS, "two": FAILS})
    for team in ("one", "two"):
        files[f"teams/{team}/x.rego"] += CONFLICT
    point = DecisionPoint(InProcess(policy(files)))
    for _ in range(2):
        with pytest.raises(PolicyBrokenError):
            point.allowed(Evaluations(EVE, "read", listed("one", "two")))
    assert [error.partition(" (")[0] for error in errors(caplog)] == ["no decision can be had from the engine"]
    assert point._left_out.told() == ""
    point.close()


_TWO_VALUES = """
_two(text) := 1 if text != ""
_two(text) := 2 if text != ""

deny contains "never said" if _two(input.action) == 1
"""


def test_a_team_whose_rules_fail_costs_only_its_own_among_decisions(
    open_engines: Callable[[Path], Engines], tmp_path: Path
) -> None:
    files = {f"teams/{team}/x.rego": rules(team) for team in OTHERS[:2]}
    site_ = write(tmp_path / "policy", files | {"teams/broken/x.rego": rules("broken") + _TWO_VALUES})
    mixed = Evaluations(EVE, "read", listed("team0", "broken", None, "team1"))
    for point in open_engines(site_).both():
        with pytest.raises(PolicyBrokenError):
            point.decide(mixed)
        answers = point.decide_by_owner(mixed)
        alone = [
            point.decide(Evaluations(EVE, "read", [resource])).decisions[0] if resource.team_id != "broken" else None
            for resource in mixed.resources
        ]
        assert [None if isinstance(answer, PolicyBrokenError) else answer for answer in answers] == alone
        assert [answer.allow for answer in alone if answer] == [True, False, True, False, False, False]
        # Where nothing else is asked about, the error is everybody's.
        with pytest.raises(PolicyBrokenError):
            point.decide_by_owner(Evaluations(EVE, "read", listed("broken")))


def test_where_the_platforms_rules_fail_no_team_is_asked_about_on_its_own(
    policy: Callable[[dict[str, str]], Path],
) -> None:
    engine = Noted(InProcess(policy({"site/site.rego": f"package airflow.site\n{_TWO_VALUES}"})))
    with pytest.raises(PolicyBrokenError):
        DecisionPoint(engine).decide_by_owner(Evaluations(EVE, "read", listed(*OTHERS)))
    # The whole question, and one about nobody's resource: not one for each team.
    assert len(engine.asked) == 2
    engine.close()
