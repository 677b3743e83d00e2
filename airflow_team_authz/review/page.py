"""An access review as one HTML page, which asks nobody for anything and works without its script."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from msgspec import UNSET

from airflow_team_authz.escaping import escaped
from airflow_team_authz.review.document import NO_USE, NOT_RECORDED, Head, Permission

_USES = {NO_USE: ("act none", "no use"), NOT_RECORDED: ("act", "?")}
_LEGEND = (
    "A date beside an action is its last use. 'no use': the decision log has none. "
    "'?': the decision log does not record this action."
)
_COLUMNS = ("may", "type", "name", "team", "because")
_STYLE = """
:root{--bar:2rem;color-scheme:light dark;--text:#1f2937;--faint:#6b7280;--line:#e5e7eb;--back:#fff;--strip:#f3f4f6;
--mark:#92400e;--markback:#fef3c7}
@media(prefers-color-scheme:dark){:root{--text:#e5e7eb;--faint:#9ca3af;--line:#374151;--back:#111827;--strip:#1f2937;
--mark:#fcd34d;--markback:#422006}}
body{font:14px/1.45 system-ui,sans-serif;margin:0;color:var(--text);background:var(--back)}
header,main,footer{padding:0 1.5rem}
h1{font-size:1.4rem;margin:1.2rem 0 .3rem}
.facts{color:var(--faint);margin:.2rem 0}
details{margin:.6rem 0 1rem}summary{cursor:pointer;font-weight:600}
#bar{position:sticky;top:0;z-index:2;background:var(--back);border-bottom:1px solid var(--line);padding:0 1.5rem}
form{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;padding:.6rem 0}
form[hidden]{display:none}
label{display:flex;gap:.4rem;align-items:center;color:var(--faint)}
input[type=search]{width:22rem;max-width:60vw}
input,select{font:inherit;padding:.25rem .4rem}
output{color:var(--faint);margin-left:auto}
#columns{display:flex;height:2rem;align-items:center;color:var(--faint);font-weight:600}
#columns span{padding-right:.8rem;box-sizing:border-box}
section{content-visibility:auto;contain-intrinsic-size:auto 12rem}
h2{position:sticky;top:var(--bar);z-index:1;background:var(--strip);margin:.8rem 0 0;padding:.35rem .6rem;
font-size:1rem;overflow-wrap:anywhere}
h2 small{color:var(--faint);font-weight:400;margin-left:.6rem}
table{width:100%;table-layout:fixed;border-collapse:collapse}
thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
td{padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
.c0{width:26%}.c1{width:14%}.c2{width:22%}.c3{width:13%}.c4{width:25%}
.act{white-space:nowrap}.use{color:var(--faint);font-size:.85em}
.none .use{color:var(--mark);background:var(--markback);border-radius:.25rem;padding:0 .25rem}
.faint{color:var(--faint)}
@media print{#bar,h2{position:static}form{display:none}section{content-visibility:visible}}
"""
_SCRIPT = """
"use strict";
(() => {
  const by = id => document.getElementById(id), bar = by("bar"), form = by("filter");
  const people = [...document.querySelectorAll("section")].map(section => {
    const who = section.querySelector("h2").textContent.toLowerCase();
    const rows = [...section.querySelectorAll("tbody tr")].map(row => ({
      row, text: who + " " + row.textContent.toLowerCase(), type: row.cells[1].textContent,
      unused: row.querySelector(".none") !== null}));
    return {section, kind: section.dataset.kind, rows};
  });
  const fill = (select, values) => [...new Set(values)].sort().forEach(value => {
    const option = document.createElement("option");
    option.textContent = option.value = value;
    select.append(option);
  });
  fill(by("kind"), people.map(one => one.kind));
  fill(by("type"), people.flatMap(one => one.rows.map(row => row.type)));
  by("unused-label").hidden = !people.some(one => one.rows.some(row => row.unused));
  const apply = () => {
    const words = by("search").value.toLowerCase().split(/\\s+/).filter(Boolean);
    const kind = by("kind").value, type = by("type").value, unused = by("unused").checked;
    let shown = 0, whos = 0;
    for (const one of people) {
      let here = 0;
      const fits = !kind || one.kind === kind;
      for (const {row, text, type: its, unused: idle} of one.rows) {
        const keep = fits && (!type || its === type) && (!unused || idle) && words.every(word => text.includes(word));
        row.hidden = !keep;
        here += keep;
      }
      one.section.hidden = !here;
      shown += here;
      whos += here > 0;
    }
    by("count").textContent = `${shown.toLocaleString("en")} rows of ${whos} of ${people.length} subjects`;
  };
  const search = () => {
    apply();
    // The first result, and not the place where another row was.
    const begin = document.querySelector("header").offsetHeight;
    if (scrollY > begin) scrollTo(0, begin);
  };
  let waiting;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", bar.offsetHeight + "px")).observe(bar);
  apply();
})();
"""


def render(head: Head, permissions: Iterable[Permission]) -> Iterator[str]:
    """The page, in lines. Each name and reason is text, whatever it has in it."""
    by_who: dict[tuple[str, str], list[Permission]] = defaultdict(list)
    for one in permissions:
        by_who[one.who, one.kind].append(one)
    has_uses = any(theirs[0].last_use is not UNSET for theirs in by_who.values())
    policy = (
        f"default-src 'none'; style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    facts = " · ".join(head.facts())
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="referrer" content="no-referrer">'
    yield f"<title>Access review {_text(head.made_at[:10])}</title>"
    yield f"<style>{_STYLE}</style></head><body>"
    yield f'<header><h1>Access review</h1><p class="facts">{_text(facts)}</p>'
    yield f'<p class="facts">{_LEGEND}</p>' if has_uses else ""
    yield f"<details open><summary>Not covered ({len(head.not_covered)})</summary><ul>"
    yield from (f"<li>{_text(gap)}</li>" for gap in head.not_covered)
    yield "</ul></details></header>"
    yield from _BAR
    yield "<main>"
    for (who, kind), theirs in by_who.items():
        yield from _section(who, kind, theirs)
    if not by_who:
        yield "<p>The policy allows nothing.</p>"
    yield f"</main><footer><p>{len(by_who):,} subjects</p></footer><script>{_SCRIPT}</script></body></html>"


_TITLES = "".join(f'<span class="c{number}">{title}</span>' for number, title in enumerate(_COLUMNS))
_HEADINGS = "".join(f'<th scope="col">{title}</th>' for title in _COLUMNS)
_WIDTHS = "".join(f'<col class="c{number}">' for number in range(len(_COLUMNS)))
_BAR = (
    '<div id="bar"><form id="filter" hidden>',
    '<label>Search <input type="search" id="search" autocomplete="off" placeholder="words in any column"></label>',
    '<label>Who <select id="kind"><option value="">everybody</option></select></label>',
    '<label>Type <select id="type"><option value="">all</option></select></label>',
    '<label id="unused-label"><input type="checkbox" id="unused"> without a use</label>',
    '<output id="count"></output></form>',
    f'<div id="columns" aria-hidden="true">{_TITLES}</div></div>',
)


def _section(who: str, kind: str, permissions: Sequence[Permission]) -> Iterator[str]:
    rows: dict[tuple[str, ...], list[Permission]] = defaultdict(list)
    for one in permissions:
        rows[one.type, one.id, one.team, one.layer, one.reason].append(one)
    much = f"{len(permissions):,} permission{'s' if len(permissions) > 1 else ''}"
    yield f'<section data-kind="{_text(kind)}"><h2>{_text(who)}<small>{_text(kind)}, {much}</small></h2>'
    yield f"<table><colgroup>{_WIDTHS}</colgroup><thead><tr>{_HEADINGS}</tr></thead><tbody>"
    for (type_, id_, team, layer, reason), may in sorted(rows.items()):
        cells = (
            ", ".join(map(_action, may)),
            _text(type_),
            _text(id_) if id_ else '<i class="faint">any</i>',
            _text(team) if team else '<i class="faint">common</i>',
            f'{_text(reason)} <span class="faint">({_text(layer)})</span>',
        )
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></section>"


def _action(one: Permission) -> str:
    if one.last_use is UNSET:
        return _text(one.action)
    kind, shown = _USES.get(one.last_use, ("act", one.last_use[:10]))
    return f'<span class="{kind}">{_text(one.action)} <span class="use">{_text(shown)}</span></span>'


def _text(text: str) -> str:
    return escape(escaped(text))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
