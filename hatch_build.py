"""Build hook: compiles the shipped policy into the package and puts its source into the wheel."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BASELINE = "airflow_team_authz/baseline.tar.gz"
# Named one by one: the example site and teams beside them are not part of the package.
POLICIES = ("policies/airflow/authz", "policies/airflow/roles", "policies/schemas", "policies/capabilities.json")


class PolicyHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        _compiler(root).compile_shipped(root / BASELINE)
        # Git ignores the file, and hatchling leaves out what git ignores unless it is named here.
        build_data["artifacts"].append(BASELINE)
        if version != "editable":  # an editable install finds the policies in the repository
            for file in _policy_files(root):
                build_data["force_include"][str(file)] = f"airflow_team_authz/{file.relative_to(root)}"


def _compiler(root: Path) -> Any:
    """The package's compile module: like what it imports, it takes none of the package's dependencies."""
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("airflow_team_authz.opa.compile")
    finally:
        sys.path.remove(str(root))


def _policy_files(root: Path) -> list[Path]:
    found = []
    for name in POLICIES:
        path = root / name
        if not path.exists():
            raise FileNotFoundError(f"{name} is missing, and the wheel would lack it: see POLICIES in hatch_build.py")
        found += [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in found if not file.name.endswith("_test.rego")]
