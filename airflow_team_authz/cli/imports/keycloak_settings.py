"""Reads a Keycloak client's authorization settings: resources, scopes, permissions, and the policies that grant them.

The file is what the admin console exports under Clients, Authorization, Export. Terms and strategies are those of
Keycloak's Authorization Services Guide (https://www.keycloak.org/docs/latest/authorization_services/).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from airflow_team_authz.cli.imports.keycloak_holders import Holder, Holders
from airflow_team_authz.cli.imports.translation import Untranslated
from airflow_team_authz.cli.support.console import UserError

T = TypeVar("T")

_MAX_BYTES = 32 * 1024 * 1024
_MAX_HOLDERS = 2_000
_MAX_DEPTH = 50
_PERMISSIONS = {"resource", "scope"}


_NOBODY: Holders = frozenset()


class _Named(msgspec.Struct):
    name: str


class _Role(msgspec.Struct):
    id: str
    required: bool | None = None


class _Group(msgspec.Struct):
    path: str
    extendChildren: bool | None = None  # noqa: N815 - as Keycloak writes it


class _Resource(msgspec.Struct):
    name: str
    scopes: list[_Named] = []
    owner: _Named | None = None


class _UnknownSettingError(Exception):
    """A policy that is not understood; the message says why."""


class _Policy(msgspec.Struct):
    name: str
    type: str
    logic: str = "POSITIVE"
    decisionStrategy: str = "UNANIMOUS"  # noqa: N815 - as Keycloak writes it
    config: dict[str, str] = {}


class _Export(msgspec.Struct):
    resources: list[_Resource]
    policies: list[_Policy]
    decisionStrategy: str = "UNANIMOUS"  # noqa: N815 - as Keycloak writes it
    policyEnforcementMode: str = "ENFORCING"  # noqa: N815 - as Keycloak writes it


class _Permission(NamedTuple):
    """A permission: its resources (``None``: all), and the people that it admits (``None``: not understood)."""

    name: str
    resources: frozenset[str] | None
    scopes: frozenset[str] | None
    holders: Holders | None

    def covers(self, resource: str, scope: str) -> bool:
        """Whether it has a say in this."""
        return (self.resources is None or resource in self.resources) and (self.scopes is None or scope in self.scopes)


class KeycloakSettings:
    """An export, evaluated. What is not understood grants nothing and is in ``problems``.

    ``client_id`` is Airflow's client, whose roles count like the realm's.
    """

    def __init__(self, export: _Export, client_id: str) -> None:
        self.problems: list[Untranslated] = []
        self._client = client_id
        self._scopes = {resource.name: {scope.name for scope in resource.scopes} for resource in export.resources}
        self._policies = {policy.name: policy for policy in export.policies}
        self._evaluated: dict[str, Holders | _UnknownSettingError] = {}
        self._unanimous = export.decisionStrategy != "AFFIRMATIVE"
        self._permissions = [self._permission(policy) for policy in export.policies if policy.type in _PERMISSIONS]
        self.problems += _server_problems(export)

    @property
    def resources(self) -> list[str]:
        """Names of all resources."""
        return list(self._scopes)

    @property
    def roles(self) -> frozenset[str]:
        """All roles that something is granted to."""
        every = (permission.holders or _NOBODY for permission in self._permissions)
        return frozenset().union(*(holder.roles for holders in every for holder in holders))

    def scopes(self, resource: str) -> set[str]:
        """The scopes of a resource."""
        return self._scopes.get(resource, set())

    def holders(self, resource: str, scope: str) -> Holders:
        """The holders of a scope of a resource."""
        found = self._covering(resource, scope)
        known = [permission.holders for permission in found if permission.holders is not None]
        if not self._unanimous:
            return _NOBODY.union(*known)
        if not known or len(known) < len(found):
            return _NOBODY
        try:
            return _all_of(known)
        except _UnknownSettingError as reason:
            problem = Untranslated(f"{scope} of {resource}", str(reason), "nothing grants it here: write it as a rule")
            self.problems += [] if problem in self.problems else [problem]
            return _NOBODY

    def granting(self, resource: str, scope: str, holder: Holder) -> list[str]:
        """Names of the permissions that let these holders in."""
        return [each.name for each in self._covering(resource, scope) if holder in (each.holders or ())]

    def _covering(self, resource: str, scope: str) -> list[_Permission]:
        if scope not in self.scopes(resource):
            return []
        return [permission for permission in self._permissions if permission.covers(resource, scope)]

    def _permission(self, policy: _Policy) -> _Permission:
        resources: frozenset[str] | None = None
        scopes: frozenset[str] | None = None
        try:
            if policy.config.get("defaultResourceType"):
                raise _UnknownSettingError(f"{policy.name} is for a type of resources")
            named = _listed(policy, "resources", str)
            resources = frozenset(named) if named or policy.type == "resource" else None
            scopes = frozenset(_listed(policy, "scopes", str)) if policy.type == "scope" else None
            return _Permission(policy.name, resources, scopes, self._evaluate(policy, ()))
        except _UnknownSettingError as reason:
            self.problems.append(
                Untranslated(f"permission {policy.name}", str(reason), "it grants nothing here: write it as a rule")
            )
            return _Permission(policy.name, resources, scopes, None)

    def _evaluate(self, policy: _Policy, inside: tuple[str, ...]) -> Holders:
        """The people who satisfy a policy. Each policy is evaluated once, however many others apply it."""
        if policy.name in inside:
            raise _UnknownSettingError(f"{policy.name} is a part of itself")
        if len(inside) > _MAX_DEPTH:
            raise _UnknownSettingError(f"{inside[0]} has more than {_MAX_DEPTH} policies inside of each other")
        if policy.name not in self._evaluated:
            try:
                self._evaluated[policy.name] = self._satisfying(policy, inside)
            except _UnknownSettingError as reason:
                self._evaluated[policy.name] = reason
        found = self._evaluated[policy.name]
        if isinstance(found, _UnknownSettingError):
            raise _UnknownSettingError(*found.args)
        return found

    def _satisfying(self, policy: _Policy, inside: tuple[str, ...]) -> Holders:
        if policy.logic != "POSITIVE":
            raise _UnknownSettingError(f"{policy.name} has negative logic")
        if policy.type == "role":
            return frozenset(self._roles(policy))
        if policy.type == "group":
            return frozenset(_groups(policy))
        if policy.type == "aggregate" or policy.type in _PERMISSIONS:
            return self._together(policy, (*inside, policy.name))
        raise _UnknownSettingError(f"{policy.name} is a policy of the kind {policy.type!r}")

    def _together(self, policy: _Policy, inside: tuple[str, ...]) -> Holders:
        applied = _listed(policy, "applyPolicies", str)
        if not applied:
            raise _UnknownSettingError(f"{policy.name} has no policy")
        if not all(name in self._policies for name in applied):
            raise _UnknownSettingError(f"{policy.name} cannot be read")
        parts = [self._evaluate(self._policies[name], inside) for name in applied]
        if policy.decisionStrategy == "AFFIRMATIVE" or len(parts) == 1:
            return _NOBODY.union(*parts)
        if policy.decisionStrategy == "UNANIMOUS":
            return _all_of(parts)
        raise _UnknownSettingError(f"{policy.name} has the decision strategy {policy.decisionStrategy}")

    def _roles(self, policy: _Policy) -> Iterator[Holder]:
        roles = _listed(policy, "roles", _Role)
        if len(roles) > 1 and any(role.required for role in roles):
            raise _UnknownSettingError(f"{policy.name} requires some of its roles")
        for role in roles:
            client, _, name = role.id.rpartition("/")
            if client not in {"", self._client}:
                raise _UnknownSettingError(f"{policy.name} is about a role of the client {client}")
            if not name:
                raise _UnknownSettingError(f"{policy.name} is about a role without a name")
            yield Holder(roles=frozenset({role.id}))


def read_settings_file(file: Path, client_id: str) -> KeycloakSettings:
    """The settings of an export; ``UserError`` says what is wrong with the file."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name the exported file") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"{file} is larger than {_MAX_BYTES >> 20} MiB: name the export of one client")
    try:
        export = msgspec.json.decode(content, type=_Export)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{file} is not an export of a client's authorization settings ({error}): "
            "export them in Keycloak's admin console: Clients, your client, Authorization, Export"
        ) from None
    return KeycloakSettings(export, client_id)


def _listed(policy: _Policy, key: str, kind: type[T]) -> list[T]:
    """A list that a policy's configuration holds as text."""
    try:
        found: list[T] = msgspec.json.decode(policy.config.get(key) or "[]", type=list[kind])  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _UnknownSettingError(f"{policy.name} cannot be read") from None
    return found


def _groups(policy: _Policy) -> Iterator[Holder]:
    # Without the claim's name Keycloak looks into its own memberships, which are what the claim tells.
    if policy.config.get("groupsClaim", "") not in {"", "groups"}:
        raise _UnknownSettingError(f"{policy.name} looks for groups in the claim {policy.config['groupsClaim']}")
    for group in _listed(policy, "groups", _Group):
        root, *names = group.path.split("/")
        if root or len(names) != 1 or not names[0]:
            raise _UnknownSettingError(f"{policy.name} is about the group {group.path}, which is inside of another")
        if group.extendChildren:
            raise _UnknownSettingError(f"{policy.name} counts groups inside of {group.path} too")
        yield Holder(groups=frozenset({names[0]}))


def _all_of(parts: list[Holders]) -> Holders:
    """The people who satisfy all policies. A set that needs more than another set is left out."""
    merged: Holders = frozenset({Holder()})
    for part in parts:
        if len(merged) * len(part) > _MAX_HOLDERS:
            raise _UnknownSettingError("too many combinations of roles and groups are possible")
        merged = frozenset(
            Holder(one.roles | other.roles, one.groups | other.groups) for one, other in product(merged, part)
        )
    return frozenset(
        holder for holder in merged if not any(other != holder and holder.includes(other) for other in merged)
    )


def _server_problems(export: _Export) -> Iterator[Untranslated]:
    for policy in export.policies:
        if policy.type == "uma":
            yield Untranslated(
                f"permission {policy.name}", "somebody has given it for what they own", "write it as a rule"
            )
    for resource in export.resources:
        if resource.owner is not None:
            yield Untranslated(
                f"resource {resource.name}",
                f"it belongs to {resource.owner.name}, whom Keycloak lets do everything with it; not so here",
                "write it as a rule if that is meant",
            )
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
