"""The demonstration's scenes come out the same with both engines."""

from __future__ import annotations

import pytest

from demo.play import play_scene
from demo.scenes import SCENES
from demo.site import Site

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("number", range(1, len(SCENES) + 1))
def test_scene(site: Site, number: int) -> None:
    outcomes = list(play_scene(site, number))
    assert outcomes
    assert [outcome for outcome in outcomes if not outcome.ok] == []


def test_an_edited_rule_is_in_force_soon(site: Site) -> None:
    edited = [outcome for outcome in play_scene(site, len(SCENES)) if outcome.step.edit]
    assert len(edited) == 2
    # A second on an idle machine; other tests may run beside this one.
    assert max(outcome.seconds for outcome in edited) < 5
