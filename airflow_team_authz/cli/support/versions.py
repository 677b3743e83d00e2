"""``team-authz --version``: the versions that a bug report needs."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def versions() -> list[tuple[str, str]]:
    """Name and version of this package, of Airflow and of the ``opa`` program; the last two only if they are there."""
    found = [("airflow-team-authz", version("airflow-team-authz"))]
    with suppress(PackageNotFoundError):
        found.append(("apache-airflow-core", version("apache-airflow-core")))
    return [*found, *_opa()]


def _opa() -> list[tuple[str, str]]:
    from airflow_team_authz.opa.compile import CompileError, find_opa, opa_version

    try:
        opa = find_opa()
        return [("opa", f"{'.'.join(map(str, opa_version(opa)))} ({opa})")]
    except CompileError:
        return []
