"""Users of the Keycloak auth manager: groups and roles are in the access token, which is verified first.

In the browser flow that token is a cookie of its own, which Airflow's signature does not cover: anybody who is logged
in could write groups into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from airflow.configuration import conf
from msgspec import UNSET

from airflow_team_authz import airflow_compat
from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import Identity
from airflow_team_authz.identities.tokens import NotVerifiedError, Tokens
from airflow_team_authz.issuer import Issuer
from airflow_team_authz.model import KeysUnknownError, Subject

log = logger(__name__)

_SECTION = "keycloak_auth_manager"


class _Content(NamedTuple):
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    claims: dict[str, tuple[str, ...]]


class KeycloakIdentity(Identity):
    """Realm roles and the client's roles, ``groups``, and the claims that ``[team_authz] claims`` names.

    A token that fails gives neither, and the subject says why.
    """

    @cached_property
    def _issuer(self) -> Issuer:
        realm = f"{_setting('server_url').rstrip('/')}/realms/{_setting('realm')}"
        return Issuer(f"{realm}/.well-known/openid-configuration", f"{realm}/protocol/openid-connect/certs")

    @cached_property
    def _tokens(self) -> Tokens[_Content]:
        from airflow_team_authz.settings import read_settings

        client_id = _setting("client_id")
        named = read_settings().claim_names
        return Tokens(self._issuer, client_id, lambda claims: _content(claims, client_id, named))

    async def get_user_from_token(self, token: str, *keycloaks: Any, **named: Any) -> Any:
        """See ``BaseAuthManager`` and Keycloak's own; here the issuer's keys can be waited for."""
        user = await super().get_user_from_token(token, *keycloaks, **named)  # type: ignore[misc]
        if user is not None:
            await self.prepare(user)
        return user

    def refresh_user(self, *, user: Any) -> Any:
        """See ``BaseAuthManager``; while Keycloak is away a session is neither renewed nor ended."""
        try:
            return super().refresh_user(user=user)  # type: ignore[misc]
        except Exception as error:
            if not (why := _is_away(error)):
                raise
            log.warning("the session of %s is not renewed: %s", user.get_name(), why)
            # Its class takes no attributes beside its own.
            vars(user)["team_authz_not_renewed"] = why
            return None

    def get_fastapi_app(self) -> Any:
        """Keycloak's own, which logs out of Airflow and says 503 while Keycloak is away, rather than 500."""
        from keycloak.exceptions import KeycloakError

        app = super().get_fastapi_app()  # type: ignore[misc]
        app.add_exception_handler(KeycloakError, _answer_without_keycloak)
        return app

    async def prepare(self, user: Any) -> None:
        """Wait for a key that verifying this user's token takes, if it is not known."""
        await self._tokens.prepare(user.access_token)

    def get_fastapi_middlewares(self) -> list[Any]:
        """Keycloak's own, and inside of it one that sees the tokens that it has renewed."""
        return [(RenewedTokens, {"identity": self}), *airflow_compat.login_middlewares(super())]

    def later(self, user: Any) -> Callable[[], Subject]:
        """See ``Identity``; there the issuer's keys can be waited for."""

        def subject() -> Subject:
            asyncio.run(self.prepare(user))
            return self.subject(user)

        return subject

    def verifies(self) -> str:
        """See ``Identity``; asks for the realm's keys."""
        self._issuer.fetch().result()
        keys = self._issuer.required_keys()
        return f"with {keys.issuer}, whose {len(keys.by_id)} keys are known"

    def find(self, name: str) -> Any:
        """See ``Identity``."""
        raise LookupError(f"Keycloak shows groups and roles of {name} in a token only")

    def everybody(self) -> Sequence[Any]:
        """See ``Identity``."""
        raise LookupError("people of Keycloak are known by their groups only")

    def subject(self, user: Any) -> Subject:
        """See ``Identity``."""
        name = str(user.get_name())
        try:
            content = self._tokens.content(user.access_token, user.get_id())
        except NotVerifiedError as reason:
            if why := getattr(user, "team_authz_not_renewed", ""):
                raise KeysUnknownError(f"{why}, so the session is not renewed; {reason}") from None
            return Subject("user", name, (), (), (), UNSET, str(reason))
        return Subject("user", name, (), content.roles, content.groups, content.claims or UNSET)


class RenewedTokens:
    """ASGI middleware: Keycloak's own renews an expired token, perhaps with a key that nobody here has seen."""

    def __init__(self, app: Any, identity: KeycloakIdentity) -> None:
        self._app = app
        self._identity = identity

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See the ASGI specification, 3.0."""
        user = scope.get("state", {}).get("user")
        if getattr(user, "access_token", None):
            await self._identity.prepare(user)
        await self._app(scope, receive, send)


async def _answer_without_keycloak(request: Any, error: Exception) -> Any:
    """Logging out ends the session of Airflow's, though not Keycloak's; everything else has to wait."""
    from fastapi.responses import JSONResponse, RedirectResponse

    if request.url.path.endswith("/logout"):
        log.warning("a logout ends Airflow's session only, and not Keycloak's: %s", _is_away(error) or error)
        return RedirectResponse("logout_callback")
    if why := _is_away(error):
        return JSONResponse({"detail": f"Nobody can log in now: {why}"}, 503)
    raise error


def _is_away(error: Exception) -> str:
    """The message that Keycloak does not answer, or not as itself; empty if the client's error means something else."""
    from keycloak.exceptions import KeycloakConnectionError

    # Airflow's provider hands on what its client has raised about a token that could not be renewed.
    cause = next((one for one in error.args if isinstance(one, Exception)), error)
    if isinstance(cause, KeycloakConnectionError):
        return "Keycloak does not answer"
    status = getattr(cause, "response_code", None)
    return f"Keycloak answers {status}" if isinstance(status, int) and status >= 500 else ""


def _setting(name: str) -> str:
    value = str(conf.get(_SECTION, name, fallback=""))
    if not value:
        raise KeysUnknownError(f"[{_SECTION}] {name} is not set, so no login can be verified: set it in airflow.cfg")
    return value


def _content(claims: Mapping[str, Any], client_id: str, named: Iterable[str]) -> _Content:
    of_client = _object(_object(claims.get("resource_access")).get(client_id))
    roles = [*_texts(_object(claims.get("realm_access")).get("roles")), *_texts(of_client.get("roles"))]
    wanted = {name: _texts(claims[name]) for name in named if name in claims}
    return _Content(tuple(dict.fromkeys(roles)), _texts(claims.get("groups")), wanted)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> tuple[str, ...]:
    """The texts in a claim, which may be one or a list; what is something else means nothing to a policy."""
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, str))
