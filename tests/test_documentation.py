"""What the documentation shows is tried here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema

from airflow_team_authz.compile import find_opa
from airflow_team_authz.model import Subject
from airflow_team_authz.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


def test_the_readme_rule_is_accepted_and_decides_as_it_says(tmp_path: Path) -> None:
    rule = tmp_path / "teams" / "alpha" / "alpha.rego"
    rule.parent.mkdir(parents=True)
    rule.write_text(example("rego"))
    policies = REPOSITORY / "policies"
    checks = ["--strict", "--schema", str(policies / "schemas"), "--capabilities", str(policies / "capabilities.json")]
    checked = subprocess.run([find_opa(), "check", *checks, str(policies / "airflow/authz"), str(rule)], check=False)
    assert checked.returncode == 0
    assert (
        subprocess.run([find_opa(), "fmt", "--fail", str(rule)], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )
    question = tmp_path / "question.json"
    subject = {"type": "user", "id": "bob", "team_ids": ["beta"], "roles": ["op"]}
    resource = {"type": "connection", "id": "alpha_warehouse", "team_id": "alpha"}
    question.write_text(json.dumps({"subject": subject, "action": "read", "resource": resource}))
    decided = subprocess.run(
        [
            sys.executable,
            "-m",
            "airflow_team_authz.cli",
            "decide",
            str(question),
            "--policy",
            str(tmp_path),
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    (decision,) = json.loads(decided.stdout)
    assert decision["allow"] is True
    assert decision["reasons"] == ["alpha lends its warehouse to beta"]
    assert decision["layer"] == "team"


def test_the_readme_question_is_answered_as_it_says(tmp_path: Path) -> None:
    question = tmp_path / "question.json"
    question.write_text(example("json"))
    decided = subprocess.run(
        [sys.executable, "-m", "airflow_team_authz.cli", "decide", str(question), "--policy", "policies"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert example("text").strip() in " ".join(decided.stdout.split())
    assert decided.returncode == 1


def on_page(page: str, language: str) -> list[str]:
    text = (REPOSITORY / "docs" / page).read_text()
    return [str(found) for found in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def test_the_directory_of_the_documentation_says_what_whoami_shows(tmp_path: Path) -> None:
    (directory,) = on_page("logins.md", "json")
    schema = json.loads((REPOSITORY / "policies/schemas/directory.json").read_text())
    jsonschema.Draft7Validator(schema).validate(json.loads(directory))
    file = tmp_path / "policy" / "airflow" / "directory" / "data.json"
    file.parent.mkdir(parents=True)
    file.write_text(directory)
    (shown,) = [text for text in on_page("logins.md", "console") if "whoami" in text]
    command, _, expected = shown.partition("\n")
    arguments = command.removeprefix("$ team-authz ").split()
    done = subprocess.run(
        [sys.executable, "-m", "airflow_team_authz.cli", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.sub(r"revision \w+", "revision …", done.stdout) == expected


def test_the_identity_of_the_documentation_reads_its_users() -> None:
    (code,) = on_page("logins.md", "python")
    names: dict[str, Any] = {"__name__": "our_login"}
    exec(code, names)  # noqa: S102 - what the documentation shows
    user = SimpleNamespace(get_name=lambda: "ann", badges=["blue"])
    assert names["BadgeIdentity"]().subject(user) == Subject("user", "ann", groups=("badge-blue",))


def test_every_setting_is_documented_with_its_default() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\|", page, re.MULTILINE))
    defaults = {
        name: "" if field.default is None else f"`{field.default}`" for name, field in Settings.model_fields.items()
    }
    assert rows == defaults


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
        if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    assert broken == []
