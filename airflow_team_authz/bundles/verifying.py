"""Verifies the bundles that our engines load."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from airflow_team_authz.bundles.aggregate import scope
from airflow_team_authz.bundles.signing import TrustedKeys
from airflow_team_authz.model import UnfitKeyError
from airflow_team_authz.opa.archive import BundleRefusedError, read_manifest, unpack


class Opened(NamedTuple):
    """A bundle that is what it has to be: its files by name, the serial of its build, the id of its key, and when it
    was signed.
    """

    files: dict[str, bytes]
    serial: int
    key_id: str
    issued_at: int | None


class Trust(NamedTuple):
    """Only a bundle of this name counts, signed by one of the keys (PEM) in a file, which is read each time.

    ``max_age_hours``: how long ago it may have been signed; any time if it is not given.
    """

    keys_file: Path
    name: str
    max_age_hours: int | None = None

    def open(self, content: bytes, any_age: bool = False) -> Opened:
        """The bundle; ``BundleRefusedError`` if it is not to be trusted, is broken, too old, or changes another one (a
        delta).
        """
        files = unpack(content)
        try:
            keys = TrustedKeys.read(self.keys_file)
        except UnfitKeyError as error:
            raise BundleRefusedError(f"nobody can be trusted: {error}") from None
        key_id, issued_at = keys.verify(files, scope(self.name))
        if not any_age and (outdated := self.outdated(issued_at)):
            raise BundleRefusedError(
                f"{outdated}: see whether the bundle server, or what runs `bundle aggregate`, works"
            )
        if "patch.json" in files:
            raise BundleRefusedError("it is a delta bundle, which are not used here")
        serial = read_manifest(files)["metadata"].get("serial")
        if type(serial) is not int:
            raise BundleRefusedError("its manifest has no serial")
        return Opened(files, serial, key_id, issued_at)

    def outdated(self, issued_at: int | None) -> str:
        """Why what was signed at this time is too old, or signed too far in the future; empty if it is not."""
        if self.max_age_hours is None:
            return ""
        limit = f"[team_authz] policy_max_age_hours is {self.max_age_hours}"
        if issued_at is None:
            return f"its signature does not tell its time, and {limit}"
        age = time.time() - issued_at
        if abs(age) <= self.max_age_hours * 3600:
            return ""
        when = "ago" if age > 0 else "ahead of this host's clock"
        return f"it was signed {abs(age) / 3600:,.0f} hours {when}, and {limit}"

    def counts(self, key_id: str) -> bool:
        """Whether what this key has signed is still to be trusted."""
        try:
            return key_id in TrustedKeys.read(self.keys_file)
        except UnfitKeyError:
            return False
