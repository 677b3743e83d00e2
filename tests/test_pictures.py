"""The pictures of figures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.pictures import bars, draw, lines, shown


@pytest.mark.parametrize("values", [{"a": 1.0}, {"a": 1.0, "b": 5_000.0}, {"<a>": 0.0, "b": 3.0}, {"a": 2.0, "b": 2.0}])
def test_bars_show_each_value(values: dict[str, float]) -> None:
    picture = ElementTree.fromstring(bars("One & all", values, "ms"))  # noqa: S314 - our own text
    texts = [text.text for text in picture.iter() if text.text]
    assert {*values, *map(shown, values.values())} <= set(texts)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1_000.0], [0.0, 7.0], [3.0, 3.0]])
def test_lines_show_the_last_value_of_each_series(values: list[float]) -> None:
    text = lines("Growth", [str(place) for place, _ in enumerate(values)], {"one": values}, "ms", "teams")
    assert f">one: {shown(values[-1])}<" in text
    assert ElementTree.fromstring(text) is not None  # noqa: S314 - our own text


def test_only_pictures_with_figures_are_drawn(tmp_path: Path) -> None:
    rows = [{"comparison": "one decision", "what": "in process", "value": 12.0}]
    assert [file.name for file in draw(rows, tmp_path)] == ["decision.svg"]
