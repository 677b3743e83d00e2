"""Access reviews: their page, their signatures, the last use of a permission, and the difference of two reviews."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from msgspec import UNSET
from msgspec.structs import replace
from playwright.sync_api import Page

from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey
from airflow_team_authz.cli import matrix, review
from airflow_team_authz.cli.matrix import _same_policy
from airflow_team_authz.cli.support.console import Output, UserError
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.reading import InFile
from airflow_team_authz.model import Decision, Resource, Subject, UnfitKeyError
from airflow_team_authz.review import Allowed, Who
from airflow_team_authz.review.document import FORMAT, NO_USE, NOT_RECORDED, Head, Permission, as_json, read
from airflow_team_authz.review.kinds import holder
from airflow_team_authz.review.last_use import LastUses
from airflow_team_authz.review.page import render
from tests.keycloak.conftest import require
from tests.support.browser import browser, chromium

HEAD = Head(FORMAT, "2026-11-27T11:30:00Z", "89fa52876b7f", "subject", None, None, ("people of Keycloak",))
BOB = Permission("user bob", "person", "read", "connection", "alpha_db", "alpha", "team", "bob is a friend")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x07&lt;\n=cmd()"


def written(file: Path, permissions: Iterable[Permission], head: Head = HEAD) -> Path:
    file.write_text("\n".join(as_json(head, permissions)))
    return file


# The page


class Parsed(HTMLParser):
    """Elements, their attributes, and the text of each element that is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)


def page_of(*permissions: Permission, head: Head = HEAD) -> str:
    return "\n".join(render(head, permissions))


def test_no_name_and_no_reason_is_more_than_text_on_the_page() -> None:
    harmless = Parsed(page_of(BOB))
    hostile = [replace(BOB, **{name: HOSTILE}) for name in Permission.__struct_fields__]
    parsed = Parsed(page_of(*hostile, head=replace(HEAD, revision=HOSTILE, not_covered=(HOSTILE,), type=HOSTILE)))
    assert parsed.tags <= harmless.tags | {"i", "span"}
    assert {name for name, _ in parsed.attributes} <= {name for name, _ in harmless.attributes} | {"class"}
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x07", "\\x07").replace("\n", "\\n")
    assert shown in parsed.texts["h2"]
    assert sum(shown in text for texts in parsed.texts.values() for text in texts) >= len(hostile)


def test_the_pages_own_policy_allows_its_script_and_style_and_nothing_else() -> None:
    text = page_of(BOB)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    directives = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    for name in ("script", "style"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert directives.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert directives == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    named = {name for name, _ in Parsed(text).attributes}
    assert not named & {"src", "href", "action", "style", "srcset", "data", "poster", "background"}
    assert not any(name.startswith("on") for name in named)
    assert "url(" not in text
    assert "://" not in text


def test_the_page_shows_revision_date_and_gaps_and_the_last_use_of_each_action() -> None:
    used = [replace(BOB, action=action, last_use=use) for action, use in (
        ("update", "2026-11-20T10:00:00Z"), ("delete", NO_USE), ("read", NOT_RECORDED))]  # fmt: skip
    text = page_of(*used)
    for told in ("89fa52876b7f", "2026-11-27T11:30:00Z", "people of Keycloak", "does not record this action"):
        assert told in text
    (row,) = re.findall(r"<tr><td>(.*?)</td>", text)
    assert re.sub(r"<[^>]*>", "", row) == "update 2026-11-20, delete no use, read ?"
    assert "is its last use" not in page_of(BOB)


@pytest.fixture(scope="module")
def opened_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    require("" if chromium() else "Chromium is not on this machine: apt-get install chromium")
    file = tmp_path_factory.mktemp("page") / "review.html"
    people = [replace(BOB, who=f"user p{number}", id=f"db_{row}") for number in range(1000) for row in range(20)]
    file.write_text(page_of(*people, replace(BOB, who=HOSTILE, kind="group", type="dag", last_use=NO_USE)))
    with browser() as page:
        yield page, file


@pytest.mark.exhaustive
def test_a_browser_filters_a_thousand_people_and_asks_nobody(opened_page: tuple[Page, Path]) -> None:
    page, file = opened_page
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(file.as_uri())
    page.get_by_text("20,001 rows of 1001 of 1001 subjects").wait_for()
    page.mouse.wheel(0, 20_000)
    page.fill("#search", "db_7")
    page.get_by_text("1,000 rows of 1000 of 1001 subjects").wait_for()
    # The first result is in sight, wherever the reader was.
    bar, first = page.locator("#bar").bounding_box(), page.locator("h2:visible").first.bounding_box()
    assert bar is not None
    assert first is not None
    assert bar["y"] + bar["height"] <= first["y"] + 1 < 300
    page.fill("#search", "P512 db_7")
    page.get_by_text("1 rows of 1 of 1001 subjects").wait_for()
    assert [row.inner_text().split("\t")[:4] for row in page.locator("tbody tr:visible").all()] == [
        ["read", "connection", "db_7", "alpha"]
    ]
    page.fill("#search", "")
    page.check("#unused")
    page.get_by_text("1 rows of 1 of 1001 subjects").wait_for()
    assert page.locator("h2:visible").count() == 1
    page.uncheck("#unused")
    page.select_option("#type", "connection")
    page.get_by_text("20,000 rows of 1000 of 1001 subjects").wait_for()
    page.mouse.wheel(0, 20_000)
    page.locator("h2:visible").nth(30).wait_for()
    # The headings of the columns, and of the person, stay where they can be seen.
    assert page.locator("#columns").bounding_box()["y"] >= 0  # type: ignore[index]
    assert heard == [file.as_uri()]


@pytest.mark.exhaustive
def test_a_browser_without_scripts_shows_the_whole_table(opened_page: tuple[Page, Path]) -> None:
    page, file = opened_page
    assert page.context.browser is not None
    plain = page.context.browser.new_context(java_script_enabled=False).new_page()
    plain.goto(file.as_uri())
    assert plain.locator("tbody tr").count() == 20_001
    assert not plain.locator("#filter").is_visible()
    plain.close()


# Signatures


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    made = SigningKey.new()
    (tmp_path / "key").write_bytes(made.pem())
    (tmp_path / "key.pub").write_bytes(made.public.pem())
    return made


def code(command: Callable[..., None], *arguments: Any, **options: Any) -> int:
    """The exit code of a command."""
    try:
        command(*arguments, **options)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def test_a_signed_review_is_verified_and_any_change_is_refused(tmp_path, key, capsys) -> None:
    file, content = tmp_path / "review.html", page_of(BOB).encode()
    review.signed(file, content, key)

    def verified(keys: Path = tmp_path / "key.pub", output: Output = Output.TEXT) -> tuple[int, str]:
        return code(review.verify, file, keys, output), capsys.readouterr().out

    good, signature = verified(), tmp_path / "review.html.sig"
    assert good[0] == 0, good
    assert f"signed by the key {key.public.id} at 20" in good[1]
    told = json.loads(verified(output=Output.JSON)[1])
    assert (told["valid"], told["key"]) == (True, key.public.id)
    file.write_bytes(content.replace(b"bob is a friend", b"bob is a fiend", 1))
    assert verified() == (1, f"refused  {file}: the review is not what was signed\n")
    assert json.loads(verified(output=Output.JSON)[1])["valid"] is False
    file.write_bytes(content)
    (tmp_path / "other.pub").write_bytes(SigningKey.new().public.pem())
    assert "not trusted" in verified(tmp_path / "other.pub")[1]
    # The same key signs other things too: none of those signatures is valid here.
    signature.write_bytes(key.sign({"the review": content}, "@platform")[SIGNATURES])
    assert "signed for '@platform'" in verified()[1]
    for broken in (b"", b"[]", b'{"signatures":[1]}', b"[" * 100_000):
        signature.write_bytes(broken)
        assert verified()[0] == 1
    signature.unlink()
    assert "not signed" in verified()[1]
    with pytest.raises(UserError, match="gone cannot be read"):
        review.verify(tmp_path / "gone", tmp_path / "key.pub")
    with pytest.raises(UnfitKeyError, match="cannot be read"):
        review.verify(file, tmp_path / "gone.pub")


def test_a_new_review_takes_the_old_signature_away(tmp_path) -> None:
    (tmp_path / "review.csv.sig").write_text("of an older review")
    review.signed(tmp_path / "review.csv", b"new", None)
    assert (tmp_path / "review.csv").read_bytes() == b"new"
    assert not (tmp_path / "review.csv.sig").exists()
    with pytest.raises(UserError, match="/proc/none/x cannot be written"):
        review.signed(Path("/proc/none/x"), b"new", None)


@pytest.mark.exhaustive
def test_the_commands_make_and_verify_a_signed_review(run, tmp_path, platform, key) -> None:
    made = ("matrix", "--by", "role", "--type", "pool", "--policy", platform, "--key", tmp_path / "key")
    for form in ("html", "csv", "json"):
        file = tmp_path / f"review.{form}"
        written_ = run(*made, "-o", form, "--out", file)
        assert (written_.exit_code, written_.stdout) == (0, ""), written_.output
        verified = run("review", "verify", file, "--keys", tmp_path / "key.pub")
        assert (verified.exit_code, key.public.id in verified.stdout) == (0, True)
        assert "policy revision " in file.read_text() or form == "json"
    rows = list(csv.reader(io.StringIO((tmp_path / "review.csv").read_text())))
    assert [row[1] for row in rows[1:4]] == ["review", "not covered", "not covered"]
    # The same page comes from stdout.
    page = run("matrix", "--by", "role", "--type", "pool", "--policy", platform, "-o", "html").stdout
    assert re.sub(r"made at \S+", "", page) == re.sub(r"made at \S+", "", (tmp_path / "review.html").read_text())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sign": True, "output": matrix.Form.JSON}, "name the file to sign by --out"),
        ({"out": Path("x")}, "name --output html, json or csv for a file"),
        ({"team": "alpha"}, "the questions of --by role name no team"),
        ({"out": Path("key"), "key": Path("key"), "output": matrix.Form.CSV}, "would replace the key"),
        ({"out": Path("x/../key.pub"), "key": Path("key"), "output": matrix.Form.CSV}, "would replace the key"),
    ],
)
def test_options_that_do_not_go_together_are_an_error(options, told) -> None:
    with pytest.raises(UserError, match=told):
        matrix.matrix(by=matrix.By.ROLE, **options)


def test_a_review_is_not_of_two_policies() -> None:
    class Point:
        revisions = iter(("two",))

        def whoami(self, _: Subject) -> tuple[None, str]:
            return None, next(self.revisions)

    lines = _same_policy(iter(["line"]), Point(), "one")  # type: ignore[arg-type]
    assert next(lines) == "line"
    with pytest.raises(UserError, match="has changed from revision one to two"):
        next(lines)


# Differences


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``review diff``; what it prints."""

    def diff(*files: Path, **options: Any) -> str:
        review.diff(*files, **options)
        return capsys.readouterr().out

    return diff


def test_the_difference_is_told_in_words_and_by_exit_code(diff, tmp_path) -> None:
    friend = replace(BOB, who="anybody in group friends", kind="group")
    old = written(tmp_path / "old", [BOB, replace(BOB, action="delete", team="", layer="baseline", reason="op")])
    new = written(tmp_path / "new", [
        replace(BOB, reason="bob is still a friend"), *(replace(one, id="alpha_dwh") for one in (BOB, friend)),
        *(replace(one, action="update", id="alpha_dwh") for one in (BOB, friend)),
    ])  # fmt: skip
    lines = diff(old, new).splitlines()
    assert lines[0] == (
        "user bob, anybody in group friends gain: read, update connection alpha_dwh of team alpha, by the team "
        "(bob is a friend)"
    )
    assert lines[1] == "user bob loses: delete connection alpha_db common to all teams, by roles (op)"
    assert lines[3].startswith("4 permissions gained, 1 lost: from revision 89fa52876b7f (2026-11-27T11:30:00Z) to ")
    assert lines[4] == "Not covered: people of Keycloak."
    empty = written(tmp_path / "empty", [])
    exits = {
        (before.name, after.name): [code(review.diff, before, after, fail_on=wanted) for wanted in review.FailOn]
        for before, after in ((old, new), (old, old), (empty, old), (old, empty))
    }
    # gained, lost, any
    assert exits == {("old", "new"): [1, 1, 1], ("old", "old"): [0, 0, 0], ("empty", "old"): [1, 0, 1],
                     ("old", "empty"): [0, 1, 1]}  # fmt: skip
    diff(old, old)
    shown = json.loads(diff(old, new, output=review.Form.JSON))
    assert (len(shown["gained"]), len(shown["lost"]), shown["new"]["revision"]) == (4, 1, "89fa52876b7f")
    markdown = diff(old, new, output=review.Form.MARKDOWN)
    assert markdown.startswith("## Gained\n\n- `` user bob, anybody in group friends gain: read, update connection")
    rows = list(csv.reader(io.StringIO(diff(old, new, output=review.Form.CSV))))
    assert [row[0] for row in rows] == ["change", "review", "review", *["gained"] * 4, "lost"]


def test_text_of_others_changes_no_form_of_a_difference(diff, tmp_path) -> None:
    hostile = "=cmd()` ``\n## Lost\r\x1b[2J\u202e<b>"
    old, new = written(tmp_path / "old", []), written(tmp_path / "new", [replace(BOB, who=hostile, reason=hostile)])
    forms = {form: diff(old, new, output=form) for form in review.Form}
    for form, shown in forms.items():
        assert not set("\x1b\r\u202e") & set(shown), form
        assert "\n## Lost" not in shown, form
    (row,) = [row for row in csv.reader(io.StringIO(forms[review.Form.CSV])) if row[0] == "gained"]
    assert row[1].startswith("'=cmd()")
    assert "`` =cmd()' ''" in forms[review.Form.MARKDOWN]


def test_reviews_of_other_questions_are_not_compared(diff, tmp_path, capsys) -> None:
    old = written(tmp_path / "old", [BOB])
    for change, told in (({"by": "role"}, "--by"), ({"type": "dag"}, "--type dag"), ({"team": "beta"}, "--team beta")):
        new = written(tmp_path / "new", [BOB], replace(HEAD, **change))
        with pytest.raises(UserError, match=told):
            diff(old, new)
    # Of a team whose name is misspelt, for example.
    nothing = written(tmp_path / "nothing", [], replace(HEAD, team="alhpa"))
    with pytest.raises(UserError, match="nothing is compared: check its --type and --team"):
        diff(nothing, nothing)
    later = written(tmp_path / "later", [], replace(HEAD, made_at="2027-01-01T00:00:00Z"))
    review.diff(later, old)
    assert "is newer than" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", "<!doctype html>", "[" * 100_000, '{"head": {}, "permissions": []}', "\udcff",
     '{"who": "user bob"}\n{"who": "user eve"}', "OTHER FORMAT", "A NUMBER"],
)  # fmt: skip
def test_a_file_that_is_not_a_review_is_an_error_and_not_an_empty_review(diff, tmp_path, content) -> None:
    file, good = tmp_path / "file", written(tmp_path / "good", [BOB])
    text = {"OTHER FORMAT": good.read_text().replace(FORMAT, "team-authz-review/9"),
            "A NUMBER": good.read_text().replace('"alpha_db"', "1")}.get(content, content)  # fmt: skip
    file.write_bytes(text.encode(errors="surrogateescape"))
    for files in ((file, good), (good, file)):
        with pytest.raises(UserError, match=str(file)):
            diff(*files)


def test_a_difference_of_signed_reviews_needs_both_signatures(diff, tmp_path, key) -> None:
    files = [written(tmp_path / name, [BOB]) for name in ("old", "new")]
    with pytest.raises(UserError, match="not signed"):
        diff(*files, keys=tmp_path / "key.pub")
    for file in files:
        review.signed(file, file.read_bytes(), key)
    assert "0 permissions gained, 0 lost" in diff(*files, keys=tmp_path / "key.pub")
    files[1].write_bytes(files[1].read_bytes() + b" ")
    with pytest.raises(UserError, match="not what was signed"):
        diff(*files, keys=tmp_path / "key.pub")


def test_a_document_is_read_as_it_was_written() -> None:
    permissions = [replace(BOB, reason=HOSTILE + "\x85\u2028"), replace(BOB, last_use=NO_USE), BOB]
    text = "\n".join(as_json(HEAD, permissions))
    assert all(line.isprintable() for line in text.split("\n"))
    assert read(text.encode()).permissions == tuple(permissions)
    assert read("\n".join(as_json(HEAD, [])).encode()).permissions == ()


# Last use


def record(subject: dict[str, Any], action: str = "update", at: str = "2026-11-20T10:00:00.5Z", **more: Any) -> Any:
    resource = {"type": "connection", "team_id": "alpha", "id": "alpha_db"} | more.pop("resource", {})
    return {
        "decision_id": "1", "timestamp": at, "custom": {"outcome": more.pop("outcome", "allow")},
        "input": {"subject": subject, "action": action, "resource": resource},
    } | more  # fmt: skip


def right(who: Who, action: str = "update", **more: Any) -> Allowed:
    about = Resource("connection", "alpha", more.pop("id", "alpha_db"), **more)
    return Allowed(who, action, about, Decision(True, ("op",), "baseline"))


PERSON = Who("person", "user bob", Subject("user", "bob", ("alpha",), ("op",)))
TASK = Who("task", "a task of team alpha", Subject("task", "any-dag.any-task", ("alpha",)))
USER = {"type": "user", "id": "bob", "groups": ["ops"], "roles": ["Op"], "claims": {"unit": ["audit"]}}
MOMENT = "2026-11-20T10:00:00Z"


def test_the_last_use_is_that_of_each_subject_that_a_record_stands_for() -> None:
    uses = LastUses([
        record(USER), record(USER, at="2026-11-19T10:00:00Z"), record(USER, at="2026-11-26T10:00:00Z", outcome="deny"),
        record({"type": "task", "id": "daily.load", "team_ids": ["alpha"]}, at="2026-11-18T10:00:00Z"),
        record(USER, "create", resource={"id": "brand_new"}), record({"type": "dag_processor", "id": "p1"}),
    ])  # fmt: skip
    for who in (PERSON, holder("groups", "ops"), holder("roles", "Op"), holder("claims.unit", "audit")):
        assert uses.of(right(who)) == MOMENT, who.name
    assert uses.of(right(TASK)) == "2026-11-18T10:00:00Z"
    assert uses.of(right(PERSON, "create", id=UNSET)) == MOMENT
    for none in (right(PERSON, "delete"), right(PERSON, id="other"), right(PERSON, entity="audit_log"),
                 right(holder("groups", "bob")), right(holder("claims.unit", "ops")),
                 right(Who("person", "user ops", Subject("user", "ops"))),
                 right(Who("person", "user p1", Subject("user", "p1")))):  # fmt: skip
        assert uses.of(none) == NO_USE, none
    assert "uses before the 5 allowed decisions of the decision log since 2026-11-18T10:00:00Z" in [*uses.gaps()]


def test_an_action_that_the_log_does_not_record_is_not_said_to_be_unused() -> None:
    levels = Levels("changes, variable=0.5, connection/delete=denied")
    uses = LastUses([record(USER, "read")], levels)
    assert uses.of(right(PERSON, "read")) == MOMENT
    assert uses.of(right(PERSON, "list", id=UNSET)) == NOT_RECORDED
    assert uses.of(right(PERSON, "delete")) == NOT_RECORDED
    assert uses.of(right(PERSON)) == NO_USE
    sampled = Allowed(PERSON, "read", Resource("variable", "alpha", "x"), Decision(True, ("op",), "baseline"))
    assert uses.of(sampled) == NOT_RECORDED


def test_hidden_and_lost_records_are_told() -> None:
    gap = {"timestamp": MOMENT, "custom": {"outcome": "gap", "lost": 12}}
    uses = LastUses([record({"type": "user", "id": "bob"}, erased=["/input/subject/groups"]), gap])
    assert uses.of(right(holder("groups", "ops"))) == NOT_RECORDED
    assert uses.of(right(PERSON)) == MOMENT
    told = "; ".join(uses.gaps())
    assert "uses in the 12 records that the decision log has lost" in told
    assert "uses of a group that masks of the decision log hide" in told


def test_no_record_of_another_form_ends_the_command(tmp_path) -> None:
    odd = [
        {}, {"custom": 1}, {"custom": {"outcome": "allow"}}, record({}), record({"type": "user"}), record(USER, at="x"),
        record({"type": "user", "id": "bob", "groups": 1}), record(USER, resource={"type": 1}),
        record(USER) | {"input": []}, record(USER, erased=[{}]), record(USER, resource={"id": []}),
        {"custom": {"outcome": "gap", "lost": "many"}}, record({"type": "user", "id": "bob", "claims": [1]}),
    ]  # fmt: skip
    file = tmp_path / "log"
    lines = [json.dumps(one | {"decision_id": "1"}) for one in (*odd, record(USER))]
    file.write_text("\n".join([*lines, "[1]", "{"]))
    assert LastUses(InFile(file).uses()).of(right(PERSON)) == MOMENT
