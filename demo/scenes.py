"""The scenes, as a table: who asks for what, and what the policy has to make of it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Edit(NamedTuple):
    """A change of a policy file before a step; an empty ``old`` appends ``new``."""

    file: str
    old: str
    new: str


class Step(NamedTuple):
    """One request. ``shows`` are the ids that a list must show, no more and no less.

    ``reason`` is what a refusal has to tell. An ``edit`` is made first, and has to take effect without a restart.
    """

    who: str
    method: str
    path: str
    status: int
    shows: frozenset[str] | None = None
    reason: str = ""
    body: dict[str, Any] | None = None
    edit: Edit | None = None


class Scene(NamedTuple):
    """One thing worth seeing, in words, and the steps that show it."""

    words: str
    steps: tuple[Step, ...]


def _list(who: str, path: str, *shows: str) -> Step:
    return Step(who, "GET", path, 200, frozenset(shows))


def _read(who: str, path: str, edit: Edit | None = None) -> Step:
    return Step(who, "GET", path, 200, edit=edit)


def _refused(
    who: str, method: str, path: str, reason: str, body: dict[str, Any] | None = None, edit: Edit | None = None
) -> Step:
    return Step(who, method, path, 403, None, reason, body, edit)


_WAREHOUSE = {"connection_id": "alpha_warehouse", "conn_type": "sqlite", "host": "elsewhere"}
_SHARED = {"connection_id": "alpha_db", "conn_type": "sqlite", "team_name": None}
_LAB = {"connection_id": "alpha_lab", "conn_type": "sqlite", "team_name": "alpha"}
_COMMON_POOL = {"pool": "common_pool", "slots": 99, "include_deferred": False}
_PAGES = ("Required Actions", "Assets", "Audit Log", "Config", "Dags", "Deadlines", "Docs", "Jobs", "Plugins", "Pools")
_PAGES_OF_A_VIEWER = (*_PAGES, "Providers", "XComs")
_CLOSED = 'deny contains "alpha_db moves house" if input.resource.id == "alpha_db"\n'
_ALPHA = "teams/alpha/alpha.rego"

SCENES = (
    Scene(
        "Ann sees her team's connections and the common ones. Alpha's audit_store is not among them: see 10",
        (_list("ann", "connections", "alpha_db", "alpha_warehouse", "common_db"), _read("ann", "connections/alpha_db")),
    ),
    Scene(
        "Bob of team beta does not get at what is alpha's, and reads why",
        (
            _refused("bob", "GET", "connections/alpha_db", "that takes the role op in team alpha"),
            _refused("bob", "DELETE", "variables/alpha_config", "that takes the role op in team alpha"),
        ),
    ),
    Scene(
        "Alpha lends its warehouse to beta, by a rule of its own: to read, not to change",
        (
            _read("bob", "connections/alpha_warehouse"),
            _refused("bob", "PATCH", "connections/alpha_warehouse", "may not update", _WAREHOUSE),
            _list("bob", "connections", "alpha_warehouse", "beta_db", "common_db"),
        ),
    ),
    Scene(
        "What is common is read by both teams and changed by the platform only",
        (
            _read("bob", "connections/common_db"),
            _refused("ann", "PATCH", "pools/common_pool", "takes the role admin on the platform", _COMMON_POOL),
        ),
    ),
    Scene(
        "Ann cannot declassify: make her team's connection everybody's",
        (
            _refused("ann", "PATCH", "connections/alpha_db", "takes the role admin on the platform", _SHARED),
            _refused("bob", "GET", "connections/alpha_db", "that takes the role op in team alpha"),
        ),
    ),
    Scene(
        "Bob cannot put a connection into team alpha; Ann can",
        (
            _refused("bob", "POST", "connections", "in team alpha", _LAB),
            Step("ann", "POST", "connections", 201, body=_LAB),
            Step("ann", "DELETE", "connections/alpha_lab", 204),
        ),
    ),
    Scene(
        "Alpha keeps its interns from the production pool, though their role would do",
        (
            _refused("ivy", "GET", "pools/alpha_production", "interns stay away from alpha's production pool"),
            _read("ann", "pools/alpha_production"),
            _list("ivy", "pools", "default_pool", "common_pool", "alpha_pool"),
        ),
    ),
    Scene(
        "Vic of team beta sees beta's Dags and the common ones, and starts none",
        (
            _list("vic", "dags?tags=plain", "beta_daily", "common_cleanup"),
            _refused("vic", "GET", "dags/alpha_daily", "that takes the role viewer in team alpha"),
            _refused(
                "vic", "POST", "dags/beta_daily/dagRuns", "takes the role user in team beta", {"logical_date": None}
            ),
        ),
    ),
    Scene(
        "The menu holds what one may list: connections and variables for Bob, not for Vic",
        (
            _list("vic", "/ui/auth/menus", *_PAGES_OF_A_VIEWER),
            _list("bob", "/ui/auth/menus", *_PAGES_OF_A_VIEWER, "Connections", "Variables"),
        ),
    ),
    Scene(
        "A guardrail of the platform goes before every role: audit_store is the platform's to read",
        (
            _refused("ann", "GET", "connections/audit_store", "the audit connection is read by the platform only"),
            _read("pat", "connections/audit_store"),
        ),
    ),
    Scene(
        "The platform's admin sees everything; a rule of the site shows one variable to everyone",
        (
            _list("pat", "connections", "alpha_db", "alpha_warehouse", "audit_store", "beta_db", "common_db"),
            _read("vic", "variables/announcement"),
            _refused("vic", "GET", "variables/common_config", "that takes the role op"),
        ),
    ),
    Scene(
        "One line more in alpha's Rego, one line less: in force without a restart",
        (
            _refused("ann", "GET", "connections/alpha_db", "alpha_db moves house", edit=Edit(_ALPHA, "", _CLOSED)),
            _read("ann", "connections/alpha_db", Edit(_ALPHA, _CLOSED, "")),
        ),
    ),
)
