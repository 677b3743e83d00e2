"""From Rego to a bundle: who may declare what, what is refused and how it is told, and what counts as a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from airflow_team_authz.files import replacing
from airflow_team_authz.model import Decision, Evaluations, Resource, Subject
from airflow_team_authz.opa import compile as compiler
from airflow_team_authz.opa.compile import CompileError, compile_directory, compile_shipped, find_opa, fingerprint
from tests.conftest import opened, restore, unpack, write

Policy = Callable[[dict[str, str]], Path]
ANN = Subject("user", "ann", ("b",), ("op",))


def decide(source: Path, team: str = "b") -> Decision:
    with opened(source) as decisions:
        return decisions.decide(Evaluations(ANN, "read", [Resource("connection", team, "pg")])).decisions[0]


def compiled(source: Path) -> dict[str, bytes]:
    bundle = source.parent / "bundle.tar.gz"
    compile_directory(source, bundle)
    return unpack(bundle)


def revision(source: Path) -> str:
    return str(json.loads(compiled(source)[".manifest"])["revision"])


TEAMS_ONLY = "files under teams/<id> may only declare that team's package, such as teams.a"
A_WORD = "a team's files are in teams/<id>, and <id> is a word"
SHIPPED = "which the shipped policy is in: use package airflow.site"


@pytest.mark.parametrize(
    ("file", "package", "told"),
    [
        ("teams/a/a.rego", "teams.b", TEAMS_ONLY),
        ("teams/a/a.rego", 'teams["b"]', TEAMS_ONLY),
        ("teams/a/a.rego", "teams.b.a", TEAMS_ONLY),
        ("teams/a/a.rego", "teams.ab", TEAMS_ONLY),
        ("teams/a/a.rego", "teams", TEAMS_ONLY),
        ("teams/a/a.rego", 'teams["a.b"]', TEAMS_ONLY),
        ("teams/a/a.rego", 'teams["a/b"]', TEAMS_ONLY),
        ("teams/a/a.rego", r'teams["a\"]"]', TEAMS_ONLY),
        ("teams/a/a.rego", "airflow.authz", TEAMS_ONLY),
        ("teams/a/a.rego", "airflow.site", TEAMS_ONLY),
        ("teams/a/a.rego", "airflow", TEAMS_ONLY),
        ("teams/a/teams/b/b.rego", "teams.b", TEAMS_ONLY),
        ("teams/a/airflow/authz/a.rego", "airflow.authz", TEAMS_ONLY),
        ("teams/a/größe?#%2f:b.rego", "teams.b", TEAMS_ONLY),
        ("teams/a/two\nlines.rego", "teams.b", TEAMS_ONLY),
        ("teams/ä/a.rego", 'teams["a\u0308"]', "such as teams.ä"),
        ("teams/a.rego", "teams.a", A_WORD),
        ("teams/a.b/a.rego", 'teams["a.b"]', A_WORD),
        ('teams/a"]["b/a.rego', "teams.a", A_WORD),
        ("airflow/site/site.rego", "airflow.authz", SHIPPED),
        ("airflow/site/site.rego", 'airflow["authz"]', SHIPPED),
        ("airflow/site/site.rego", "airflow.authz.guardrails", SHIPPED),
        ("airflow/site/site.rego", 'airflow.authz["x.y"]', SHIPPED),
        ("airflow/authz.rego", "airflow.authz", SHIPPED),
        ("airflow/site/site.rego", "airflow", SHIPPED),
        ("site.rego", "airflow.authz", SHIPPED),
    ],
)
def test_a_package_of_somebody_else_is_refused(file: str, package: str, told: str, policy: Policy) -> None:
    with pytest.raises(CompileError) as raised:
        compiled(policy({file: f'package {package}\n\nallow contains "mine" if input.action == "read"\n'}))
    assert str(raised.value).startswith(f"{file} declares package ")
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("file", "package", "team"),
    [
        ("teams/a/a.rego", "teams.a", "a"),
        ("teams/a/a.rego", 'teams["a"]', "a"),
        ("teams/a/deep/er/größe #1.rego", "teams.a", "a"),
        ("teams/a-1_b/a.rego", 'teams["a-1_b"]', "a-1_b"),
        ("teams/1/a.rego", 'teams["1"]', "1"),
        ("teams/default/a.rego", 'teams["default"]', "default"),
        ("teams/größe/a.rego", 'teams["größe"]', "größe"),
        ("airflow/site/site.rego", "airflow.site", "a"),
    ],
)
def test_the_own_package_decides(file: str, package: str, team: str, policy: Policy) -> None:
    source = policy({file: f'package {package}\n\nallow contains "für alle" if input.action == "read"\n'})
    decision = decide(source, team)
    assert (decision.allow, decision.reasons) == (True, ("für alle",))


@pytest.mark.parametrize("call", [
    'http.send({"method": "get", "url": "http://x"})', "time.now_ns()", "opa.runtime()", 'rand.intn("x", 2)',
    'units.parse_bytes("1K")', 'io.jwt.decode("x")',
    'trace("x")', 'uuid.rfc4122("x")', 'net.lookup_ip_addr("x")', 'to_number("x")', 'sprintf("%v", [1])',
])  # fmt: skip
@pytest.mark.parametrize("file", ["teams/a/a.rego", "airflow/site/s.rego"])
def test_what_is_not_a_function_of_the_question_is_refused(call: str, file: str, policy: Policy) -> None:
    package = "teams.a" if "teams" in file else "airflow.site"
    with pytest.raises(CompileError, match=rf"{file}:4: .*undefined function {call.partition('(')[0]}"):
        compiled(policy({file: f'package {package}\n\nallow contains "x" if {{\n\t{call}\n}}\n'}))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("teams/a/a.rego", b"package teams.a\n\nallow contains if {", r"teams/a/a.rego:3: .*rego_parse_error"),
        ("teams/a/a.rego", b"package teams.a\n\nallow if x == 1", r"teams/a/a.rego:3: .*rego_unsafe_var_error"),
        ("teams/a/a.rego", b"package teams.a\n\n# \xe4\n", r"teams/a/a.rego:3: .*illegal"),
        ("teams/a/a.rego", b'package teams.a\n\nallow contains "\xe4"', r"teams/a/a.rego:3: .*illegal"),
        ("teams/a/data.json", b"{nope", r"teams/a/data.json:1: .*invalid character"),
        ("teams/a/data.json", b"", r"teams/a/data.json:1: .*EOF"),
        ("data.json", b"[1]", r"data.json:1: .*root value must be object"),
        ("teams/a/data.yaml", b"a: [", r"teams/a/data.yaml:1: "),
        (
            "airflow/authz/authz.rego",
            b"package airflow.authz",
            "airflow/authz is part of the package and cannot be repl",
        ),
        ("airflow/authz/data.json", b"{}", "airflow/authz is part of the package and cannot be replaced"),
    ],
)
def test_a_file_that_cannot_be_compiled_is_told_by_name(file: str, content: bytes, told: str, policy: Policy) -> None:
    source = policy({file: ""})
    (source / file).write_bytes(content)
    bundle = source.parent / "bundle.tar.gz"
    bundle.write_bytes(b"the last good one")
    with pytest.raises(CompileError, match=told):
        compile_directory(source, bundle)
    assert bundle.read_bytes() == b"the last good one"
    assert sorted(source.parent.iterdir()) == [bundle, source]


def test_no_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=f"the policy directory {tmp_path}/missing does not exist"):
        compile_directory(tmp_path / "missing", tmp_path / "bundle.tar.gz")


def test_data_that_is_not_utf_8_does_no_harm(policy: Policy) -> None:
    source = policy({"teams/a/data.json": ""})
    (source / "teams/a/data.json").write_bytes(b'{"x": "\xe4"}')
    assert decide(source).allow is True


def test_a_file_name_that_is_not_utf_8_is_compiled_and_its_package_checked(policy: Policy) -> None:
    source = policy({"teams/b/b.rego": "package teams.b"})
    odd = Path(os.fsdecode(os.fsencode(source) + b"/teams/b/\xff.rego"))
    odd.write_text('package teams.b\n\ndeny contains "odd" if input.action == "read"')
    assert decide(source).reasons == ("odd",)
    odd.write_text("package teams.a")
    with pytest.raises(CompileError, match=r"declares package teams\.a"):
        compiled(source)


def test_tests_and_other_files_are_left_out(policy: Policy) -> None:
    source = policy({"teams/a/a.rego": "package teams.a\n"})
    before = revision(source), fingerprint(source)
    more = dict.fromkeys(("teams/a/a_test.rego", ".git/a.rego", "policy.wasm", ".manifest", "README.md"), "package")
    assert (revision(policy(more)), fingerprint(source)) == before
    assert not [name for name in compiled(source) if "test" in name or ".git" in name]


# Each would allow ann to read what team a owns, if the shipped policy did not win.
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"data.json": '{"airflow": {"authz": {"speaking": ["team_allows"], "_open_kinds": [{"type": "connection"}]}}}'},
        {"airflow/data.json": '{"authz": {"decisions": [{"allow": true, "reasons": [], "layer": "team"}]}}'},
        {"airflow/data.json": '{"authz": {"outcomes": {"nothing_allows": {"allow": true, "layer": "team"}}}}'},
        {"teams/b/b.rego": 'package teams.b\n\nallow contains "b\'s"'},
        {"teams/a/data.json": "[1]", "teams/b/data.json": '{"allow": ["mine"]}'},
    ],
)
def test_the_shipped_policy_always_decides(files: dict[str, str], policy: Policy) -> None:
    source = policy({".keep": ""} | files)
    assert decide(source, "b").reasons == ("op in team b",)
    assert decide(source, "a").allow is False


def test_roles_default_to_the_shipped_ones(policy: Policy, tmp_path: Path) -> None:
    compile_shipped(tmp_path / "shipped.tar.gz")
    assert decide(tmp_path / "shipped.tar.gz").reasons == ("op in team b",)
    assert decide(policy({".keep": ""})).reasons == ("op in team b",)
    roles = json.loads((compiler.shipped_policies() / "airflow/roles/data.json").read_text())
    roles["permissions"]["connection"]["read"] = ["admin"]
    assert decide(policy({"airflow/roles/data.json": json.dumps(roles)})).allow is False


def test_links_to_files_are_followed_and_others_are_told(policy: Policy) -> None:
    source = policy({"teams/b/b.rego": "package teams.b", "..data/b": 'package teams.b\n\ndeny contains "linked"'})
    link = source / "teams/b/link.rego"
    link.symlink_to("../../..data/b")
    assert decide(source).reasons == ("linked",)
    for target, told in (("nowhere", "No such file"), ("link.rego", "Too many levels"), ("../b", "Is a directory")):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(OSError, match=told):
            compiled(source)
    link.unlink()
    (source / "teams/c").symlink_to("b")
    with pytest.raises(OSError, match="teams/c is a link to a directory"):
        compiled(source)


def test_same_policy_is_same_revision(policy: Policy, tmp_path: Path) -> None:
    files = {"teams/a/a.rego": "package teams.a.helpers\n", "teams/a/data.json": "{}"}
    seen = [revision(policy(files)), revision(write(tmp_path / "elsewhere" / "copy", files))]
    assert seen[0] == seen[1]
    seen.append(revision(policy({"teams/a/data.json": "{ }"})))
    seen.append(revision(policy({"teams/a/b.rego": 'package teams.a["x.y"]\n'})))
    (policy({}) / "teams/a/b.rego").rename(policy({}) / "teams/a/c.rego")
    seen.append(revision(policy({})))
    assert len(set(seen)) == 4


def rewrite(path: Path) -> None:
    restore(path, path.read_bytes().swapcase())


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda _: None, False),
    "a test": (lambda source: write(source, {"teams/a/a_test.rego": "package teams.a_test"}), False),
    "a hidden directory": (lambda source: write(source, {".git/a.rego": "package teams.a"}), False),
    "something else": (lambda source: write(source, {"teams/a/README.md": "# a"}), False),
    "edited": (lambda source: write(source, {"teams/a/a.rego": "package teams.a\n\nx := 1"}), True),
    "rewritten": (lambda source: rewrite(source / "teams/a/a.rego"), True),
    "rewritten behind a link": (lambda source: rewrite(source / "..data/data.json"), True),
    "added": (lambda source: write(source, {"teams/a/data.yml": "x: 1"}), True),
    "removed": (lambda source: (source / "teams/a/a.rego").unlink(), True),
    "renamed": (lambda source: (source / "teams/a/a.rego").rename(source / "teams/a/b.rego"), True),
    "moved": (lambda source: (source / "teams").rename(source / "squads"), True),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_noticed_by_the_fingerprint(case: str, policy: Policy) -> None:
    change, noticed = CHANGES[case]
    source = policy(
        {"teams/a/a.rego": "package teams.a", "teams/b/b.rego": "package teams.b", "..data/data.json": "{}"}
    )
    (source / "teams/b/data.json").symlink_to("../../..data/data.json")
    before = fingerprint(source)
    change(source)
    assert (fingerprint(source) != before) is noticed


def program(path: Path, script: str, mode: int = 0o755) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(f"#!/bin/sh\n{script}\n".encode("latin-1"))
    path.chmod(mode)
    return str(path)


OPAS = {
    "old": ("echo Version: 1.22.1", 0o755, "is OPA 1.22.1: 1.22.2 or newer is needed"),
    "silent": ("true", 0o755, "does not tell a version: is this Open Policy Agent"),
    "not UTF-8": ("echo Größe", 0o755, "does not tell a version"),
    "failing": ("echo no licence >&2; exit 3", 0o755, "^no licence$"),
    "not executable": ("echo Version: 1.22.2", 0o644, "cannot run .*opa: .*Permission denied"),
    "hanging": ("exec sleep 60", 0o755, "cannot run .*opa: .*timed out"),
}


@pytest.mark.parametrize("case", OPAS)
def test_an_unfit_opa_is_told(case: str, tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    script, mode, told = OPAS[case]
    monkeypatch.setattr(compiler, "_TIMEOUT_SECONDS", 0.5 if case == "hanging" else 60)
    opa = program(tmp_path / "bin" / "opa", script, mode)
    with pytest.raises(CompileError, match=told):
        find_opa(opa)
    with pytest.raises(CompileError, match=told):
        compile_directory(policy({".keep": ""}), tmp_path / "bundle.tar.gz", opa)
    assert not (tmp_path / "bundle.tar.gz").exists()


@pytest.mark.parametrize("version", ["1.22.2", "1.100.0", "2.0.0"])
def test_opa_is_found_as_configured_beside_python_or_on_the_path(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    with pytest.raises(CompileError, match=r"none was found .* set \[team_authz\] opa"):
        find_opa()
    with pytest.raises(CompileError, match=r"cannot run .*missing: .*No such file"):
        find_opa(str(tmp_path / "missing"))
    for place in ("path", "beside"):
        opa = program(tmp_path / place / "opa", f"echo Version: {version}")
        assert find_opa() == opa
    own = program(tmp_path / "own" / "opa", f"echo Version: {version}")
    assert find_opa(own) == own


def test_a_program_that_ends_while_a_thread_writes_says_nothing() -> None:
    code = """
import threading
from pathlib import Path
from airflow_team_authz.opa.compile import scratch_directory

begun = threading.Event()

def write():
    with scratch_directory() as directory:
        begun.set()
        number = 0
        while True:
            place = Path(directory, str(number := number + 1))
            place.mkdir(parents=True)

threading.Thread(target=write, daemon=True).start()
begun.wait()
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("", "")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """What has been built; quickly, and of which everybody can tell what it is of."""
    seen: list[dict[str, bytes]] = []

    def build(files: dict[str, bytes], _: str | None) -> bytes:
        seen.append(files)
        if b"broken" in files["airflow/site/site.rego"]:
            raise CompileError("it does not parse")
        return b"bundle of " + files["airflow/site/site.rego"]

    monkeypatch.setattr(compiler, "_built", build)
    return seen


def site(root: Path, rules: str = "package airflow.site\n") -> Path:
    return write(root / "policy", {"airflow/site/site.rego": rules, "teams/alpha/data.json": "{}"})


def built(root: Path, opa: str | None = None) -> bytes:
    compile_directory(root / "policy", root / "out", opa, root / "state" / "built")
    return (root / "out").read_bytes()


def kept(root: Path) -> list[Path]:
    return sorted((root / "state" / "built").glob("*.tar.gz"))


def test_a_directory_is_built_once_for_a_host(tmp_path: Path, builds: list[dict[str, bytes]]) -> None:
    site(tmp_path)
    assert {built(tmp_path) for _ in range(3)} == {b"bundle of package airflow.site\n"}
    assert len(builds) == 1
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "state" / "built", *kept(tmp_path))] == [0o700, 0o600]


def test_whatever_a_bundle_depends_on_builds_it_anew(
    tmp_path: Path, builds: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    site(tmp_path)
    own = program(tmp_path / "opa", "echo Version: 9.9.9")

    def another_version() -> None:
        monkeypatch.setattr(compiler, "_SOURCES", (write(tmp_path, {"compile.py": "another"}) / "compile.py",))

    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: site(tmp_path, "package airflow.site\n\nx := 1\n"),
        lambda: write(tmp_path / "policy", {"teams/alpha/data.json": '{"x": 1}'}),
        lambda: (tmp_path / "policy/teams/alpha").rename(tmp_path / "policy/teams/beta"),
        lambda: program(tmp_path / "opa", "echo Version: 9.9.10"),
        another_version,
    ]
    for number, change in enumerate(changes, 1):
        change()
        built(tmp_path, own)
        built(tmp_path, own)
        assert len(builds) == number


def test_what_does_not_compile_is_not_kept(tmp_path: Path, builds: list[dict[str, bytes]]) -> None:
    site(tmp_path, "package airflow.site\n\nbroken {\n")
    for _ in range(2):
        with pytest.raises(CompileError, match="it does not parse"):
            built(tmp_path)
    assert len(builds) == 2
    assert kept(tmp_path) == []


@pytest.mark.parametrize("case", ["its content", "its mode", "the directory's mode"])
def test_a_bundle_that_others_may_have_written_is_built_anew(
    case: str, tmp_path: Path, builds: list[dict[str, bytes]]
) -> None:
    site(tmp_path)
    good = built(tmp_path)
    (file,) = kept(tmp_path)
    match case:
        case "its content":
            file.write_bytes(b"bundle of somebody else")
        case "its mode":
            file.chmod(0o606)
        case "the directory's mode":
            file.parent.chmod(0o777)
            file.write_bytes(b"bundle of somebody else")
    assert built(tmp_path) == good
    assert len(builds) == 2


def test_threads_that_write_one_file_at_the_same_time_leave_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with ThreadPoolExecutor(1) as other, ExitStack() as ended:
        with replacing(file) as mine:
            mine.write_text("whole")
            theirs = other.submit(ended.enter_context, replacing(file)).result()
            theirs.write_text("ha")
        assert file.read_text() == "whole"
        theirs.write_text("half and half")
    assert file.read_text() == "half and half"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
