"""The sink that is a bundle server: records go there in the protocol of OPA's ``decision_logs`` plugin."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_team_authz.decision_log.record import encode
from airflow_team_authz.files import read_token

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS = 10.0
# What is as wrong the next time. Anything else, such as a token that somebody has yet to replace, may be better then.
_FOR_GOOD = (413, 422)


class Refused(Exception):
    """The server does not take the records; the message says what it answers."""


class BundleServer:
    """``POST /logs`` of a bundle server, with a reader's token."""

    name = "the bundle server"

    def __init__(self, url: str, token_file: Path | None) -> None:
        """``url`` is the server's address, such as ``https://bundles.example``."""
        self._url = f"{url.rstrip('/')}/logs"
        self._token_file = token_file
        self._client: httpx.Client | None = None

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``."""
        import httpx

        if self._client is None:
            self._client = httpx.Client(timeout=_TIMEOUT_SECONDS)
        content = gzip.compress(f"[{','.join(map(encode, records))}]".encode(), 1)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        if self._token_file is not None:
            # For each request: it may have been replaced.
            headers["Authorization"] = f"Bearer {read_token(self._token_file)}"
        answer = self._client.post(self._url, content=content, headers=headers)
        if answer.status_code in _FOR_GOOD:
            return len(records)
        if not answer.is_success:
            hint = " (see decision_log_token_file)" if answer.status_code in {401, 403} else ""
            raise Refused(f"it answers {answer.status_code} {answer.reason_phrase}{hint}")
        return _dropped(answer)

    def begin_anew(self) -> None:
        """See ``writer.Sink``. The parent goes on with the connections."""
        self._client = None


def _dropped(answer: httpx.Response) -> int:
    try:
        told = answer.json()["dropped"]
    except (ValueError, KeyError, TypeError):
        # A server for OPA's decision logs that is not ours.
        return 0
    return told if isinstance(told, int) else 0
