"""Pictures of figures, as small SVG files that are readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parents[1] / "docs" / "performance"
_WIDTH, _ROW, _LABELS, _RIGHT = 720, 24, 250, 90
_PLOT_HEIGHT, _MARGIN = 180, 56
_COLOURS = ("#4c8bd6", "#e08a1e", "#3fa66b", "#b07cc6", "#d65f5f", "#8c8c8c")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-weight:600;font-size:14px}.m{fill:#6a737d}"
    "line,path{stroke:#8b949e;fill:none}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9198a1}}"
)

Row = Mapping[str, Any]


def draw(rows: Sequence[Row], folder: Path = FOLDER) -> list[Path]:
    """Write each picture of which the rows have the figures; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in _PICTURES.items():
        if text := make(rows):
            (folder / f"{name}.svg").write_text(text)
            written.append(folder / f"{name}.svg")
    return written


def bars(title: str, values: Mapping[str, float], unit: str) -> str:
    """A bar for each value, on a logarithmic scale if they differ by more than thirty times."""
    most, least = max(values.values()), min(values.values())
    is_far = least > 0 and most / least > 30
    low = 10 ** math.floor(math.log10(least) - 0.3) if is_far else 0
    across = _WIDTH - _LABELS - _RIGHT

    def width(value: float) -> float:
        part = math.log(value / low) / math.log(most / low) if is_far else value / (most or 1)
        return max(1, across * part)

    parts = [_text(8, 20, f"{title} ({unit}{', logarithmic' if is_far else ''})", "t")]
    for number, (label, value) in enumerate(values.items()):
        y = 34 + number * _ROW
        colour = _COLOURS[number % len(_COLOURS)]
        parts += [
            _text(_LABELS - 8, y + 14, label, anchor="end"),
            f'<rect x="{_LABELS}" y="{y}" width="{width(value):.0f}" height="18" rx="2" fill="{colour}"/>',
            _text(_LABELS + width(value) + 6, y + 14, shown(value)),
        ]
    return _svg(parts, 40 + len(values) * _ROW)


def lines(title: str, places: Sequence[str], series: Mapping[str, Sequence[float]], unit: str, along: str) -> str:
    """A line for each series over the same places; the scale as with ``bars``."""
    values = [value for one in series.values() for value in one]
    is_far = min(values) > 0 and max(values) / min(values) > 30
    low = 10 ** math.floor(math.log10(min(values))) if is_far else 0
    high = 10 ** math.ceil(math.log10(max(values))) if is_far else _round_up(max(values))
    marks = [low * 10**power for power in range(round(math.log10(high / low)) + 1)] if is_far else [0, high / 2, high]
    top, right = 34, 210

    def at(number: int, value: float) -> tuple[float, float]:
        part = math.log(max(value, low) / low) / math.log(high / low) if is_far else value / high
        across = (_WIDTH - _MARGIN - right) / max(1, len(places) - 1)
        return _MARGIN + number * across, top + _PLOT_HEIGHT * (1 - part)

    parts = [_text(8, 20, f"{title} ({unit}{', logarithmic' if is_far else ''})", "t")]
    for mark in marks:
        _, y = at(0, mark)
        parts += [
            f'<line x1="{_MARGIN}" y1="{y:.0f}" x2="{_WIDTH - right}" y2="{y:.0f}" opacity="0.4"/>',
            _text(_MARGIN - 6, y + 4, shown(mark), "m", "end"),
        ]
    for number, place in enumerate(places):
        x, _ = at(number, high)
        parts.append(_text(x, top + _PLOT_HEIGHT + 18, place, "m", "middle"))
    parts.append(_text(_MARGIN, top + _PLOT_HEIGHT + 36, along, "m"))
    for number, (label, of_one) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [at(place, value) for place, value in enumerate(of_one)]
        path = " ".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))
        parts.append(f'<path d="{path}" style="stroke:{colour}" stroke-width="2"/>')
        if len(points) < 10:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = top + 8 + number * 18
        parts += [
            f'<rect x="{_WIDTH - right + 14}" y="{y - 8}" width="10" height="10" fill="{colour}"/>',
            _text(_WIDTH - right + 30, y + 1, f"{label}: {shown(of_one[-1])}"),
        ]
    return _svg(parts, top + _PLOT_HEIGHT + 46)


def shown(value: float) -> str:
    """A number with three digits."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def _round_up(value: float) -> float:
    """The next number that begins with 1, 2 or 5."""
    power = 10 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>{"".join(parts)}</svg>\n'


# The pictures


def _compared(comparison: str, title: str, unit: str = "µs") -> Callable[[Sequence[Row]], str]:
    def make(rows: Sequence[Row]) -> str:
        values = {row["what"]: row["value"] for row in rows if row["comparison"] == comparison}
        return bars(title, values, unit) if values else ""

    return make


def _grown(resources: int, measure: str, unit: str) -> Callable[[Sequence[Row]], str]:
    def make(rows: Sequence[Row]) -> str:
        found = [row for row in rows if row.get("resources") == resources and row.get("measure") == measure]
        series: dict[str, list[float]] = {}
        for row in found:
            series.setdefault(f"{row['threads']} thread{'s' * (row['threads'] > 1)}", []).append(row["value"])
        places = [f"{teams:,}" for teams in dict.fromkeys(row["teams"] for row in found)]
        return lines(f"A list of {resources:,} Dags: {measure}", places, series, unit, "teams") if found else ""

    return make


def _memory(rows: Sequence[Row]) -> str:
    series: dict[str, list[float]] = {}
    minutes: list[str] = []
    for row in rows:
        if row.get("measure") == "an API server's memory":
            series.setdefault(row["who"], []).append(row["value"])
            minutes.append(row["minutes"])
    places = list(dict.fromkeys(f"{minute:.0f}" for minute in minutes))
    return lines("Memory of an API server with 4 workers", places, series, "MB", "minutes of load") if series else ""


def _pages(rows: Sequence[Row]) -> str:
    found = [row for row in rows if "part_alone" in row and "beside Airflow alone" in row["comparison"]]
    values = {f"{row['what']}, {row['comparison'].split(', ')[1]}": row["ratio"] for row in found}
    return bars("Processor time of pages, beside Airflow alone", values, "1 is the same") if values else ""


def _pictures() -> Iterator[tuple[str, Callable[[Sequence[Row]], str]]]:
    yield "decision", _compared("one decision", "One decision, p50")
    yield "list", _compared("a list of 1,000 Dags over 50 teams", "A list of 1,000 Dags, p50")
    yield "keycloak", _compared("one decision about people out of Keycloak", "One decision about a Keycloak user")
    for resources in (100, 10_000, 100_000):
        for measure, unit in (("p50", "ms"), ("p99", "ms"), ("processor", "ms"), ("memory", "MB")):
            yield f"{resources}-{measure}", _grown(resources, measure, unit)
    yield "memory", _memory
    yield "pages", _pages


_PICTURES = dict(_pictures())
