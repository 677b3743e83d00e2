"""What lists have to know of the rules.

Finds the packages whose rules look at a resource's kind only: lists ask those once for all resources of a kind. A kind
is everything of a resource but its id. And it finds what rules read of the subject's teams, because a list finds that
out once for all resources.

Looks at the text of rules, because parsing those of a thousand teams would take longer than compiling them. So whatever
is not certain counts as a look at ids: then a list asks about each resource, as ever. Uses the standard library only,
as ``compile`` does.
"""

from __future__ import annotations

import json
import re
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
# What takes long to find out of a subject of many teams, apart from `platform_roles`, which the shipped policy reads.
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

    ``site``: the names in ``data.airflow.authz.standing`` that rules of the platform read of a subject of many teams.
    ``teams``: the same of each team whose rules read one. A rule that hides such a name is slow in lists, not wrong.
    """
    site: set[str] = set()
    teams: dict[str, set[str]] = {}
    for path, text in files.items():
        if not path.endswith(".rego") or path.startswith(_SHIPPED) or b"standing" not in text:
            continue
        rules = _COMMENT.sub(b"", text)
        names = {name for name in _OF_ALL_TEAMS if b"standing" in rules and name.encode() in rules}
        if team := _team(path):
            teams.setdefault(team, set()).update(names)
        else:
            site |= names
    found = {"site": sorted(site), "teams": {team: sorted(names) for team, names in teams.items() if names}}
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
