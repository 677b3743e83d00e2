"""``team-authz import keycloak``: permissions of Airflow's Keycloak auth manager as role table, directory and rules.

The manager asks Keycloak for a scope (``GET``, ``LIST``, …) of a resource: ``Connection:alpha`` is team alpha's,
``Connection`` what is common. Its own commands grant them to who has a role and is in the team's group, and to
``SuperAdmin`` for all teams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.console import Output, OutputOption
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
from airflow_team_authz.cli.words import TEAM_ID

if TYPE_CHECKING:
    from airflow_team_authz.cli.imports.keycloak_settings import Holder, KeycloakSettings

Table = dict[str, dict[str, list[str]]]

SUPER_ADMIN = "SuperAdmin"
# What the manager asks for, by type; those with a team have resources of each team's.
OF_TEAMS = {"connection": "Connection", "dag": "Dag", "pool": "Pool", "team": "Team", "variable": "Variable"}
SHARED = {"asset": "Asset", "asset_alias": "AssetAlias", "configuration": "Configuration", "custom_view": "Custom"}
_SCOPES = {"list": "LIST", "read": "GET", "create": "POST", "update": "PUT", "delete": "DELETE"}
_SMALL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_ADVICE = (
    "The platform's admins have the role superadmin here: where airflow/site names admin, it is a team's.\n"
    "Groups have to be in the access token, or nobody is in a team: in Keycloak, Clients, your client, Client scopes, "
    "the mapper for groups, switch on Add to access token. The mapper of the manager's own commands has it off."
)


def import_keycloak(
    settings: Annotated[
        Path,
        typer.Argument(
            metavar="SETTINGS.json",
            help="The client's authorization settings: in Keycloak's admin console Clients, Authorization, Export.",
        ),
    ],
    directory: DirectoryArgument,
    client_id: Annotated[
        str, typer.Option(help="Airflow's client, whose own roles count like the realm's.")
    ] = "airflow",
    force: ForceOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write what Airflow's Keycloak auth manager allows, by roles and teams' groups, as a policy that decides the same.

    Exit code 0: all of it. 1: written, but for what the list at the end names. 2: nothing was written.

    Keycloak is not asked. Its permissions are not asked any more either when this policy decides.
    """
    from airflow_team_authz.cli.imports.keycloak_settings import read_settings_file

    check_directory(directory)
    finish(directory, translate(read_settings_file(settings, client_id)), force, output)


def translate(settings: KeycloakSettings) -> Translation:
    """The policy that decides as the settings do, and where it does not."""
    return _Import(settings).translation()


class _Import:
    """Collects role table and rules; what fits into neither is in ``left``."""

    def __init__(self, settings: KeycloakSettings) -> None:
        self._settings = settings
        self.left: list[Untranslated] = list(settings.problems)
        self._names: dict[str, str] = {}
        self._reaching: set[str] = set()
        self._odd: set[str] = set()
        self._teams = sorted(self._found_teams())

    def translation(self) -> Translation:
        """Everything at once."""
        of_team = {team: self._of_team(team) for team in self._teams}
        common, members = self._common()
        in_all = _in_all(of_team.values())
        extra = {team: _without(table, in_all) for team, table in of_team.items()}
        roles: dict[str, Any] = {
            "includes": {role: self._included(role, [*of_team.values(), common]) for role in sorted(self._names)},
            "platform": [role for role in self._names if role == _small(SUPER_ADMIN)],
            "permissions": in_all | {"custom_view": {"*": []}},
            "common": common,
        }
        files: Files = {
            ROLES: data_file(roles),
            DIRECTORY: data_file({"groups": {team: [{"team_id": team}] for team in self._teams}}),
            **rules("keycloak"),
            SITE_DATA: data_file({"members": members}),
        }
        for team, table in extra.items():
            if table:
                files |= team_files("keycloak", team, {"permissions": table})
        return Translation(files, [*self.left, *self._more()], _ADVICE)

    def _included(self, role: str, tables: Iterable[Table]) -> list[str]:
        """So that rules about platform admins count for who may all that an admin may, in every team."""
        may = [roles for table in tables for actions in table.values() for roles in actions.values()]
        whole = role == _small(SUPER_ADMIN) and "admin" in self._names
        return ["admin"] if whole and all(role in roles for roles in may if "admin" in roles) else []

    def _found_teams(self) -> Iterator[str]:
        names = set(OF_TEAMS.values())
        teams = {name.partition(":")[2] for name in self._settings.resources if name.partition(":")[0] in names}
        for team in teams - {""}:
            if TEAM_ID.fullmatch(team):
                yield team
            else:
                self.left.append(
                    Untranslated(f"team {team!r}", "Airflow has no teams of such a name", "rename it, and import again")
                )

    def _of_team(self, team: str) -> Table:
        """What roles may in a team, by type and action."""
        table: Table = {}
        for type_, resource in OF_TEAMS.items():
            for action, scope in _actions(type_):
                found = self._settings.holders(f"{resource}:{team}", scope)
                table.setdefault(type_, {})[action] = self._held_in(team, f"{scope} of {resource}:{team}", found)
        return table

    def _held_in(self, team: str, what: str, found: Iterable[Holder]) -> list[str]:
        roles: set[str] = set()
        for holder in found:
            if len(holder.roles) == 1 and holder.groups == {team}:
                roles.update(map(self._role, holder.roles))
            elif holder.roles == {SUPER_ADMIN} and not holder.groups:
                roles.add(self._role(SUPER_ADMIN))
            elif len(holder.roles) == 1 and not holder.groups:
                self._reaching.update(holder.roles)
            else:
                self._odd.add(f"{what} for {_words(holder)}")
        return sorted(roles)

    def _common(self) -> tuple[Table, dict[str, dict[str, Table]]]:
        """What roles may with what is common to all teams, and what roles of teams' members may."""
        common: Table = {}
        members: dict[str, dict[str, Any]] = {}
        for type_, resource in {**OF_TEAMS, **SHARED, "view": "View"}.items():
            for action, scope in _actions(type_):
                held, of_members = self._held_by_all(scope, resource)
                common.setdefault(type_, {})[action] = held
                if of_members:
                    members.setdefault(type_, {})[action] = of_members
        return common, members

    def _held_by_all(self, scope: str, resource: str) -> tuple[list[str], dict[str, list[str]]]:
        held: set[str] = set()
        members: dict[str, list[str]] = {}
        for holder in sorted(self._settings.holders(resource, scope), key=_words):
            if len(holder.roles) == 1 and not holder.groups:
                held.update(map(self._role, holder.roles))
            elif len(holder.roles) == 1 and len(holder.groups) == 1 and holder.groups <= set(self._teams):
                (role,), (team,) = holder
                members.setdefault(team, []).append(self._role(role))
            else:
                self._odd.add(f"{scope} of {resource} for {_words(holder)}")
        return sorted(held), members

    def _role(self, name: str) -> str:
        small = _small(name)
        if self._names.setdefault(small, name) != name:
            self.left.append(
                Untranslated(f"role {name}", f"it is the same here as {self._names[small]}", "rename one of them")
            )
        return small

    def _more(self) -> Iterator[Untranslated]:
        unbound = f" (by {', '.join(self._settings.unbound)})" if self._settings.unbound else ""
        for role in sorted(self._reaching):
            entry = f'"{role}": [{{"team_id": null, "role": "{_small(role)}"}}]'
            yield Untranslated(
                f"role {role}",
                f"whoever has it reaches resources of teams whose group they are not in{unbound}; not so here",
                f"if that is meant, write {entry} into roles of {DIRECTORY}",
            )
        for what in sorted(self._odd):
            yield Untranslated(what, "it takes more than one role, or a group without one", "write it as a rule")
        if any(self._settings.holders(name, "MENU") for name in self._settings.resources):
            yield Untranslated(
                "menu items", "an item is shown to whoever may list what it leads to", "nothing, or change those rights"
            )


def _actions(type_: str) -> Iterator[tuple[str, str]]:
    for action, scope in _SCOPES.items():
        # The manager never names the team that it asks about, and what is not named is listed. A view it only reads.
        yield action, {"team": {"GET": "LIST"}, "view": {"LIST": "GET"}}.get(type_, {}).get(scope, scope)
    if type_ == "dag":
        yield "trigger", "POST"


def _in_all(tables: Iterable[Table]) -> Table:
    """What every one of the tables allows."""
    every = list(tables)
    return {
        type_: {
            action: sorted(set(roles).intersection(*(table[type_][action] for table in every)))
            for action, roles in actions.items()
        }
        for type_, actions in (every[0].items() if every else ())
    }


def _without(table: Table, other: Table) -> Table:
    """What a table allows and the other does not."""
    rest = {
        type_: {
            action: more
            for action, roles in actions.items()
            if (more := sorted(set(roles) - set(other[type_][action])))
        }
        for type_, actions in table.items()
    }
    return {type_: actions for type_, actions in rest.items() if actions}


def _words(holder: Holder) -> str:
    roles, groups = (" and ".join(sorted(names)) for names in holder)
    return ", ".join(part for part in (roles and f"role {roles}", groups and f"group {groups}") if part) or "everybody"


def _small(name: str) -> str:
    return name.translate(_SMALL)
