"""The status page: environments, teams, and the clients with their revisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from airflow_team_authz.escaping import escaped

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'sha256-{}'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem;color:#1f2937}table{border-collapse:collapse;margin:0 0 2rem}"
    "th,td{text-align:left;padding:.35rem .8rem;border-bottom:1px solid #e5e7eb}th{color:#6b7280;font-weight:600}"
    ".alarm{color:#b91c1c;font-weight:600}.good{color:#047857}h1{font-size:1.4rem}h2{font-size:1.1rem}"
)


def render(tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[object]]]], summary: str, alarm: bool) -> str:
    """The page: a summary, and tables of a title, a head and rows. Whatever is in a cell is text."""
    kind = "alarm" if alarm else "good"
    body = "".join(_table(*table) for table in tables)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Policy bundles</title>"
        f"<style>{STYLE}</style></head><body><h1>Policy bundles</h1><p class='{kind}'>{escape(summary)}</p>"
        f"{body}</body></html>"
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(escaped(str(cell)))}</td>" for cell in row) + "</tr>" for row in rows
    )
    nothing = "" if rows else "<p>None yet.</p>"
    return f"<h2>{escape(title)}</h2><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>{nothing}"
