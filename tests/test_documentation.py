"""What the documentation shows is tried here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
from fastapi import FastAPI
from typer.main import get_command

from airflow_team_authz.cli import app as cli
from airflow_team_authz.gate.rules import PAGE, RULES, as_markdown
from airflow_team_authz.model import Subject
from airflow_team_authz.opa.compile import find_opa
from airflow_team_authz.server import approval_routes, authzen_routes
from airflow_team_authz.server import routes as server_routes
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


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    rows = {
        name: (default.strip(), meaning)
        for name, default, meaning in re.findall(r"^\| `(\w+)` \|(.*?)\| (.*) \|$", page, re.MULTILINE)
    }
    assert rows == {
        name: ("" if field.default is None else f"`{field.default}`", field.description)
        for name, field in Settings.model_fields.items()
    }


def test_links_in_the_documentation_lead_somewhere() -> None:
    folders = (REPOSITORY / "docs").rglob("*.md"), (REPOSITORY / "benchmarks").glob("*.md")
    pages = [*REPOSITORY.glob("*.md"), *chain.from_iterable(folders)]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
        if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    assert broken == []


def test_each_promise_names_tests_that_exist() -> None:
    page = (REPOSITORY / "docs/security.md").read_text()
    promises = page.partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and line != "| promise | tests |"]
    assert len(rows) > 20
    for row in rows:
        _, promise, tests, _ = row.split("|")
        named = re.findall(r"`([^`:]+)::(\w+)`", tests)
        assert named, f"no test for: {promise}"
        assert re.sub(r"`[^`]*`|[, ]", "", tests) == ""
        for file, test in named:
            assert f"\ndef {test}(" in (REPOSITORY / file).read_text(), f"{file}::{test} of: {promise}"


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def test_the_gates_rules_are_those_of_its_table_and_page() -> None:
    """In the code each is the first argument of what makes a finding. Put `as_markdown()` into the page."""
    code = "".join(path.read_text() for path in (REPOSITORY / "airflow_team_authz").rglob("*.py"))
    made = re.findall(r'(?:Finding|_found|_told|_findings|of_opa)\(\s*"([a-z-]+)"', code)
    assert set(RULES) == set(made)
    assert as_markdown() in (REPOSITORY / PAGE).read_text()


def test_the_bundle_servers_routes_are_those_of_its_page() -> None:
    app = FastAPI()
    app.include_router(server_routes.router)
    app.include_router(approval_routes.router)
    app.include_router(authzen_routes.router)
    routes = {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path)): {one["name"] for one in operation.get("parameters", [])}
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }
    page = (REPOSITORY / "docs/bundle-server.md").read_text()
    told = re.findall(r"`(GET|PUT|POST|DELETE) (/[^`?]*)\??([^`]*)`", page)
    assert len(told) > 10
    for method, path, query in told:
        names = {part.partition("=")[0] for part in query.split("&") if part}
        assert names <= routes[method, re.sub(r"\{.*?\}", "{}", path)]


def test_commands_and_options_of_the_documentation_exist() -> None:
    typed = [
        (page.name, line.split("#")[0])
        for page in PAGES
        for line in re.findall(r"(?<![./\w-])team-authz ([a-z][^`|\n]*)", page.read_text())
    ]
    assert len(typed) > 40
    for page_name, line in typed:
        words = line.split()
        command: Any = get_command(cli)
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, (page_name, line)
            command = command.commands[words.pop(0)]
        used = {word for word in words if re.match("--?[a-z]", word)}
        assert used <= {option for parameter in command.params for option in parameter.opts}, (page_name, line)


def test_options_that_the_documentation_names_alone_exist() -> None:
    of_airflow = {"--apps"}
    named = {option for page in PAGES for option in re.findall(r"`(--[a-z-]+)", page.read_text())} - of_airflow
    assert len(named) > 8
    assert named <= set(options(get_command(cli)))


def options(command: Any) -> Iterator[str]:
    """Of a command and those below it."""
    yield from (option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))
    for below in getattr(command, "commands", {}).values():
        yield from options(below)
