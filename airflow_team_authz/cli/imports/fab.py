"""``team-authz import fab``: FAB's roles and permissions as role table, directory and rules that decide the same.

FAB asks for pairs of a verb (``can_read``) and a name (``Connections``, ``DAG:etl``), whatever roles they come from.
Here the role table says what each role allows by itself; the rest is in ``airflow/site/imported`` and, for single Dags
of a team, in ``teams/<id>/imported``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any

import typer

from airflow_team_authz.cli.imports.fab_database import FabDatabase, read_fab
from airflow_team_authz.cli.imports.translation import (
    DIRECTORY,
    ROLES,
    SITE_DATA,
    DirectoryArgument,
    ForceOption,
    Translation,
    Untranslated,
    check_directory,
    data_file,
    finish,
    rules,
    team_files,
)
from airflow_team_authz.cli.init import Files
from airflow_team_authz.cli.support.console import Output, OutputOption, UserError
from airflow_team_authz.team_ids import FORM, is_team_id

Roles = list[str]
Table = dict[str, dict[str, Roles]]

# Which names FAB looks at: for a resource type, a part of a Dag (all of them), a view.
TYPES = {
    "asset": "Assets",
    "asset_alias": "Asset Aliases",
    "configuration": "Configurations",
    "connection": "Connections",
    "pool": "Pools",
    "variable": "Variables",
}
PARTS = {
    "audit_log": ["Audit Logs"],
    "code": ["DAG Code"],
    "dependencies": ["DAG Dependencies"],
    "hitl_detail": ["HITL Detail"],
    "run": ["DAG Runs"],
    "task": ["Task Instances"],
    "task_instance": ["DAG Runs", "Task Instances"],
    "task_logs": ["Task Logs"],
    "version": ["DAG Versions"],
    "warning": ["DAG Warnings"],
    "xcom": ["XComs"],
}
VIEWS = {
    "cluster_activity": "Cluster Activity",
    "docs": "Documentation",
    "import_errors": "ImportError",
    "jobs": "Jobs",
    "plugins": "Plugins",
    "providers": "Providers",
    "triggers": "Triggers",
    "website": "Website",
}
# FAB's own pages whose links have another text than the permission that shows them.
LINKS = {"Users": "List Users", "Roles": "List Roles", "Permissions": "Permission Pairs"}
# Menu items: the name that FAB looks at, and the type or part of a Dag that decides here.
MENU = {
    "Assets": ("Assets", "asset"),
    "Audit Log": ("Audit Logs", "audit_log"),
    "Config": ("Configurations", "configuration"),
    "Connections": ("Connections", "connection"),
    "Dags": ("DAGs", "dag"),
    "Deadlines": ("DAG Runs", "run"),
    "Docs": ("Documentation", "docs"),
    "Jobs": ("Jobs", "jobs"),
    "Plugins": ("Plugins", "plugins"),
    "Pools": ("Pools", "pool"),
    "Providers": ("Providers", "providers"),
    "Required Actions": ("HITL Detail", "hitl_detail"),
    "Variables": ("Variables", "variable"),
    "XComs": ("XComs", "xcom"),
}
_VERBS = {
    "list": "can_read", "read": "can_read", "create": "can_create", "update": "can_edit", "delete": "can_delete",
}  # fmt: skip
# What the methods of a request are called here, and a permission's verb cannot be: see questions.custom_view.
_METHODS = {"read", "create", "update", "delete", "menu"}
_ONE_DAG = ("DAG:", "DAG Run:")
_SMALL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def import_fab(
    directory: DirectoryArgument,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="SQLAlchemy URL of the Airflow database. Default: that of Airflow's configuration. To keep a password "
            "off the command line, set AIRFLOW__DATABASE__SQL_ALCHEMY_CONN instead.",
        ),
    ] = None,
    force: ForceOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Translate FAB's roles and permissions, also custom roles and single Dags, into a policy that decides the same.

    Exit code 0: it translated all rights. 1: it wrote a policy, and lists the other rights. 2: it wrote nothing.

    FAB has no teams, so every role applies to all of them. Change that in airflow/directory/data.json.
    """
    check_directory(directory)
    address, schema = (database, None) if database is not None else _configured()
    finish(directory, translate(read_fab(address, schema)), force, output)


def translate(database: FabDatabase) -> Translation:
    """The policy that decides as FAB does with this database."""
    fab = _Fab(database)
    data = {"views": VIEWS, "parts": PARTS, "links": LINKS, "permissions": fab.permissions, "dags": fab.dags(None)}
    files: Files = {
        **rules("fab"),
        ROLES: data_file(fab.role_table()),
        DIRECTORY: data_file(fab.directory()),
        SITE_DATA: data_file(data),
    }
    for team in sorted(fab.teams):
        files |= team_files("fab", team, {"dags": fab.dags(team)})
    advice = f"Every role applies to all teams. For one team only, replace the null by its id in {DIRECTORY}."
    return Translation(files, [*fab.untranslated()], advice)


def _configured() -> tuple[str, str | None]:
    """Address and schema of the configured Airflow's database."""
    try:
        from airflow_team_authz.settings import read_database

        return read_database()
    except Exception as error:  # of the configuration, a command or a secrets back end, which may show what it read
        raise UserError(
            f"Airflow's configuration does not name its database ({type(error).__name__}): name it by --database"
        ) from None


class _Fab:
    """A FAB database in the words of the policy."""

    def __init__(self, database: FabDatabase) -> None:
        self._database = database
        self._same: dict[str, Roles] = defaultdict(list)
        for role in sorted(database.roles):
            self._same[role.translate(_SMALL)].append(role)
        # Ours by FAB's: those that can be told from each other.
        self._names = {roles[0]: name for name, roles in self._same.items() if len(roles) == 1 and name}

    def role_table(self) -> dict[str, Any]:
        """``airflow/roles/data.json``."""
        return {
            "includes": {name: [] for name in sorted(self._names.values())},
            # The admin of one team is no admin of what all share, should somebody make it a role of one team.
            "platform": [self._names[role] for role in ("Admin",) if role in self._names],
            "permissions": self._types() | self._parts(),
            "common": {},
        }

    def directory(self) -> dict[str, Any]:
        """``airflow/directory/data.json``: every role is held for the platform."""
        roles = {role: [{"team_id": None, "role": name}] for role, name in sorted(self._names.items())}
        return {"groups": {}, "roles": roles}

    @cached_property
    def permissions(self) -> Table:
        """All permissions but those on single Dags: for each name and verb, the roles that have it."""
        return self._table(name for name in self._holders if not name.startswith(_ONE_DAG))

    def dags(self, team: str | None) -> Table:
        """Permissions on single Dags that the team owns, or that are common or not there."""
        return self._table(name for name in self._holders if name.startswith(_ONE_DAG) and self._owner(name) == team)

    @cached_property
    def teams(self) -> set[str]:
        """Teams that own such Dags."""
        owners = {self._owner(name) for name in self._holders if name.startswith(_ONE_DAG)}
        return {team for team in owners if team is not None and is_team_id(team)}

    def untranslated(self) -> Iterator[Untranslated]:
        """Where the policy decides differently, whoever is asked about."""
        yield from self._roles_without_a_name()
        yield from self._groups_with_roles()
        yield from self._verbs_that_are_methods()
        yield from self._teams_without_a_package()
        yield from self._menu()

    @cached_property
    def _holders(self) -> dict[str, dict[str, set[str]]]:
        found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for role, name in self._names.items():
            for verb, about in self._database.roles[role]:
                if verb not in _METHODS:
                    found[about][verb].add(name)
        return found

    def _held(self, verb: str, about: str) -> set[str]:
        return self._holders.get(about, {}).get(verb, set())

    def _owner(self, name: str) -> str | None:
        return self._database.owners.get(name.partition(":")[2])

    def _table(self, names: Iterator[str]) -> Table:
        return {
            name: {verb: sorted(roles) for verb, roles in sorted(self._holders[name].items())} for name in sorted(names)
        }

    def _types(self) -> Table:
        table = {
            type_: {action: sorted(self._held(verb, name)) for action, verb in _VERBS.items()}
            for type_, name in TYPES.items()
        }
        table["dag"] = {action: sorted(self._held(verb, "DAGs")) for action, verb in _VERBS.items()}
        table["dag"]["list"] = sorted(self._listing_dags)
        # FAB does not answer for teams. Whoever may list Dags sees whose they are.
        table["team"] = {"list": table["dag"]["list"], "read": table["dag"]["list"]}
        some = {
            type_: {action: roles for action, roles in row.items() if roles} for type_, row in sorted(table.items())
        }
        return {type_: row for type_, row in some.items() if row}

    def _parts(self) -> Table:
        """Every part with every action: what is left out would be decided by the Dag alone."""
        table: Table = {}
        for part, names in PARTS.items():
            row = {
                action: sorted(set.intersection(*(self._held(verb, name) for name in names), self._of_dag(action)))
                for action, verb in _VERBS.items()
            }
            table[f"dag.{part}"] = row | ({"trigger": row["create"]} if part == "run" else {})
        return table

    def _of_dag(self, action: str) -> set[str]:
        """Roles that may do with every Dag what the action takes of the Dag itself."""
        if action == "list":
            return self._listing_dags
        return self._held("can_read" if action == "read" else "can_edit", "DAGs")

    @cached_property
    def _listing_dags(self) -> set[str]:
        """Roles that may read Dags, or at least one of them."""
        single = [name for name in self._holders if name.startswith("DAG:")]
        return self._held("can_read", "DAGs").union(*(self._held("can_read", name) for name in single))

    def _roles_without_a_name(self) -> Iterator[Untranslated]:
        for name, roles in sorted(self._same.items()):
            if len(roles) > 1:
                yield Untranslated(
                    f"roles {_quoted(roles)}",
                    "they differ in case only, and are the same role here, so they allow nothing",
                    "rename all but one of them in FAB, and import again",
                )
            elif not name:
                yield Untranslated(
                    'role ""', "it has no name, so it allows nothing", "name it in FAB, and import again"
                )

    def _groups_with_roles(self) -> Iterator[Untranslated]:
        for group, roles in sorted(self._database.groups.items()):
            yield Untranslated(
                f'group "{group}"',
                f"here its roles {_quoted(roles)} apply to its members; FAB's decisions use people's own roles only",
                "take the roles from the group in FAB, unless its members are to have them",
            )

    def _verbs_that_are_methods(self) -> Iterator[Untranslated]:
        for role in sorted(self._names):
            for verb, about in sorted(self._database.roles[role]):
                if verb in _METHODS:
                    yield Untranslated(
                        f'permission {verb} on "{about}" of role "{role}"',
                        f"here {verb} is the action of a request and needs {_fab_verb(verb)}, so it allows nothing",
                        "write an allow in airflow/site/site.rego if a plugin asks for it",
                    )

    def _teams_without_a_package(self) -> Iterator[Untranslated]:
        for name in sorted(self._holders):
            owner = self._owner(name) if name.startswith(_ONE_DAG) else None
            if owner is not None and owner not in self.teams:
                yield Untranslated(
                    f'permissions on "{name}"',
                    f'the id of the team that owns it, "{owner}", cannot have rules, so they allow nothing',
                    f"a team id is {FORM}",
                )

    def _menu(self) -> Iterator[Untranslated]:
        for item, (name, target) in MENU.items():
            theirs, takes = self._held("menu_access", name), self._takes(target)
            ours = set.intersection(*takes)
            changes = [
                f"{word} {_quoted(sorted(roles))}"
                for word, roles in (("now shown to", ours - theirs), ("no longer shown to", theirs - ours))
                if roles
            ]
            # Several roles of which each has a part of what it takes.
            if not changes and all(roles - theirs for roles in takes):
                changes = ["now shown to people with several roles that allow it together"]
            if changes:
                yield Untranslated(
                    f'menu item "{item}"',
                    f"here people see it who may list its target: {', '.join(changes)}",
                    "nothing, unless you miss the item: the policy decides about the page as FAB does",
                )

    def _takes(self, target: str) -> list[set[str]]:
        """Sets of roles: whoever holds one of each may list it."""
        if target in PARTS:
            return [*(self._held("can_read", name) for name in PARTS[target]), self._listing_dags]
        if target in VIEWS:
            return [self._held("menu_access" if target == "docs" else "can_read", VIEWS[target])]
        return [self._listing_dags if target == "dag" else self._held("can_read", TYPES[target])]


def _fab_verb(action: str) -> str:
    return _VERBS.get(action, "menu_access")


def _quoted(names: Roles) -> str:
    return ", ".join(f'"{name}"' for name in names)
