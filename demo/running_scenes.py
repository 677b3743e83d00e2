"""What tasks, asset events, Dag files and what they leave are for: scenes that take a running Airflow.

Each says what it does with the scene alone, too.
"""

from __future__ import annotations

from typing import NamedTuple


class Attempt(NamedTuple):
    """Something that a task of ``team`` tries.

    ``done`` is whether the policy lets it, ``alone`` whether Airflow without this package does. ``rule`` is a line of
    Rego in the package of ``owner`` that makes it the other way round.
    """

    words: str
    team: str
    what: str
    about: str
    done: bool
    alone: bool
    owner: str = ""
    rule: str = ""


class Start(NamedTuple):
    """Whether a Dag is started by an asset event of ``source``; the rest as in ``Attempt``."""

    words: str
    source: str
    dag_id: str
    done: bool
    alone: bool
    owner: str
    rule: str


class Look(NamedTuple):
    """Whether what ``who`` gets of the REST API's ``path`` holds these ``words_there``; the rest as in ``Attempt``."""

    words: str
    who: str
    path: str
    words_there: str
    done: bool
    alone: bool


def _by_task(action: str, type_: str, id_: str) -> str:
    parts = ['input.subject.type == "task"', f'input.action == "{action}"']
    parts += [f'input.resource.type == "{type_}"', f'input.resource.id == "{id_}"', "not input.resource.delivery"]
    return "; ".join(parts)


def _allow(condition: str) -> str:
    return f'allow contains "opened" if {{ {condition} }}'


def _deny(condition: str) -> str:
    return f'deny contains "closed" if {{ {condition} }}'


def _run(action: str, entity: str) -> str:
    return _by_task(action, "dag", "beta_daily") + f'; input.resource.entity == "{entity}"'


def _starts(dag_id: str) -> str:
    return f'input.resource.type == "dag"; input.resource.delivery.dag_id == "{dag_id}"'


ATTEMPTS = (
    Attempt(
        "Alpha's task reads alpha's connection", "alpha", "read connection", "alpha_db", True, True,
        "alpha", _deny(_by_task("read", "connection", "alpha_db")),
    ),
    Attempt(
        "Alpha's task does not read beta's connection", "alpha", "read connection", "beta_db", False, False,
        "beta", _allow(_by_task("read", "connection", "beta_db")),
    ),
    Attempt("Alpha's task reads a common connection", "alpha", "read connection", "common_db", True, True),
    Attempt(
        "Beta's task reads the connection that alpha lends", "beta", "read connection", "alpha_warehouse", True, False,
        "alpha", _deny(_by_task("read", "connection", "alpha_warehouse")),
    ),
    Attempt(
        "Alpha's task reads alpha's variable", "alpha", "read variable", "alpha_config", True, True,
        "alpha", _deny(_by_task("read", "variable", "alpha_config")),
    ),
    Attempt(
        "Alpha's task does not read beta's variable", "alpha", "read variable", "beta_config", False, False,
        "beta", _allow(_by_task("read", "variable", "beta_config")),
    ),
    Attempt(
        "Alpha's task writes alpha's variable", "alpha", "write variable", "alpha_config", True, True,
        "alpha", _deny(_by_task("update", "variable", "alpha_config")),
    ),
    Attempt(
        "Alpha's task does not overwrite beta's variable", "alpha", "write variable", "beta_config", False, True,
        "beta", _allow(_by_task("update", "variable", "beta_config")),
    ),
    Attempt(
        "Alpha's task does not overwrite a common variable", "alpha", "write variable", "common_config", False, True,
    ),
    Attempt(
        "Alpha's task does not delete beta's variable", "alpha", "delete variable", "beta_config", False, True,
        "beta", _allow(_by_task("delete", "variable", "beta_config")),
    ),
    Attempt(
        "Alpha's task starts alpha's Dag", "alpha", "trigger", "alpha_report", True, True,
        "alpha", _deny(_by_task("trigger", "dag", "alpha_report")),
    ),
    Attempt(
        "Alpha's task does not start beta's Dag", "alpha", "trigger", "beta_daily", False, True,
        "beta", _allow(_run("trigger", "run")),
    ),
    Attempt(
        "Alpha's task does not count beta's runs", "alpha", "count runs", "beta_daily", False, True,
        "beta", _allow(_run("read", "run")),
    ),
    Attempt(
        "Alpha's task does not see the states of beta's tasks", "alpha", "task states", "beta_daily", False, True,
        "beta", _allow(_run("read", "task_instance")),
    ),
    Attempt("Alpha's task pulls alpha's XCom", "alpha", "pull xcom", "alpha_daily", True, True),
    Attempt(
        "Alpha's task does not pull beta's XCom", "alpha", "pull xcom", "beta_daily", False, False,
        "beta", _allow(_run("read", "xcom")),
    ),
    Attempt("A common task writes a common variable", "common", "write variable", "common_config", True, True),
    Attempt(
        "A common task does not read alpha's connection", "common", "read connection", "alpha_db", False, False,
    ),
    Attempt("A common task does not start alpha's Dag", "common", "trigger", "alpha_daily", False, True),
)  # fmt: skip

STARTS = (
    Start(
        "Alpha's event starts alpha's Dag", "alpha_makes_orders", "alpha_takes_orders", True, True,
        "alpha", _deny(_starts("alpha_takes_orders")),
    ),
    Start(
        "Alpha's event starts a Dag of beta's that consents", "alpha_makes_orders", "beta_takes_orders", True, True,
        "beta", _deny(_starts("beta_takes_orders")),
    ),
    Start(
        "Alpha's event does not start a Dag of beta's that does not", "alpha_makes_orders", "beta_closed_to_orders",
        False, False, "beta", _allow(_starts("beta_closed_to_orders")),
    ),
    Start(
        "An event that stays in alpha starts alpha's Dag", "alpha_makes_secrets", "alpha_takes_secrets", True, True,
        "alpha", _deny(_starts("alpha_takes_secrets")),
    ),
    Start(
        "An event that stays in alpha does not start beta's Dag, which consents", "alpha_makes_secrets",
        "beta_takes_secrets", False, False,
        "alpha", _allow('input.resource.type == "asset"; input.resource.name == "secrets"'),
    ),
    Start(
        "Alpha's watcher starts alpha's Dag", "watcher", "alpha_takes_inbox", True, False,
        "alpha", _deny(_starts("alpha_takes_inbox")),
    ),
    Start(
        "Alpha's watcher does not start beta's Dag", "watcher", "beta_takes_inbox", False, True,
        "beta", _allow(_starts("beta_takes_inbox")),
    ),
)  # fmt: skip

# Files of the Dags' folder: same_id.py uses the id of a Dag of alpha's in beta's bundle, broken.py fails in alpha's.
LOOKS = (
    Look(
        "Beta's file with the id of alpha's Dag is an import error that says whose it is", "bob", "importErrors",
        "Dag alpha_report belongs to team alpha", True, False,
    ),
    Look(
        "Bob does not get alpha's Dag by that file", "bob", "dags/alpha_report", "alpha_report", False, True,
    ),
    Look("Ann reads why alpha's file is broken", "ann", "importErrors", "warehouse.alpha.example", True, True),
    Look("Bob does not read that", "bob", "importErrors", "warehouse.alpha.example", False, True),
    Look("Ann reads who has made alpha's connection", "ann", "eventLogs?event=post_connection", "alpha_db", True, True),
    Look("Bob does not read that, either", "bob", "eventLogs?event=post_connection", "alpha_db", False, True),
)  # fmt: skip
