"""Whose bundles an engine of ours loads."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from airflow_team_authz.bundles.aggregate import scope
from airflow_team_authz.bundles.archive import BundleRefused, read_manifest, unpack
from airflow_team_authz.bundles.signing import TrustedKeys
from airflow_team_authz.model import KeyUnfit


class Opened(NamedTuple):
    """A bundle that is what it has to be: its files by name, the serial of its build, and the id of its key."""

    files: dict[str, bytes]
    serial: int
    key_id: str


class Trust(NamedTuple):
    """Only a bundle of this name counts, signed by one of the keys (PEM) in a file, which is read each time."""

    keys_file: Path
    name: str

    def open(self, content: bytes) -> Opened:
        """The bundle; ``BundleRefused`` if it is not to be trusted, is broken, or changes another one (a delta)."""
        files = unpack(content)
        try:
            keys = TrustedKeys.read(self.keys_file)
        except KeyUnfit as error:
            raise BundleRefused(f"nobody can be trusted: {error}") from None
        key_id = keys.verify(files, scope(self.name))
        if "patch.json" in files:
            raise BundleRefused("it is a delta bundle, which are not used here")
        serial = read_manifest(files)["metadata"].get("serial")
        if type(serial) is not int:
            raise BundleRefused("its manifest tells no serial")
        return Opened(files, serial, key_id)

    def counts(self, key_id: str) -> bool:
        """Whether what this key has signed is still to be trusted."""
        try:
            return key_id in TrustedKeys.read(self.keys_file)
        except KeyUnfit:
            return False
