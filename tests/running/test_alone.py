"""What the package is for: the same scenes on a running Airflow without it, which is gone before the others come."""

from __future__ import annotations

import pytest

from demo.play_running import look_at_all, start_all, try_all
from demo.running import RunningSite
from demo.running_scenes import ATTEMPTS, LOOKS, STARTS

pytestmark = [pytest.mark.timeout(900), pytest.mark.comparison]


def test_airflow_alone(alone: RunningSite) -> None:
    tried = {words: result.done for words, result in try_all(alone, ATTEMPTS).items()}
    assert tried == {scene.words: scene.alone for scene in ATTEMPTS}
    natively = [scene._replace(done=scene.alone) for scene in STARTS]
    assert start_all(alone, natively) == {scene.words: scene.alone for scene in STARTS}
    seen = look_at_all(alone, [scene._replace(done=scene.alone) for scene in LOOKS])
    assert seen == {scene.words: scene.alone for scene in LOOKS}
    assert set(alone.import_errors()) == {("alpha-dags", "broken.py")}
    assert all(any(scene.alone and not scene.done for scene in scenes) for scenes in (ATTEMPTS, STARTS, LOOKS))
