"""``team-authz import keycloak``: permissions of Airflow's Keycloak auth manager as role table, directory and rules.

The manager asks Keycloak for a scope (``GET``, ``LIST``, …) of a resource: ``Connection:alpha`` is team alpha's,
``Connection`` what is common. Its own commands grant them to who has a role and is in the team's group, and to
``SuperAdmin`` for all teams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.imports.keycloak_holders import Holder
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
from airflow_team_authz.cli.support.console import Output, OutputOption
from airflow_team_authz.team_ids import is_team_id

if TYPE_CHECKING:
    from airflow_team_authz.cli.imports.keycloak_settings import KeycloakSettings

Table = dict[str, dict[str, list[str]]]
# By type, action and team: roles.
Members = dict[str, dict[str, dict[str, list[str]]]]

SUPER_ADMIN = "SuperAdmin"
# What the manager asks for, by type; those with a team have resources of each team's.
OF_TEAMS = {"connection": "Connection", "dag": "Dag", "pool": "Pool", "team": "Team", "variable": "Variable"}
COMMON = {
    **OF_TEAMS, "asset": "Asset", "asset_alias": "AssetAlias", "configuration": "Configuration",
    "custom_view": "Custom", "view": "View",
}  # fmt: skip
# Menu items, and the type that decides here.
MENU = {
    "Assets": "asset",
    "Audit Log": "dag",
    "Config": "configuration",
    "Connections": "connection",
    "Dags": "dag",
    "Deadlines": "dag",
    "Docs": "view",
    "Jobs": "view",
    "Plugins": "view",
    "Pools": "pool",
    "Providers": "view",
    "Required Actions": "dag",
    "Variables": "variable",
    "XComs": "dag",
}
_SCOPES = {"list": "LIST", "read": "GET", "create": "POST", "update": "PUT", "delete": "DELETE"}
_SMALL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_ADVICE = (
    "The platform's admins have the role superadmin here: where airflow/site names admin, it is a team's.\n"
    "Groups have to be in the access token, or nobody is in a team: in Keycloak, Clients, your client, Client scopes, "
    "the mapper for groups, switch on Add to access token. The mapper of the manager's own commands has it off.\n"
    "Do not give a group inside of another one the name of a team: the token has its name without the path, so it is "
    "the same as the team's group."
)


def import_keycloak(
    settings: Annotated[
        Path,
        typer.Argument(
            metavar="SETTINGS.json",
            help="The client's exported authorization settings: Clients, Authorization, Export in the admin console.",
        ),
    ],
    directory: DirectoryArgument,
    client_id: Annotated[str, typer.Option(help="Airflow's client. Its roles apply like the realm's.")] = "airflow",
    force: ForceOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Translate the rights that Airflow's Keycloak auth manager gives by roles and groups into a policy.

    Exit code 0: it translated all rights. 1: it wrote a policy, and lists the other rights. 2: it wrote nothing.

    The command does not connect to Keycloak. When this policy decides, Keycloak's permissions have no effect any more.
    """
    from airflow_team_authz.cli.imports.keycloak_settings import read_settings_file

    check_directory(directory)
    finish(directory, translate(read_settings_file(settings, client_id)), force, output)


def translate(settings: KeycloakSettings) -> Translation:
    """The policy that decides as the settings do, and where it does not."""
    return _Import(settings).translation()


class _Import:
    """Collects role table and rules; what fits into neither is listed."""

    def __init__(self, settings: KeycloakSettings) -> None:
        self._settings = settings
        self._same: dict[str, list[str]] = defaultdict(list)
        for role in sorted(settings.roles):
            self._same[_small(role.rpartition("/")[2])].append(role)
        # Ours by Keycloak's: those that can be told from each other.
        self._names = {roles[0]: name for name, roles in self._same.items() if len(roles) == 1}
        self._platform = {role for role in self._names if role.rpartition("/")[2] == SUPER_ADMIN}
        # What is left out: scopes by what they are of, and to whom.
        self._reaching: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._by: dict[str, set[str]] = defaultdict(set)
        self._odd: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._found = _found_teams(settings.resources)
        self._teams = sorted(team for team in self._found if is_team_id(team))

    def translation(self) -> Translation:
        """Everything at once."""
        of_team = {team: self._of_team(team) for team in self._teams}
        common, members = self._common()
        in_all = _in_all(of_team.values())
        extra = {team: _without(table, in_all) for team, table in of_team.items()}
        everything = [*of_team.values(), common, *_of_members(members, common)]
        includes = {role: self._included(role, everything) for role in sorted(self._names.values())}
        roles: dict[str, Any] = {
            "includes": includes,
            "platform": self._platform_roles(),
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
        left = [*self._left(common, members), *_teams_changed(everything, includes)]
        return Translation(files, left, _ADVICE)

    def _included(self, role: str, tables: Iterable[Table]) -> list[str]:
        """So that rules about platform admins count for who may all that an admin may, in every team."""
        may = [roles for table in tables for actions in table.values() for roles in actions.values()]
        whole = role in self._platform_roles() and "admin" in self._names.values()
        return ["admin"] if whole and all(role in roles for roles in may if "admin" in roles) else []

    def _platform_roles(self) -> list[str]:
        return [self._names[role] for role in self._platform]

    def _of_team(self, team: str) -> Table:
        """The rights of roles in a team, by type and action."""
        return {
            type_: {action: self._held_in(team, f"{resource}:{team}", scope) for action, scope in _actions(type_)}
            for type_, resource in OF_TEAMS.items()
        }

    def _held_in(self, team: str, resource: str, scope: str) -> list[str]:
        """Roles that may do it if somebody who holds one is in the team."""
        held: set[str] = set()
        found = self._settings.holders(resource, scope)
        for holder in found:
            if not self._is_one_role(holder):
                self._leave(holder, resource, scope)
                continue
            (role,) = holder.roles
            everywhere = Holder(holder.roles) in found
            if role in self._platform and everywhere:
                held.add(self._names[role])
            elif not holder.groups:
                self._reaching[role][resource.partition(":")[0]].add(scope)
                self._by[role].update(self._settings.granting(resource, scope, holder))
            elif holder.groups == {team} and role not in self._platform:
                held.add(self._names[role])
            else:
                self._leave(holder, resource, scope)
        return sorted(held)

    def _common(self) -> tuple[Table, Members]:
        """Permissions of roles on common resources, and those of team members' roles."""
        common: Table = {}
        members: Members = {}
        for type_, resource in COMMON.items():
            for action, scope in _actions(type_):
                held, of_members = self._held_by_all(resource, scope)
                common.setdefault(type_, {})[action] = held
                if of_members:
                    members.setdefault(type_, {})[action] = of_members
        return common, members

    def _held_by_all(self, resource: str, scope: str) -> tuple[list[str], dict[str, list[str]]]:
        held: set[str] = set()
        members: dict[str, list[str]] = defaultdict(list)
        for holder in sorted(self._settings.holders(resource, scope), key=str):
            if not self._is_one_role(holder) or not holder.groups <= {*self._teams} or len(holder.groups) > 1:
                self._leave(holder, resource, scope)
                continue
            (role,) = holder.roles
            for team in holder.groups:
                members[team].append(self._names[role])
            if not holder.groups:
                held.add(self._names[role])
        return sorted(held), dict(members)

    def _is_one_role(self, holder: Holder) -> bool:
        return len(holder.roles) == 1 and holder.roles <= self._names.keys()

    def _leave(self, holder: Holder, resource: str, scope: str) -> None:
        """It is listed; roles of which there are several of one name are listed by themselves."""
        if not holder.roles or holder.roles <= self._names.keys():
            self._odd[resource, str(holder), self._why(holder)].add(scope)

    def _why(self, holder: Holder) -> str:
        if len(holder.roles) > 1:
            return "it needs several roles at once"
        if not holder.roles:
            return "it needs a group without a role"
        if len(holder.groups) > 1:
            return "it needs several groups at once"
        if holder.roles <= self._platform:
            return f"{SUPER_ADMIN} is the platform's role here, and not one team's"
        return "its group is not the team's group, which has the name of the team"

    def _left(self, common: Table, members: Members) -> Iterator[Untranslated]:
        """Where the policy decides differently."""
        yield from self._settings.problems
        yield from self._names_that_do_not_fit()
        for role, reached in sorted(self._reaching.items()):
            yield self._reaches(role, reached)
        for (resource, who, why), scopes in sorted(self._odd.items()):
            yield Untranslated(f"{', '.join(sorted(scopes))} of {resource} for {who}", why, "write it as a rule")
        yield from self._never_asked()
        yield from self._menu(common, members)

    def _names_that_do_not_fit(self) -> Iterator[Untranslated]:
        for team in sorted(self._found - {*self._teams}):
            yield Untranslated(f"team {team!r}", "Airflow has no teams of such a name", "rename it, and import again")
        for roles in self._same.values():
            if len(roles) > 1:
                yield Untranslated(
                    f"roles {' and '.join(roles)}",
                    "they are the same here, whatever their case and whether the realm's or the client's, "
                    "so they allow nothing",
                    "rename all but one of them in Keycloak, and import again",
                )

    def _reaches(self, role: str, reached: dict[str, set[str]]) -> Untranslated:
        what = "; ".join(f"{', '.join(sorted(scopes))} of {resource}" for resource, scopes in sorted(reached.items()))
        by = f" (by the permission {', '.join(sorted(self._by[role]))})" if self._by[role] else ""
        name = role.rpartition("/")[2]
        entry = f'"{name}": [{{"team_id": null, "role": "{self._names[role]}"}}]'
        return Untranslated(
            f"role {role}",
            f"in Keycloak it reaches every team's resources without being in the team{by}, {what}; here it does not",
            f"if you want that, write {entry} into roles of {DIRECTORY}: then the role has its rights of {ROLES} in "
            "every team; add the missing ones there",
        )

    def _never_asked(self) -> Iterator[Untranslated]:
        asked = {*COMMON.values(), *MENU, *(f"{name}:{team}" for team in self._found for name in OF_TEAMS.values())}
        others = [
            name
            for name in self._settings.resources
            if name not in asked and any(self._settings.holders(name, scope) for scope in self._settings.scopes(name))
        ]
        if others:
            yield Untranslated(
                f"resources {', '.join(sorted(others))}",
                "this version of Airflow asks nothing about them, so the import leaves their permissions out",
                "nothing, unless a program of yours asks Keycloak about them",
            )

    def _menu(self, common: Table, members: Members) -> Iterator[Untranslated]:
        items: dict[str, list[str]] = defaultdict(list)
        for item, type_ in MENU.items():
            if item not in self._settings.resources:
                continue
            theirs = {
                Holder(frozenset(self._names[role] for role in holder.roles), holder.groups)
                for holder in self._settings.holders(item, "MENU")
                if holder.roles <= self._names.keys()
            }
            ours = {
                *(Holder(frozenset({role})) for role in common[type_]["list"]),
                *(
                    Holder(frozenset({role}), frozenset({team}))
                    for team, held in members.get(type_, {}).get("list", {}).items()
                    for role in held
                ),
            }
            some = (("now shown to", _more(ours, theirs)), ("no longer shown to", _more(theirs, ours)))
            changes = [f"{word} some who are {', '.join(roles)}" for word, roles in some if roles]
            if changes:
                items[", ".join(changes)].append(item)
        for changed, names in items.items():
            yield Untranslated(
                f"menu items {', '.join(names)}",
                f"people see an item who may list its target: {changed}",
                "nothing, unless you miss the item: the policy decides about the page by itself",
            )


def _teams_changed(tables: Iterable[Table], includes: dict[str, list[str]]) -> Iterator[Untranslated]:
    """A guardrail leaves it to who is an admin for the platform, whatever a role allows."""
    changing = {
        role
        for table in tables
        for action, roles in table.get("team", {}).items()
        if action not in {"list", "read"}
        for role in roles
        if "admin" not in includes[role]
    }
    if changing:
        yield Untranslated(
            f"POST, PUT, DELETE of Team for {', '.join(sorted(changing))}",
            "here only the platform's admins change teams",
            "nothing: Airflow never asks about that",
        )


def _found_teams(resources: Iterable[str]) -> set[str]:
    named = (name.partition(":") for name in resources)
    return {team for name, _, team in named if name in OF_TEAMS.values()} - {""}


def _of_members(members: Members, common: Table) -> Iterator[Table]:
    """Permissions of a team's members on common resources, also of people who need no membership."""
    for type_, actions in members.items():
        for action, teams in actions.items():
            for roles in teams.values():
                yield {type_: {action: [*roles, *common[type_][action]]}}


def _more(some: Iterable[Holder], others: Iterable[Holder]) -> list[str]:
    """Roles of which some holder is let in by the first and not by the others."""
    kept = [*others]
    more = (one for one in some if not any(map(one.includes, kept)))
    return sorted({" and ".join(sorted(one.roles)) or str(one) for one in more})


def _actions(type_: str) -> Iterator[tuple[str, str]]:
    for action, scope in _SCOPES.items():
        # The manager never names the team that it asks about, and what is not named is listed. A view it only reads.
        yield action, {"team": {"GET": "LIST"}, "view": {"LIST": "GET"}}.get(type_, {}).get(scope, scope)
    if type_ == "dag":
        yield "trigger", "POST"


def _in_all(tables: Iterable[Table]) -> Table:
    """The rights that all tables allow."""
    every = list(tables)
    return {
        type_: {
            action: sorted(set(roles).intersection(*(table[type_][action] for table in every)))
            for action, roles in actions.items()
        }
        for type_, actions in (every[0].items() if every else ())
    }


def _without(table: Table, other: Table) -> Table:
    """The rights that one table allows and the other does not."""
    rest = {
        type_: {
            action: more
            for action, roles in actions.items()
            if (more := sorted(set(roles) - set(other[type_][action])))
        }
        for type_, actions in table.items()
    }
    return {type_: actions for type_, actions in rest.items() if actions}


def _small(name: str) -> str:
    return name.translate(_SMALL)
