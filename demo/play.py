"""Plays the scenes on a site."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

from demo.scenes import SCENES, Step
from demo.site import Site

# Where a list has its rows, and what names a row.
_ROWS = {
    "connections": "connection_id",
    "variables": "key",
    "pools": "name",
    "dags": "dag_id",
    "authorized_menu_items": None,
}
# An edited policy is in force within a second on an idle machine; this only bounds the waiting.
_EDIT_SECONDS = 10
_POLL_SECONDS = 0.05


class SceneResult(NamedTuple):
    """What a step came to. ``seconds`` is how long an edit took to show, 0 without one."""

    scene: int
    step: Step
    status: int
    shows: frozenset[str] | None
    reason: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it is what the step expects."""
        return (
            self.status == self.step.status
            and (self.step.shows is None or self.shows == self.step.shows)
            and self.step.reason in self.reason
        )


def play(site: Site) -> Iterator[SceneResult]:
    """The outcomes of all scenes, in order, as they come."""
    for number in range(1, len(SCENES) + 1):
        yield from play_scene(site, number)


def play_scene(site: Site, number: int) -> Iterator[SceneResult]:
    """The outcomes of one scene's steps."""
    for step in SCENES[number - 1].steps:
        yield _play(site, number, step)


def _play(site: Site, number: int, step: Step) -> SceneResult:
    start = time.monotonic()
    if step.edit is not None:
        site.edit_policy(*step.edit)
    while True:
        answer = _ask(site, step)
        seconds = time.monotonic() - start if step.edit else 0.0
        outcome = SceneResult(number, step, answer.status_code, _shown(answer), _reason(answer), seconds)
        if outcome.ok or step.edit is None or seconds > _EDIT_SECONDS:
            return outcome
        time.sleep(_POLL_SECONDS)


def _ask(site: Site, step: Step) -> httpx.Response:
    path = step.path if step.path.startswith("/") else f"/api/v2/{step.path}"
    return site.client(step.who).request(step.method, path, json=step.body)


def _shown(answer: httpx.Response) -> frozenset[str] | None:
    document = _document(answer)
    for rows, name in _ROWS.items():
        if isinstance(document.get(rows), list):
            return frozenset(str(row[name]) if name else str(row) for row in document[rows])
    return None


def _reason(answer: httpx.Response) -> str:
    if answer.is_success:
        return ""
    told = str(_document(answer).get("detail", answer.text)).removeprefix("Forbidden: ")
    # The id of the record is another one each time.
    return told.partition(" (decision ")[0]


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
