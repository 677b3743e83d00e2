"""CONTRIBUTING.md names real files and tests, and the files for tools call the project's own commands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()


def test_each_file_and_test_that_the_checklists_name_exists() -> None:
    checklists = PAGE.partition("## Checklists")[2]
    named = re.findall(r"`((?:airflow_team_authz|docs|policies|tests|tools|\.regal)/[^`:]*)(?:::(\w+))?`", checklists)
    assert len(named) > 30
    for file, test in named:
        assert (REPOSITORY / file).exists(), file
        assert not test or f"\ndef {test}(" in (REPOSITORY / file).read_text(), f"{file}::{test}"


def test_each_checklist_is_there() -> None:
    things = re.findall(r"^### To add a (.*)$", PAGE, re.MULTILINE)
    assert things == ["resource type", "login manager", "door", "gate rule", "command"]


def test_hooks_before_a_commit_run_checks_of_the_project_and_download_nothing() -> None:
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    checks = (REPOSITORY / "tools/check.sh").read_text()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        # The program and its command, such as `opa check`.
        assert re.search(rf"^run .* {' '.join(hook['entry'].split()[:2])}\b", checks, re.MULTILINE), hook["entry"]


def test_the_workflow_runs_what_ci_runs() -> None:
    (job,) = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_one_module_knows_the_differences_between_versions_of_airflow() -> None:
    package = REPOSITORY / "airflow_team_authz"
    # What Airflow's version is compared with, or a part that an older one lacks is looked for.
    sign = re.compile(r"Airflow 3\.[12]\b|airflow\.__version__|hasattr\((?:module|AssetManager|BaseAuthManager)\b")
    found = [file for file in package.rglob("*.py") if sign.search(file.read_text())]
    assert found == [package / "airflow_compat.py"]
