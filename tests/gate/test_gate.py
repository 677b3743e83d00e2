"""The gate on everything but rules: files, sizes, texts, data and its schema, tests; and how it tells of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from airflow_team_authz.cli import app
from airflow_team_authz.gate.check import check_package, read_package
from airflow_team_authz.gate.package_files import MAX_DATA_BYTES
from airflow_team_authz.gate.platform_part import check_platform, failing_tests, read_platform
from airflow_team_authz.opa.compile import CompileError, shipped_policies
from tests.conftest import REPOSITORY
from tests.gate.test_corpus import TEST, formatted, package, some

GOOD = package('allow contains "x" if data.teams.alpha.lent[input.resource.id]\n', typed=True)
ROOT = "teams/alpha"


def rules(**files: bytes | None) -> set[str]:
    """The rules of the gate that a good package breaks with these files more, or less (``None``)."""
    changed = GOOD | {f"{ROOT}/{name}": content for name, content in files.items() if content is not None}
    for name, content in files.items():
        if content is None:
            changed.pop(f"{ROOT}/{name}")
    if files and "alpha_test.rego" not in files:
        # Running them takes the gate most of its time.
        changed.pop(f"{ROOT}/alpha_test.rego")
    return {finding.rule for finding in check_package(changed, "alpha")}


def test_a_good_package_is_good() -> None:
    assert rules() == set()


# The file of a package, its content (``None``: there is none), and the rule that is broken.
WRONG: list[tuple[str, bytes | None, str]] = [
    (".hidden.rego", b"package teams.alpha\n", "file-name"),
    ("a b.rego", b"package teams.alpha\n", "file-name"),
    ("größe.rego", b"package teams.alpha\n", "file-name"),
    ("x" * 250 + ".rego", b"package teams.alpha\n", "file-name"),
    ("1/2/3/4/5.rego", b"package teams.alpha\n", "file-name"),
    ("../beta/x.rego", b"package teams.beta\n", "file-name"),
    ("deep/data.json", b"{}", "data-place"),
    ("data.yaml", b"x: 1", "data-place"),
    ("policy.wasm", b"", "foreign-file"),
    ("other.json", b"{}", "foreign-file"),
    (".manifest", b"{}", "file-name"),
    ("x.rego", b"package teams.alpha # \xff\n", "not-text"),
    ("x.rego", "package teams.alpha # \u202e\n".encode(), "not-text"),
    ("x.rego", "\ufeffpackage teams.alpha\n".encode(), "not-text"),
    ("x.rego", b"package teams.alpha\0\n", "not-text"),
    ("x.rego", b"package teams.alpha\n# " + b"x" * 300_000, "too-large"),
    ("x.rego", b"package teams.beta\n", "foreign-package"),
    ("x.rego", b"package teams\n", "foreign-package"),
    ("x.rego", b"package airflow.authz\n", "foreign-package"),
    ("x.rego", b"package teams.alpha_test\n", "foreign-package"),
    ("x_test.rego", b"package teams.beta_test\n", "foreign-package"),
    ("x_test.rego", b"package airflow.authz\n", "foreign-package"),
    ("x.rego", b"package teams.alpha.allow\n\nx := 1\n", "entry-rule"),
    ("x.rego", b"package teams.alpha.deny.x\n\nx := 1\n", "entry-rule"),
    ("x.rego", b"package teams.alpha\n\nallow contains if {\n", "parse"),
    ("x.rego", b"", "parse"),
    *(
        ("x.rego", b"package teams.alpha\n\nx := " + b"[" * depth + b"1" + b"]" * depth + b"\n", "too-deep")
        for depth in (100, 200, 300, 500)
    ),
    ("x.rego", b"package teams.alpha\n\nx := " + b"[" * 200 + b"1" + b"][0]" * 200 + b"\n", "too-deep"),
    ("data.json", b'{"share": 0.5}', "data-invalid"),
    ("data.json", b'{"text": "' + b"x" * 1001 + b'"}', "data-invalid"),
    ("x_test.rego/y.rego", b"package teams.alpha\n\nx := 1\n", "file-name"),
    ("data.json/y.rego", b"package teams.alpha\n\nx := 1\n", "file-name"),
    ("x.rego", "package teams.alpha\n\n# \u3164\nx := 1\n".encode(), "not-text"),
    ("x.rego", b"package teams.alpha\n\n# fine\rx := 1\n", "not-text"),
    ("x.rego", b"package teams.alpha\n\n# \x1b[8m\nx := 1\n", "not-text"),
    ("x.rego", b"package teams.alpha\n\nx := " + b"[" * 50_000 + b"]" * 50_000 + b"\n", "parse"),
    ("x.rego", b"package teams.alpha\n" + b"".join(b"\nx%d := 1\n" % i for i in range(501)), "too-large"),
    ("x.rego", b"package teams.alpha\nx:=1\n", "format"),
    ("x.rego", b"package teams.alpha\n\nlent := 1\n", "merged"),
    ("data.json", b"{", "data-invalid"),
    ("data.json", b"[]", "data-invalid"),
    ("data.json", b'{"names": ["a"], "names": []}', "data-invalid"),
    ("data.json", b'{"names": NaN}', "data-invalid"),
    ("data.json", b'{"names": 1e400}', "data-invalid"),
    ("data.json", b'{"names": 9007199254740993}', "data-invalid"),
    ("data.json", b'{"names": ["\\ud800"]}', "data-invalid"),
    ("data.json", b'{"names": ' + b"[" * 20 + b"]" * 20 + b"}", "data-invalid"),
    ("data.json", b'{"names": ' + b"[" * 99_999 + b"]" * 99_999 + b"}", "data-invalid"),
    ("data.json", b'{"names": [1]}', "data-invalid"),
    ("data.json", b'{"more": 1}', "data-invalid"),
    ("data.json", b'{"names": ["' + b"x" * 1_100_000 + b'"]}', "too-large"),
    ("data.json", b'{"allow": ["x"]}', "data-decides"),
    ("data.json", b'{"deny": ["x"]}', "data-decides"),
    ("data.json", b'{"default_pool": 7}', "default-pool"),
    ("data.json", b'{"a-b": 7}', "data-key"),
    ("schema.json", None, "schema-missing"),
    ("schema.json", b"{}", "schema-untyped"),
    ("schema.json", b"{", "data-invalid"),
    ("schema.json", b'{"type": "object"}', "schema-untyped"),
    ("schema.json", b'{"type": "object", "additionalProperties": {}}', "schema-untyped"),
    ("schema.json", b'{"type": "object", "additionalProperties": {"type": "array"}}', "schema-untyped"),
    ("schema.json", b'{"type": "object", "additionalProperties": {"type": ["string", "null"]}}', "schema-untyped"),
    ("schema.json", b'{"type": "object", "additionalProperties": false, "$ref": "http://x"}', "schema-untyped"),
    ("schema.json", b'{"type": "object", "additionalProperties": false, "anyOf": []}', "schema-untyped"),
    ("alpha_test.rego", None, "no-tests"),
    ("alpha_test.rego", b"package teams.alpha_test\n\nx := 1\n", "no-tests"),
    ("alpha_test.rego", b"package teams.alpha_test\n\ntest_x[n] if some n in []\n", "no-tests"),
    ("alpha_test.rego", b"package teams.alpha_test\n\ntodo_test_x if true\n", "no-tests"),
    ("alpha_test.rego", b"package teams.alpha_test\n\ntest_x if 1 == 1\n", "coverage"),
    ("alpha_test.rego", b"package teams.alpha_test\n\ntest_x if 1 == 2\n", "test-failed"),
    ("alpha_test.rego", b'package teams.alpha_test\n\ntest_x if http.send({"url": "http://x"})\n', "test-failed"),
    ("alpha_test.rego", b"package teams.alpha_test\n\ntest_x if opa.runtime().env\n", "test-failed"),
]


def _first_of_each_rule() -> Iterator[Any]:
    """All of these, of which the first one for each rule is run by default."""
    seen: set[str] = set()
    for case in WRONG:
        yield case if case[2] not in seen else pytest.param(*case, marks=pytest.mark.exhaustive)
        seen.add(case[2])


@pytest.mark.parametrize(("name", "content", "rule"), _first_of_each_rule())
def test_what_is_wrong_is_told(name: str, content: bytes | None, rule: str) -> None:
    assert rule in rules(**{name: content})


MANY: dict[str, str] = {
    "small objects": '{"limits": {"pg": 1}},',
    "numbers": "1,",
    "empty lists": "[],",
    "texts of a letter": '"a",',
    "nothing": "null,",
    "lists in lists": "[[[[[1]]]]],",
}


@pytest.mark.parametrize("case", some(MANY, 2))
def test_data_that_takes_much_of_an_engine_is_refused(case: str) -> None:
    """However few bytes it has: it takes up to a hundred times as many there."""
    part = MANY[case]
    data = f'{{"names": [{part * (900_000 // len(part))}"x"]}}'.encode()
    found = check_package(GOOD | {f"{ROOT}/data.json": data}, "alpha")
    (told,) = [finding for finding in found if finding.rule == "too-large"]
    taken, allowed = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", told.message))
    assert len(data) <= MAX_DATA_BYTES < allowed < taken
    assert told.file == f"{ROOT}/data.json"
    assert "fewer" in told.help


def test_data_of_few_large_texts_is_fine() -> None:
    data = json.dumps({"names": ["x" * 1_000] * 1_000, "lent": {"pg": True}}).encode()
    assert len(data) > 0.9 * MAX_DATA_BYTES
    assert check_package(GOOD | {f"{ROOT}/data.json": data}, "alpha") == []


def test_rules_that_take_long_to_compile_are_refused() -> None:
    """Each is within its limits, and all together take each process of each host a second or more."""
    loops = "\n".join(f'some x{i} in input.subject.roles; x{i} != "{i}"' for i in range(40))
    rego = "\n".join(f'allow contains "{i}" if {{\n{loops}\n}}\n' for i in range(60))
    found = check_package(package(rego, typed=False), "alpha")
    assert ["its rules compile to" in finding.message for finding in found if finding.rule == "too-large"] == [True]


@pytest.mark.parametrize("team_id", ["", "ab", "x" * 51, "a b", "größe", "../x", "a.b", 'a"', "@platform"])
def test_a_team_that_cannot_be_is_refused(team_id: str) -> None:
    assert "team-id" in {finding.rule for finding in check_package({}, team_id)}


def test_data_of_the_wrong_type_is_found_where_it_is_used() -> None:
    """A built-in on it would fail, and in Wasm a `deny` vanishes without a word."""
    rego = 'deny contains "x" if startswith(data.teams.alpha.limits[input.resource.id], "a")\n'
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"limits": {"type": "object", "additionalProperties": {"type": "number"}}},
    }
    files = package(rego, typed=False) | {
        f"{ROOT}/data.json": b'{"limits": {"pg": 1}}',
        f"{ROOT}/schema.json": json.dumps(schema).encode(),
    }
    found = [finding for finding in check_package(files, "alpha") if finding.rule == "check"]
    assert "startswith: invalid argument" in found[0].message
    schema["properties"]["limits"]["additionalProperties"]["type"] = "string"  # type: ignore[index]
    files |= {f"{ROOT}/data.json": b'{"limits": {"pg": "a1"}}', f"{ROOT}/schema.json": json.dumps(schema).encode()}
    assert check_package(files, "alpha") == []


@pytest.mark.parametrize(
    "test",
    [
        # Ten to the twelfth solutions.
        "test_x if count([1 | some a, _ in m; some b, _ in m; some c, _ in m; some d, _ in m; some e, _ in m;"
        " some f, _ in m; some g, _ in m; some h, _ in m; some i, _ in m; some j, _ in m; a == -1]) == 1",
        # Text that doubles forty times.
        'test_x if count(concat("", [s | some a in m; s := concat(",", [x | some b in m; some c in m; some d in m;'
        ' some e in m; some f in m; some g in m; some h in m; x := $"{a}{b}{c}{d}{e}{f}{g}{h}"])])) == 1',
    ],
)
def test_tests_that_never_end_or_take_all_memory_are_stopped(test: str) -> None:
    text = f"package teams.alpha_test\n\nm := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]\n\n{test}\n"
    found = check_package(GOOD | {f"{ROOT}/alpha_test.rego": formatted(text)}, "alpha")
    assert "test-failed" in {finding.rule for finding in found}


def test_tests_do_not_see_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    found = check_package(
        GOOD | {f"{ROOT}/alpha_test.rego": b"package teams.alpha_test\n\ntest_x if print(opa.runtime())\n"}, "alpha"
    )
    assert "s3cret" not in str(found)


def test_together_with_the_platform(tmp_path: Path) -> None:
    platform = read_platform(REPOSITORY / "policies")
    assert check_package(GOOD, "alpha", platform) == []
    others = {"teams/beta/beta.rego": b"package teams.beta\n\ndeny contains 1 if input.action\n"}
    assert check_package(GOOD, "alpha", {**platform, **others}) == []
    failing = {"airflow/site/x_test.rego": b"package airflow.site_test\n\ntest_x if count(data.teams) == 0\n"}
    found = check_package(GOOD, "alpha", {**platform, **failing})
    assert [finding.rule for finding in found] == ["platform-tests"]
    broken = {"airflow/site/x.rego": b"package airflow.site\n\nallow := 1\n"}
    assert {"merged"} <= {finding.rule for finding in check_package(GOOD, "alpha", {**platform, **broken})}
    assert not list(tmp_path.iterdir())


def test_the_platforms_own_part_is_checked() -> None:
    platform = read_platform(REPOSITORY / "policies")
    assert check_platform(platform) == []
    bad: dict[str, tuple[str, bytes]] = {
        "data-invalid": ("airflow/directory/data.json", b'{"groups": {"x": [{"team": "alpha"}]}}'),
        "check": ("airflow/site/x.rego", b"package airflow.site\n\ndeny contains http.send({})\n"),
        "test-failed": ("airflow/site/x_test.rego", b"package airflow.site_test\n\ntest_never if 1 == 2\n"),
        "pattern": (
            "airflow/site/x.rego",
            b'package airflow.site\n\ndeny contains "x" if glob.match("prod**", [], input.resource.id)\n',
        ),
    }
    for rule, (name, content) in bad.items():
        found = check_platform({**platform, name: content})
        assert {finding.rule for finding in found} == {rule}, found
    stranger = {"airflow/site/x.rego": b"package airflow.authz.guardrails\n\nx := 1\n"}
    assert "declares package airflow.authz.guardrails" in check_platform({**platform, **stranger})[0].message


def test_the_platforms_own_tests_are_run_with_all_teams_and_nobody_elses() -> None:
    platform = read_platform(REPOSITORY / "policies")
    called_test = {"teams/alpha/alpha.rego": b"package teams.alpha\n\ntest_of_nothing := false\n"}
    assert failing_tests(platform, called_test) == ""
    met = {"airflow/site/x_test.rego": b"package airflow.site_test\n\ntest_x if data.teams.alpha.test_of_nothing\n"}
    assert "airflow/site/x_test.rego:3: test_x fails" in failing_tests({**platform, **met}, called_test)


def test_errors_of_ours_are_none_of_the_packages(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot run"):
        check_package(GOOD, "alpha", opa=str(tmp_path / "missing"))


def repository(place: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def test_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    good = str(repository(tmp_path / "good", GOOD | {"teams/alpha/README.md": b"#", "README.md": b"#"}))
    assert run(app, ["bundle", "check", good]).exit_code == 0
    bad = repository(tmp_path / "bad", GOOD | {"teams/alpha/x.rego": b"package teams.beta\n"})
    told = run(app, ["bundle", "check", str(bad)])
    assert told.exit_code == 1
    assert "teams/alpha/x.rego:1: it declares package teams.beta [foreign-package]" in told.output
    listed = json.loads(run(app, ["bundle", "check", str(bad), "--output", "json"]).output)
    assert [sorted(found) for found in listed] == [["file", "help", "level", "line", "message", "rule"]]
    report = json.loads(run(app, ["bundle", "check", str(bad), "--output", "sarif"]).output)
    assert report["version"] == "2.1.0"
    (result,) = report["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "teams/alpha/x.rego"},
        "region": {"startLine": 1},
    }
    assert report["runs"][0]["tool"]["driver"]["rules"][0]["id"] == result["ruleId"] == "foreign-package"
    for arguments in ([str(tmp_path)], [good, "--team", "nobody"], [good, "--platform", str(tmp_path / "no")]):
        assert run(app, ["bundle", "check", *arguments]).exit_code == 2


def test_links_are_not_followed(tmp_path: Path) -> None:
    place = repository(tmp_path, GOOD)
    (tmp_path / "secret.rego").write_text("package teams.alpha\n# s3cret\n")
    os.symlink(tmp_path / "secret.rego", place / ROOT / "link.rego")
    os.symlink(tmp_path, place / ROOT / "all")
    files = read_package(place, "alpha")
    assert not any(b"s3cret" in content for content in files.values())
    found = check_package(files, "alpha")
    assert {(finding.rule, finding.file) for finding in found} >= {
        ("foreign-file", f"{ROOT}/link.rego.link"),
        ("file-name", f"{ROOT}/all/.link"),
    }


def test_the_shipped_policy_of_a_repository_does_not_count(tmp_path: Path) -> None:
    """Whatever somebody has made of .team-authz, rules are checked against ours."""
    files = GOOD | {".team-authz/schemas/input.json": b"{}", ".team-authz/capabilities.json": b"{}"}
    place = repository(tmp_path, files | {f"{ROOT}/x.rego": b"package teams.alpha\n\nx if input.resource.owner\n"})
    assert "check" in {finding.rule for finding in check_package(read_package(place, "alpha"), "alpha")}
    assert (shipped_policies() / "schemas" / "input.json").exists()
    assert TEST
