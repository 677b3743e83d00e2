"""Plays the scenes that take a running Airflow: what tasks try, which Dags events start, and what people then see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from demo.running import RunningSite
from demo.running_scenes import ATTEMPTS, LOOKS, STARTS, Attempt, Look, Start


class Seen(NamedTuple):
    """What became of a scene."""

    words: str
    expected: bool
    done: bool
    alone: bool

    @property
    def ok(self) -> bool:
        """Whether it is what the scene expects."""
        return self.done is self.expected


def play_running(site: RunningSite) -> Iterator[Seen]:
    """All scenes, in order."""
    tried = try_all(site, ATTEMPTS)
    for scene in ATTEMPTS:
        yield Seen(scene.words, scene.done, tried[scene.words].done, scene.alone)
    started = start_all(site, STARTS)
    for start in STARTS:
        yield Seen(start.words, start.done, started[start.words], start.alone)
    seen = look_at_all(site, LOOKS)
    for look in LOOKS:
        yield Seen(look.words, look.done, seen[look.words], look.alone)


class Result(NamedTuple):
    """Whether something could be done, and what the task was told."""

    done: bool
    told: object


def try_all(site: RunningSite, scenes: Iterable[Attempt]) -> dict[str, Result]:
    """What came of each attempt, by its words; one task of each team tries them one after the other."""
    by_team: dict[str, list[Attempt]] = defaultdict(list)
    for scene in scenes:
        by_team[scene.team].append(scene)
    runs = {
        team: site.begin(team, *((scene.what, scene.about) for scene in of_team)) for team, of_team in by_team.items()
    }
    return {
        scene.words: Result(outcome.done, outcome.told)
        for team, of_team in by_team.items()
        for scene, outcome in zip(of_team, site.tried(team, runs[team]), strict=True)
    }


def start_all(site: RunningSite, scenes: Sequence[Start]) -> dict[str, bool]:
    """Whether each Dag was started by a new event of its source, by the scene's words."""
    before = site.runs_of({scene.dag_id for scene in scenes})
    for source in sorted({scene.source for scene in scenes}):
        site.make_event(source)
    # Those that are to start say when all of them have been asked about: an event has one question.
    expected = [scene for scene in scenes if scene.done]
    site.wait_for(
        lambda: all(site.runs(scene.dag_id) > before[scene.dag_id] for scene in expected), "Dags to start by events"
    )
    return {scene.words: site.runs(scene.dag_id) > before[scene.dag_id] for scene in scenes}


def look_at_all(site: RunningSite, scenes: Sequence[Look]) -> dict[str, bool]:
    """Whether each person sees what the scene names, by the scene's words."""
    # When what is to be seen has been there, its file was read, and so were the others.
    expected = [scene for scene in scenes if scene.done]
    found = {scene.words: site.wait_for(lambda scene=scene: _sees(site, scene), scene.words) for scene in expected}  # type: ignore[misc]
    return {scene.words: found.get(scene.words) or _sees(site, scene) for scene in scenes}


def _sees(site: RunningSite, scene: Look) -> bool:
    answer = site.client(scene.who).get(f"/api/v2/{scene.path}")
    return answer.is_success and scene.words_there in answer.text
