"""Decisions as one HTML page for Airflow's UI, which shows it in a frame. It has links and a form, and no script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from airflow_team_authz.decision_log.parts import AUDITED
from airflow_team_authz.escaping import escaped

_STYLE = """
:root{color-scheme:light dark;--text:#1f2937;--faint:#6b7280;--line:#e5e7eb;--back:#fff;--bad:#b91c1c;--good:#047857}
@media(prefers-color-scheme:dark){:root{--text:#e5e7eb;--faint:#9ca3af;--line:#374151;--back:#111827;--bad:#fca5a5;
--good:#6ee7b7}}
body{font:14px/1.45 system-ui,sans-serif;margin:0;padding:1rem 1.5rem;color:var(--text);background:var(--back)}
h1{font-size:1.4rem;margin:.2rem 0}.faint{color:var(--faint)}
form{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;margin:.8rem 0}
label{display:flex;gap:.4rem;align-items:center;color:var(--faint)}
input,select,button{font:inherit;padding:.25rem .4rem}
table{width:100%;border-collapse:collapse}
th{text-align:left;color:var(--faint);white-space:nowrap}
td,th{padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
td:first-child,td:nth-child(4){white-space:nowrap}
.deny,.error,.gap{color:var(--bad);font-weight:600}.allow{color:var(--good)}
pre{border:1px solid var(--line);padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}a{color:inherit}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_SHOWN = 3
_COLUMNS = ("Time (UTC)", "Who", "What", "Outcome", "Why", "Decision")
_WORDS = {"allow": "allowed", "deny": "refused", "error": "no decision", "gap": "lost", "list": "list"}
_Record = Mapping[str, Any]


def render(records: Sequence[_Record], following: str | None, filters: Mapping[str, str], id_: str) -> str:
    """The page: a form with the ``filters``, the records, and a link to those that follow.

    With ``id_`` the one record, whole.
    """
    rows = "".join(_row(record) for record in records)
    head = "".join(f"<th scope='col'>{title}</th>" for title in _COLUMNS)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else _nothing(following)
    used = {name: value for name, value in filters.items() if value}
    more = f"<p><a href='?{_text(urlencode({**used, 'before': following}))}'>Older</a></p>" if following else ""
    whole = "".join(map(_whole, records)) if id_ else ""
    everything = "<p><a href='?'>All decisions</a></p>" if id_ else _form(filters)
    return _document(f"{everything}{table}{whole}{more}")


def render_error(message: str) -> str:
    """The page with nothing but a message."""
    return _document(f"<p class='error'>{_text(message)}</p><p><a href='?'>All decisions</a></p>")


def _document(content: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Decisions</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style></head><body><h1>Decisions</h1>"
        "<p class='faint'>What was refused to you, and what was decided about resources and tasks of teams whose audit "
        f"logs you may read. A decision appears here a moment after it was made.</p>{content}</body></html>"
    )


def _nothing(following: str | None) -> str:
    return f"<p>No decision here{'; older ones may fit' if following else ''}.</p>"


def _form(filters: Mapping[str, str]) -> str:
    fields = "".join(
        f"<label>{title} <input name='{name}' value='{_text(filters[name])}' placeholder='{hint}'></label>"
        for title, name, hint in (("Who", "user", ""), ("Team", "team", ""), ("Since", "since", "7 days ago"))
    )
    types = "".join(
        f"<option{' selected' if filters['type'] == type_ else ''}>{type_}</option>" for type_ in sorted(AUDITED)
    )
    checked = " checked" if filters["denied"] else ""
    return (
        f"<form>{fields}<label>Type <select name='type'><option value=''>all</option>{types}</select></label>"
        f"<label><input type='checkbox' name='denied' value='true'{checked}> refusals and errors only</label>"
        "<button>Show</button></form>"
    )


def _row(record: _Record) -> str:
    outcome = str(record["custom"]["outcome"])
    id_ = str(record["decision_id"])
    cells = (
        _text(str(record.get("timestamp", ""))[:19].replace("T", " ")),
        _text(_who(record)),
        "<br>".join(map(_text, _what(record))),
        f"<span class='{_text(outcome)}'>{_text(_WORDS.get(outcome, outcome))}</span>{_text(_times(record))}",
        "<br>".join(map(_text, _why(record))),
        f"<a href='?{_text(urlencode({'id': id_}))}'>{_text(id_)}</a>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _who(record: _Record) -> str:
    subject = record.get("input", {}).get("subject") or {}
    return " ".join(str(subject[name]) for name in ("type", "id") if name in subject)


def _what(record: _Record) -> Iterator[str]:
    input_ = record.get("input", {})
    resources = input_.get("resources") or [one for one in (input_.get("resource"),) if one]
    for one in resources[:_SHOWN]:
        team = f"of team {one['team_id']}" if one.get("team_id") else ""
        words = (input_.get("action"), one.get("type"), one.get("entity"), one.get("id"), team)
        yield " ".join(str(word) for word in words if word)
    if len(resources) > _SHOWN:
        yield f"and {len(resources) - _SHOWN} more"
    request = record["custom"].get("request", {})
    if not resources and request:
        yield f"{request.get('method', '')} {request.get('path', '')}"


def _times(record: _Record) -> str:
    repeated = record["custom"].get("repeated")
    return f", {repeated['times']} more times" if isinstance(repeated, dict) and "times" in repeated else ""


def _why(record: _Record) -> list[str]:
    custom = record["custom"]
    if custom["outcome"] == "gap":
        return [f"{custom.get('lost')} records were lost"]
    if isinstance(error := record.get("error"), dict):
        return [str(error.get("message", ""))]
    result = record.get("result")
    decisions = result if isinstance(result, list) else [result]
    reasons = [str(reason) for one in decisions if isinstance(one, dict) for reason in one.get("reasons") or ()]
    told = [str(custom["told"])] if "told" in custom else []
    found = list(dict.fromkeys(reasons or told))
    return found[:_SHOWN] + ([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])


def _whole(record: _Record) -> str:
    return f"<pre>{escape(escaped(json.dumps(record, indent=2, ensure_ascii=False), keep=chr(10)))}</pre>"


def _text(text: str) -> str:
    return escape(escaped(text))
