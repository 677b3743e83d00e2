"""What a Keycloak client's authorization settings grant, and to whom: resources, scopes, permissions, policies.

The file is what the admin console exports under Clients, Authorization, Export. Terms and strategies are those of
Keycloak's Authorization Services Guide (https://www.keycloak.org/docs/latest/authorization_services/).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from airflow_team_authz.cli.console import UserError
from airflow_team_authz.cli.imports.translation import Untranslated

_MAX_BYTES = 32 * 1024 * 1024
_MAX_HOLDERS = 10_000
_PERMISSIONS = {"resource", "scope"}


class Holder(NamedTuple):
    """Somebody with all of these realm or client roles, and in all of these groups."""

    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


Holders = frozenset[Holder]


class _Named(msgspec.Struct):
    name: str


class _Resource(msgspec.Struct):
    name: str
    scopes: list[_Named] = []


class _Policy(msgspec.Struct):
    name: str
    type: str
    logic: str = "POSITIVE"
    decisionStrategy: str = "UNANIMOUS"  # noqa: N815 - as Keycloak writes it
    config: dict[str, str] = {}

    def listed(self, key: str) -> list[Any]:
        """A list that the configuration holds as text; ``ValueError`` if it is none."""
        found = json.loads(self.config.get(key) or "[]")
        if not isinstance(found, list):
            raise ValueError(key)
        return found


class _Export(msgspec.Struct):
    resources: list[_Resource]
    policies: list[_Policy]
    decisionStrategy: str = "UNANIMOUS"  # noqa: N815 - as Keycloak writes it
    policyEnforcementMode: str = "ENFORCING"  # noqa: N815 - as Keycloak writes it


class _Unknown(Exception):
    """A policy that is not understood; the message says why."""


class KeycloakSettings:
    """An export, evaluated. What is not understood grants nothing and is in ``problems``.

    ``client_id`` is Airflow's client, whose roles count like the realm's.
    """

    def __init__(self, export: _Export, client_id: str) -> None:
        self.problems: list[Untranslated] = []
        self._client = client_id
        self._scopes = {resource.name: {scope.name for scope in resource.scopes} for resource in export.resources}
        self._policies = {policy.name: policy for policy in export.policies}
        self._unanimous = export.decisionStrategy != "AFFIRMATIVE"
        self._permissions = [
            (policy, self._granted(policy)) for policy in export.policies if policy.type in _PERMISSIONS
        ]
        self.problems += _server_problems(export)

    @property
    def resources(self) -> list[str]:
        """Names of all resources."""
        return list(self._scopes)

    @property
    def unbound(self) -> list[str]:
        """Permissions that are bound to no resource, so that they count for each."""
        return [policy.name for policy, _ in self._permissions if policy.type == "scope" and not _names(policy)]

    def holders(self, resource: str, scope: str) -> Holders:
        """Who has a scope of a resource."""
        if scope not in self._scopes.get(resource, ()):
            return frozenset()
        found = [holders for policy, holders in self._permissions if _covers(policy, resource, scope)]
        known = [holders for holders in found if holders is not None]
        if not self._unanimous:
            return frozenset().union(*known)
        return _all_of(known) if known and len(known) == len(found) else frozenset()

    def _granted(self, permission: _Policy) -> Holders | None:
        try:
            return self._evaluate(permission, ())
        except _Unknown as reason:
            self.problems.append(
                Untranslated(f"permission {permission.name}", str(reason), "it grants nothing here: write it as a rule")
            )
            return None

    def _evaluate(self, policy: _Policy, inside: tuple[str, ...]) -> Holders:
        if policy.logic != "POSITIVE":
            raise _Unknown(f"{policy.name} has negative logic")
        if policy.name in inside:
            raise _Unknown(f"{policy.name} is a part of itself")
        try:
            if policy.type == "role":
                return frozenset(self._roles(policy))
            if policy.type == "group":
                return frozenset(_groups(policy))
            if policy.type == "aggregate" or policy.type in _PERMISSIONS:
                if policy.config.get("defaultResourceType"):
                    raise _Unknown(f"{policy.name} is for a type of resources")
                return self._together(policy, (*inside, policy.name))
        except (ValueError, TypeError, AttributeError, LookupError):
            raise _Unknown(f"{policy.name} cannot be read") from None
        raise _Unknown(f"{policy.name} is a policy of the kind {policy.type!r}")

    def _together(self, policy: _Policy, inside: tuple[str, ...]) -> Holders:
        applied = policy.listed("applyPolicies")
        if not applied:
            raise _Unknown(f"{policy.name} has no policy")
        parts = [self._evaluate(self._policies[name], inside) for name in applied]
        if policy.decisionStrategy == "AFFIRMATIVE" or len(parts) == 1:
            return frozenset().union(*parts)
        if policy.decisionStrategy == "UNANIMOUS":
            return _all_of(parts)
        raise _Unknown(f"{policy.name} has the decision strategy {policy.decisionStrategy}")

    def _roles(self, policy: _Policy) -> Iterator[Holder]:
        roles = policy.listed("roles")
        if len(roles) > 1 and any(role.get("required") for role in roles):
            raise _Unknown(f"{policy.name} requires some of its roles")
        for role in roles:
            client, _, name = role["id"].rpartition("/")
            if client not in {"", self._client}:
                raise _Unknown(f"{policy.name} is about a role of the client {client}")
            yield Holder(roles=frozenset({str(name)}))


def read_settings_file(file: Path, client_id: str) -> KeycloakSettings:
    """The settings of an export; ``UserError`` says what is wrong with the file."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"{file} is larger than {_MAX_BYTES >> 20} MiB")
    try:
        export = msgspec.json.decode(content, type=_Export)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{file} is no export of a client's authorization settings ({error}): "
            "in Keycloak's admin console, Clients, your client, Authorization, Export"
        ) from None
    return KeycloakSettings(export, client_id)


def _groups(policy: _Policy) -> Iterator[Holder]:
    for group in policy.listed("groups"):
        root, *names = group["path"].split("/")
        if root or len(names) != 1 or not names[0]:
            raise _Unknown(f"{policy.name} is about the group {group['path']}, which is inside of another")
        if group.get("extendChildren"):
            raise _Unknown(f"{policy.name} counts groups inside of {group['path']} too")
        yield Holder(groups=frozenset({names[0]}))


def _names(permission: _Policy) -> list[Any]:
    try:
        return permission.listed("resources")
    except ValueError:
        return []


def _covers(permission: _Policy, resource: str, scope: str) -> bool:
    named = _names(permission)
    if permission.type == "resource":
        return resource in named
    return scope in permission.listed("scopes") and (not named or resource in named)


def _all_of(parts: list[Holders]) -> Holders:
    """Who satisfies each of them. Of somebody who needs more than another does, only the other is kept."""
    merged: Holders = frozenset({Holder()})
    for part in parts:
        if len(merged) * len(part) > _MAX_HOLDERS:
            raise _Unknown("too many combinations of roles and groups are possible")
        merged = frozenset(
            Holder(one.roles | other.roles, one.groups | other.groups) for one, other in product(merged, part)
        )
    return frozenset(
        holder
        for holder in merged
        if not any(
            other != holder and other.roles <= holder.roles and other.groups <= holder.groups for other in merged
        )
    )


def _server_problems(export: _Export) -> Iterator[Untranslated]:
    if export.decisionStrategy != "AFFIRMATIVE":
        yield Untranslated(
            f"decision strategy {export.decisionStrategy} of the client",
            "with it every permission that covers a resource has to grant, which lets hardly anybody in",
            "if that is not what decides today, export again after setting it to Affirmative",
        )
    if export.policyEnforcementMode != "ENFORCING":
        yield Untranslated(
            f"policy enforcement mode {export.policyEnforcementMode}",
            "Keycloak allows what no permission is about; here nothing allows it",
            "write a rule for what has to be open",
        )
