"""Facts about rules that make lists fast: which packages ignore the id of a resource, and which read all teams.

A list asks the rules of a package that ignores ids once for all resources of a kind. A kind is everything of a resource
but its id. And a list finds out all teams and roles of the subject once, if a rule reads them.

Looks at the text of rules, because parsing those of a thousand teams would take longer than compiling them. So whatever
is not certain counts as a look at ids: then a list asks about each resource. A read of all teams that is not found
makes lists slow, and changes no answer. Uses the standard library only, as ``compile`` does.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping

# Where a bundle says it. Policies of people cannot: a bundle that is built has what is found here.
REGARDLESS_OF_ID = "airflow/regardless_of_id/data.json"
READ_OF_STANDING = "airflow/read_of_standing/data.json"

_SHIPPED = "airflow/authz/"
_END = rb"(?![A-Za-z0-9_])"
_ROOT = re.compile(rb"(?<![A-Za-z0-9_])(?P<root>input|data)" + _END)
# What a rule may read of a question. The question as a whole has the id, and so has the resource as a whole.
_WITHOUT_ID = re.compile(
    rb"\.(?:subject|action|context|resource\.(?:type|team_id|entity|name|uri|group|delivery))" + _END
)
# Packages that a rule may read: what the shipped policy knows of the subject, and the platform's, which count as well.
_OF_PLATFORM = re.compile(
    rb"\.(?:airflow\.authz\.standing|airflow\.(?!authz%b)[a-z_]+|(?!(?:airflow|teams)%b)[a-z_]+)%b" % (_END, _END, _END)
)
# Data and rules of a team. One pattern for all teams: to make one for each takes longer than all the rest.
_OF_TEAM = re.compile(rb"""\.teams(?:\.(?P<name>[A-Za-z0-9_]+)|\["(?P<text>[^"]*)"\])""")
# The names in `standing` that take long for a subject of many teams. A list always finds out `platform_roles`, because
# the shipped policy reads them.
_OF_ALL_TEAMS = ("team_ids", "team_roles")
# A line of a comment. In a text of several lines it would hold code only with one of the letters that are missing here.
_COMMENT = re.compile(rb"^[ \t]*#[^`{\r\n]*$", re.MULTILINE)


def regardless_of_id(files: Mapping[str, bytes]) -> bytes:
    """``REGARDLESS_OF_ID`` of a policy, by the paths of its files: JSON.

    ``site``: no rule of the platform looks at ids. ``teams``: the same of each team that has files. ``others``: of
    teams that have none.
    """
    site, teams = True, {team: True for team in map(_team, files) if team}
    for name, text in files.items():
        if not name.endswith(".rego") or name.startswith(_SHIPPED):
            continue
        if team := _team(name):
            teams[team] &= not looks_at_ids(text, team)
        else:
            site &= not looks_at_ids(text)
    return json.dumps({"others": True, "site": site, "teams": teams}, separators=(",", ":"), sort_keys=True).encode()


def read_of_standing(files: Mapping[str, bytes]) -> bytes:
    """``READ_OF_STANDING`` of a policy, by the paths of its files: JSON.

    ``site``: the names in ``data.airflow.authz.standing`` that rules of the platform read and that take long for a
    subject of many teams. ``teams``: the same of each team whose rules read one.
    """
    rules: defaultdict[str, bytes] = defaultdict(bytes)
    for path, text in files.items():
        if path.endswith(".rego") and not path.startswith(_SHIPPED):
            # One file may name the package, and another one what it reads of it.
            rules[_team(path)] += _COMMENT.sub(b"", text) + b"\n"
    read = {
        owner: [name for name in _OF_ALL_TEAMS if name.encode() in text]
        for owner, text in rules.items()
        if b"standing" in text
    }
    found = {"site": read.pop("", []), "teams": {team: names for team, names in read.items() if names}}
    return json.dumps(found, separators=(",", ":"), sort_keys=True).encode()


def looks_at_ids(rego: bytes, team: str = "") -> bool:
    """Whether rules may look at the id of a resource. ``team``: the one whose package they are."""
    text = _COMMENT.sub(b"", rego)
    return not all(_is_known(found, team.encode()) for found in _ROOT.finditer(text))


def _is_known(root: re.Match[bytes], team: bytes) -> bool:
    """Whether what a rule reads there is something without the id. ``team``: empty for the platform."""
    text, end = root.string, root.end()
    if root["root"] == b"input":
        return _WITHOUT_ID.match(text, end) is not None
    own = _OF_TEAM.match(text, end) if team else None
    return _OF_PLATFORM.match(text, end) is not None or (own is not None and team in own.groups())


def _team(name: str) -> str:
    """The team whose file this is; empty for one of the platform."""
    parts = name.split("/")
    return parts[1] if parts[0] == "teams" and len(parts) > 2 else ""
