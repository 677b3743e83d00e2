"""docs/writing-rules.md is tried here: questions get their answers, recipes are checked, the gate reports mistakes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest

from airflow_team_authz.gate.check import check_package
from airflow_team_authz.opa.compile import find_opa, shipped_policies

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/writing-rules.md").read_text()
POLICIES = shipped_policies()
SCHEMA = json.loads((POLICIES / "schemas/input.json").read_text())
DECIDE = "[answer | some question in input; answer := data.airflow.authz.decision with input as question]"


class Section(NamedTuple):
    """What stands under one heading of the page."""

    title: str
    rego: str
    data: dict[str, Any] | None
    questions: list[dict[str, Any]]
    answers: list[str]


def sections() -> dict[str, Section]:
    """Every part of the page that has fenced blocks. A block of JSON without a subject is data."""
    found = {}
    for title, text in re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE):
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        objects = [json.loads(block) for language, block in blocks if language == "json"]
        data = [one for one in objects if "subject" not in one]
        rego = [block for language, block in blocks if language == "rego"]
        assert max(len(data), len(rego)) <= 1, title
        assert {language for language, _ in blocks} <= {"json", "rego", "text"}
        questions = [one for one in objects if "subject" in one]
        answers = [block.strip() for language, block in blocks if language == "text"]
        # Each answer stands behind its question.
        kinds = [language for language, _ in blocks if language != "rego"][len(data) :]
        assert all(pair != ("json", "json") for pair in pairwise(kinds)), title
        if blocks:
            found[title] = Section(title, "".join(rego), next(iter(data), None), questions, answers)
    return found


SECTIONS = sections()
SAMPLES = {title: part for title, part in SECTIONS.items() if not part.rego and not part.data}
MISTAKES = {title: part for title, part in SECTIONS.items() if part.rego and not part.questions}
RECIPES = {title: part for title, part in SECTIONS.items() if part not in [*SAMPLES.values(), *MISTAKES.values()]}


def package(rego: str) -> Path:
    """Where the file of a recipe goes; data without rules is the directory's."""
    (name,) = re.findall(r"^package ([\w.]+)", rego, re.MULTILINE) or ["airflow.directory"]
    return Path(*name.split("."))


def decide(part: Section, directory: Path) -> list[dict[str, Any]]:
    """What OPA says to the questions with the shipped policy and a recipe."""
    for shipped in ("airflow/authz", "airflow/roles"):
        shutil.copytree(POLICIES / shipped, directory / shipped, ignore=shutil.ignore_patterns("*_test.rego"))
    place = directory / package(part.rego)
    place.mkdir(parents=True)
    (place / "rules.rego").write_text(part.rego) if part.rego else None
    (place / "data.json").write_text(json.dumps(part.data or {}))
    command = [find_opa(), "eval", "--format=json", "--stdin-input", "--bundle", str(directory), DECIDE]
    asked = json.dumps(part.questions)
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)["result"][0]["expressions"][0]["value"]
    return answers


def as_written(answer: dict[str, Any]) -> str:
    return f"{'allow' if answer['allow'] else 'deny'}, {answer['layer']}: {'; '.join(answer['reasons'])}"


def test_the_baseline_answers_the_samples_as_the_page_says(tmp_path: Path) -> None:
    questions = [question for part in SAMPLES.values() for question in part.questions]
    answers = decide(Section("samples", "", None, questions, []), tmp_path)
    assert [*map(as_written, answers)] == [answer for part in SAMPLES.values() for answer in part.answers]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_decides_as_the_page_says(tmp_path: Path, title: str) -> None:
    part = RECIPES[title]
    assert [as_written(answer) for answer in decide(part, tmp_path)] == part.answers
    # The recipe makes the difference: without it, at least one answer is another.
    without = decide(part._replace(rego="", data=None), tmp_path / "without")
    assert [*map(as_written, without)] != part.answers


def test_recipes_are_as_opa_wants_them(tmp_path: Path) -> None:
    texts = [part.rego for part in RECIPES.values() if part.rego]
    files = [tmp_path / f"recipe{number}.rego" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    # As `team-authz init` has it in each file, so that the checker knows the question.
    for above in ("teams", "airflow"):
        schemas = f"# METADATA\n# scope: subpackages\n# schemas:\n#   - input: schema.input\npackage {above}\n"
        (tmp_path / f"{above}.rego").write_text(schemas)
    limits = ["--schema", str(POLICIES / "schemas"), "--capabilities", str(POLICIES / "capabilities.json")]
    for command in (["fmt", "--fail", "--list", *map(str, files)], ["check", "--strict", *limits, str(tmp_path)]):
        done = subprocess.run([find_opa(), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_questions_are_as_the_schema_says_and_every_type_and_subject_has_one() -> None:
    questions = [question for part in SECTIONS.values() for question in part.questions]
    for question in questions:
        jsonschema.Draft7Validator(SCHEMA).validate(question)
    types = SCHEMA["properties"]["resource"]["properties"]["type"]["enum"]
    # Each type has a heading of its own, and the sample under it is of that type.
    assert {part.title for part in SAMPLES.values() if part.title in types} == set(types)
    assert all(SAMPLES[type_].questions[0]["resource"]["type"] == type_ for type_ in types)
    subjects = SCHEMA["properties"]["subject"]["properties"]["type"]["enum"]
    assert {question["subject"]["type"] for question in questions} == set(subjects)


def test_the_gate_reports_the_mistakes_as_the_page_says() -> None:
    assert len(MISTAKES) >= 5
    names = {title: f"teams/alpha/mistake{number}.rego" for number, title in enumerate(MISTAKES)}
    # What OPA finds while it reads a package keeps it from looking further.
    together: dict[str, dict[str, bytes]] = {}
    for title, part in MISTAKES.items():
        stage = re.search(r"\(opa: (\w+: \S+ \S+)", " ".join(part.answers))
        together.setdefault(stage[1] if stage else "", {})[names[title]] = part.rego.encode()
    found = [finding for files in together.values() for finding in check_package(files, "alpha")]
    for title, part in MISTAKES.items():
        of_file = {f"{finding.rule}: {finding.message}" for finding in found if finding.file.endswith(names[title])}
        assert set(part.answers) <= of_file, title
