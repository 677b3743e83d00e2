"""Copies bundles into an object store. OPA's own downloaders and our engines fetch them there."""

from __future__ import annotations

from pathlib import Path

from airflow_team_authz.bundles import BundlesError


class PushError(BundlesError):
    """The store did not take a bundle; the message says which, and what the store said."""


def push(files: list[Path], url: str) -> list[str]:
    """Copy files below the address (``s3://bucket/folder``, ``gs://``, ``abfs://``, ``file://``: what fsspec knows).

    Each appears there as a whole or not at all; the ones that stand for all teams come last. Returns where they are.
    """
    import fsspec

    written = []
    try:
        local = {"auto_mkdir": True} if url.startswith("file:") else {}
        store, folder = fsspec.core.url_to_fs(url, **local)
        for file in sorted(files, key=lambda file: (-len(file.name), file.name)):
            target = f"{folder.rstrip('/')}/{file.name}"
            # A transaction moves a local file to its place in the end; object stores are atomic themselves.
            with store.transaction, store.open(target, "wb") as opened:
                opened.write(file.read_bytes())
            written.append(store.unstrip_protocol(target))
    except Exception as error:  # every store has its own
        done = f" ({len(written)} of {len(files)} are there)" if written else ""
        raise PushError(f"{url} does not take the bundles{done}: {' '.join(str(error).split())[:300]}") from error
    return written
