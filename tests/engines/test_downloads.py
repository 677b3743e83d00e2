"""The in-process engine over a bundle from elsewhere: what arrives, what is refused, what stays when nothing comes."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import wasmtime

from airflow_team_authz import own_process
from airflow_team_authz.bundles import aggregate
from airflow_team_authz.bundles.aggregate import build, scope
from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.bundles.signing import SIGNATURES, SigningKey
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import DecisionPoint, downloads
from airflow_team_authz.engines.choice import open_engine as open_configured
from airflow_team_authz.engines.downloads import Downloaded, bundle_name, open_store, shared_place
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, PolicyBrokenError, Resource, Subject
from airflow_team_authz.opa import wasm
from airflow_team_authz.opa.archive import BundleRefusedError, pack, unpack
from airflow_team_authz.settings import SettingsError, parse_settings
from tests.bundles.conftest import lends, nested
from tests.conftest import REPOSITORY, errors, eventually, forked

NAME = "production.wasm"
QUESTION = Evaluations(Subject("user", "gus"), "read", [Resource("connection", "alpha", "pg")])
Make = Callable[[int], bytes]
Log = pytest.LogCaptureFixture
MEDIA_TYPE = "application/vnd.openpolicyagent.bundles"


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.new()


@pytest.fixture(scope="module")
def bundle(key: SigningKey) -> Callable[[int], bytes]:
    """The bundle of a serial, in which alpha's package has this version and the even ones lend ``pg``."""
    made: dict[int, bytes] = {}

    def make(serial: int) -> bytes:
        if serial not in made:
            teams: dict[str, Artifact] = {"alpha": lends("alpha", "other" if serial % 2 else "pg", serial)}
            made[serial] = build("production", None, teams, serial, key)[NAME]
        return made[serial]

    return make


@pytest.fixture
def trust(key: SigningKey, tmp_path: Path) -> Trust:
    (tmp_path / "trusted.pem").write_bytes(key.public.pem())
    return Trust(tmp_path / "trusted.pem", NAME)


class Web(ThreadingHTTPServer):
    """A bundle server whose answers a test chooses; it lets clients wait as OPA's protocol has it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.status, self.waits, self.hurries = b"", 200, True, False
        self.more: dict[str, str] = {}
        self.weak, self.forgets, self.trickles, self.refuses = False, False, "", 0
        self.asked: list[dict[str, str]] = []
        self.told: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/bundles/{NAME}"


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers))
        if self.server.trickles:
            return self._trickle()
        asked, end = None if self.server.forgets else self.headers.get("If-None-Match"), time.monotonic() + 2
        waits = self.server.waits and not self.server.hurries
        while waits and asked == self.tag and self.server.status == 200 and time.monotonic() < end:
            time.sleep(0.02)
        changed = asked != self.tag
        self.send_response(self.server.status if self.server.status != 200 or changed else 304)
        self.send_header("ETag", f"W/{self.tag}" if self.server.weak else self.tag)
        for name, value in self.server.more.items():
            self.send_header(name, value)
        self.send_header("Content-Type", MEDIA_TYPE if self.server.waits else "application/gzip")
        if self.server.status == 302:
            self.send_header("Location", "http://127.0.0.1/?signature=s3cret")
        self.end_headers()
        if changed:
            self.wfile.write(self.server.content)

    def _trickle(self) -> None:
        self.wfile.write(self.server.trickles.encode())
        with suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.refuses or 200)
        self.send_header("Location", "http://127.0.0.1/?state=s3cret")
        self.end_headers()

    @property
    def tag(self) -> str:
        return f'"{hash(self.server.content)}"'

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def kept_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the host keeps compiled code, for all tests: nearly all bundles have the same Wasm."""
    return tmp_path_factory.mktemp("state") / "compiled"


@pytest.fixture
def open_engine(
    tmp_path: Path, trust: Trust, kept_code: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Downloaded, DecisionPoint]]]:
    monkeypatch.setattr(downloads, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(downloads, "_MAX_PAUSE_SECONDS", 0.1)
    opened = []

    def open_one(url: str, token_file: Path | None = None) -> tuple[Downloaded, DecisionPoint]:
        engine = Downloaded(url, shared_place(tmp_path / "state", url), trust, token_file, kept_code=kept_code)
        opened.append(engine)
        return engine, DecisionPoint(engine)

    yield open_one
    for engine in opened:
        engine.close()


def version(point: DecisionPoint) -> object:
    return point.decide(QUESTION).decisions[0].team_version


def test_without_a_place_for_the_last_good_one_it_is_told(web: Web, trust: Trust, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(
        PolicyBrokenError, match=r"^\[team_authz\] state has no place for the last good bundle: .*Not a dir"
    ):
        Downloaded(web.url, tmp_path / "state" / "place", trust)


_ASK = """
import sys
from pathlib import Path
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import DecisionPoint, downloads
from airflow_team_authz.engines.downloads import Downloaded
from airflow_team_authz.model import Evaluations, Resource, Subject
downloads._MAX_PAUSE_SECONDS = 0.1
point = DecisionPoint(Downloaded(sys.argv[1], Path(sys.argv[2]), Trust(Path(sys.argv[3]), "production.wasm")))
question = Evaluations(Subject("user", "gus"), "read", [Resource("connection", "alpha", "pg")])
for _ in sys.stdin:
    (decision,), revision, _ = point.decide(question)
    print(revision.partition("-")[0], decision.team_version, decision.allow, flush=True)
"""


def asking(url: str, place: Path, trust: Trust) -> list[str]:
    """A process of its own that prints a decision, of which serial and version, for each line that it is given."""
    return [sys.executable, "-c", _ASK, url, str(place), str(trust.keys_file)]


def test_what_arrives_is_in_force(web: Web, bundle: Callable[[int], bytes], open_engine: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    web.content = bundle(10)
    engine, point = open_engine(web.url, tmp_path / "token")
    assert point.decide(QUESTION).decisions[0].allow is True
    web.content = bundle(11)
    eventually(lambda: version(point) == 11)
    assert point.decide(QUESTION).decisions[0].allow is False
    assert engine.revision.startswith("11-")
    assert web.asked[-1]["Authorization"] == "Bearer secret-token"
    assert "wait=30" in web.asked[-1]["Prefer"]
    # It waits: so it is not asked again and again.
    asked = len(web.asked)
    time.sleep(0.5)
    assert len(web.asked) <= asked + 1
    eventually(lambda: bool(web.told) and web.told[-1]["bundles"][NAME]["active_revision"].startswith("11-"))
    assert web.told[-1]["labels"]["pid"] == str(os.getpid())


def test_a_server_that_cannot_wait_is_asked_now_and_then(
    web: Web, bundle: Callable[[int], bytes], open_engine: Any
) -> None:
    web.waits, web.content = False, bundle(10)
    _, point = open_engine(web.url)
    assert version(point) == 10
    web.content = bundle(12)
    eventually(lambda: version(point) == 12)


def test_a_server_that_only_says_that_it_waits_is_asked_now_and_then(
    web: Web, bundle: Callable[[int], bytes], open_engine: Any
) -> None:
    web.content, web.hurries = bundle(10), True
    _, point = open_engine(web.url)
    assert version(point) == 10
    began = time.monotonic()
    eventually(lambda: len(web.asked) >= 8)
    # One each 0.1 seconds, as the fixture has it.
    assert len(web.asked) <= 8 + (time.monotonic() - began) * 15


@pytest.mark.parametrize(("weak", "forgets"), [(True, False), (False, True)])
def test_a_server_that_tells_the_same_again_is_asked_now_and_then(
    weak: bool, forgets: bool, web: Web, bundle: Make, open_engine: Any, tmp_path: Path
) -> None:
    web.content, web.weak, web.forgets = bundle(10), weak, forgets
    _, point = open_engine(web.url)
    assert version(point) == 10
    kept = shared_place(tmp_path / "state", web.url) / "bundle.tar.gz"
    before = kept.stat().st_ctime_ns
    time.sleep(1.05)
    assert len(web.asked) <= 15
    assert kept.stat().st_ctime_ns == before
    web.content = bundle(12)
    eventually(lambda: version(point) == 12)


def test_what_is_encoded_is_refused_as_it_is(web: Web) -> None:
    web.content, web.more = gzip.compress(b""), {"Content-Encoding": "gzip"}
    with pytest.raises(BundleRefusedError, match="the server encodes it"):
        open_store(web.url, None).fetch("", 0)
    assert web.asked[-1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("begun", ["HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 200 OK\r\n\r\n"], ids=["header", "body"])
def test_a_bundle_that_never_ends_is_given_up(begun: str, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_TOTAL_SECONDS", 0.3)
    web.trickles = begun
    with pytest.raises(BundleRefusedError, match="it does not come within 0 seconds"):
        open_store(web.url, None).fetch("", 0)


def test_where_a_status_is_sent_on_to_is_not_shown(
    web: Web, bundle: Make, open_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    web.content, web.refuses = bundle(10), 302
    assert version(open_engine(web.url)[1]) == 10
    eventually(lambda: "not told about this process: the server answers 302 Found" in caplog.text)
    assert "s3cret" not in caplog.text


def test_a_file_that_never_rests_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_TOTAL_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "fingerprint", lambda _: str(time.monotonic()))
    with pytest.raises(BundleRefusedError, match="it changes all the time"):
        open_store(f"file://{tmp_path}/x", None).fetch("", 0)


def test_a_stolen_key_is_replaced_while_engines_run(
    web: Web, bundle: Make, trust: Trust, open_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    web.content = bundle(10**12)
    engine, point = open_engine(web.url)
    assert version(point) == 10**12
    fresh = SigningKey.new()
    trust.keys_file.write_bytes(fresh.public.pem())
    eventually(lambda: any("by a key that is not trusted any more" in error for error in errors(caplog)))
    eventually(lambda: any("not trusted any more" in str(said["bundles"][NAME].get("message")) for said in web.told))
    assert version(point) == 10**12
    web.content = pack(fresh.sign(unpack(bundle(12)), scope(NAME)))
    eventually(lambda: version(point) == 12)
    eventually(lambda: "message" not in web.told[-1]["bundles"][NAME])
    assert engine.revision.startswith("12-")


def signed(content: bytes, key: SigningKey, hours_ago: float | None) -> bytes:
    """The same bundle, signed at another time, or without one."""
    moment = None if hours_ago is None else int(time.time() - hours_ago * 3600)
    return pack(key.sign(unpack(content), scope(NAME), moment))


@pytest.mark.parametrize(
    ("hours_ago", "told"),
    [
        (13, "it was signed 13 hours ago, and [team_authz] policy_max_age_hours is 12: see whether the bundle server"),
        pytest.param(24 * 365, "it was signed 8,760 hours ago", marks=pytest.mark.exhaustive),
        (-13, "it was signed 13 hours ahead of this host's clock"),
        (None, "its signature does not tell its time"),
    ],
)
def test_a_fresh_host_takes_no_bundle_that_is_too_old(
    hours_ago: float | None, told: str, web: Web, bundle: Make, trust: Trust, key: SigningKey, tmp_path: Path
) -> None:
    web.content = signed(bundle(10), key, hours_ago)
    with pytest.raises(PolicyBrokenError) as refused:
        Downloaded(web.url, tmp_path / "limited", trust._replace(max_age_hours=12))
    assert told in str(refused.value)
    web.content = bundle(10)
    Downloaded(web.url, tmp_path / "limited", trust._replace(max_age_hours=12)).close()
    # Without the setting any time counts.
    web.content = signed(bundle(10), key, hours_ago)
    Downloaded(web.url, tmp_path / "unlimited", trust).close()


def test_a_policy_that_becomes_too_old_is_told_of_and_not_loaded_again(
    web: Web, bundle: Make, trust: Trust, key: SigningKey, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(downloads, "_MAX_PAUSE_SECONDS", 0.1)
    limited = trust._replace(max_age_hours=12)
    web.content = signed(bundle(12), key, 0)
    with closing(DecisionPoint(Downloaded(web.url, tmp_path / "state", limited))) as point:
        assert version(point) == 12
        real = time.time
        monkeypatch.setattr("airflow_team_authz.bundles.verifying.time.time", lambda: real() + 13 * 3600)
        told = "stays in force, although it was signed 13 hours ago"
        eventually(lambda: any(told in error for error in errors(caplog)))
        eventually(lambda: any("13 hours ago" in str(said["bundles"][NAME].get("message")) for said in web.told))
        assert version(point) == 12
        # Nor by a restart: neither what is kept, nor what is older still, however fresh its signature is.
        for content in (web.content, signed(bundle(10), key, 0)):
            web.content = content
            with pytest.raises(PolicyBrokenError, match="13 hours ago"):
                Downloaded(web.url, tmp_path / "state", limited)
        # The same bundle, signed again, is all that it takes.
        web.content = signed(bundle(12), key, 0)
        eventually(lambda: "message" not in web.told[-1]["bundles"][NAME])
        assert version(point) == 12
    Downloaded(web.url, tmp_path / "state", limited).close()


def test_who_lists_leave_out_is_told_to_the_server(web: Web, bundle: Make, open_engine: Any) -> None:
    web.content = bundle(10)
    _, point = open_engine(web.url)
    assert version(point) == 10
    point._left_out.hold("alpha", "10", PolicyBrokenError("its rules are slow"))
    told = "lists leave out what team alpha owns: its rules are slow"
    eventually(lambda: bool(web.told) and web.told[-1]["bundles"][NAME].get("message") == told)
    point._left_out.release("alpha")
    eventually(lambda: "message" not in web.told[-1]["bundles"][NAME])


@pytest.mark.parametrize("token", ["s3cret\nsecond line", "s3cret\x01x", "s3cr\u00e9t", "s3cret word", ""])
def test_a_file_without_a_token_is_named_and_not_shown(token: str, web: Web, open_engine: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(PolicyBrokenError, match=f"{tmp_path}/token holds no token: one word of plain ASCII$") as told:
        open_engine(web.url, tmp_path / "token")
    assert "s3c" not in str(told.value)
    assert not web.asked


def test_an_object_of_the_same_size_is_another_one() -> None:
    files, store = fsspec.filesystem("memory"), open_store("memory://place/production.wasm.tar.gz", None)
    tag = ""
    for content in (b"one", b"two"):
        files.pipe("/place/production.wasm.tar.gz", content)
        fetched = store.fetch(tag, 0)
        assert fetched.content == content
        tag = fetched.tag


def test_what_is_kept_is_for_this_user_alone(web: Web, bundle: Make, trust: Trust, tmp_path: Path) -> None:
    web.content = bundle(10)
    before = os.umask(0o002)
    try:
        Downloaded(web.url, shared_place(tmp_path / "home" / "state", web.url), trust).close()
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "home").rglob("*") if path.is_dir()]
    assert len(made) == 3
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "home", *made)} == {0o700}


def test_of_a_file_too_the_last_good_one_stays_also_after_a_restart(
    bundle: Callable[[int], bytes], trust: Trust, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / f"{NAME}.tar.gz"
    file.write_bytes(bundle(10))
    said = {"policy": str(file), "policy_keys_file": str(trust.keys_file), "state": str(tmp_path / "state")}
    settings = parse_settings(said)
    with closing(DecisionPoint(open_configured(settings))) as point:
        assert version(point) == 10
        file.write_bytes(bundle(11))
        eventually(lambda: version(point) == 11)
    for content, told in ((b"nonsense", "cannot be read"), (bundle(8), "it is older, 8,"), (None, "No such file")):
        with closing(DecisionPoint(open_configured(settings))) as point:
            assert version(point) == 11
            file.unlink() if content is None else file.write_bytes(content)
            eventually(lambda told=told: any(told in error for error in errors(caplog)))  # type: ignore[misc]
            assert version(point) == 11
    with closing(DecisionPoint(open_configured(settings))) as point:
        assert version(point) == 11
        file.write_bytes(bundle(12))
        eventually(lambda: version(point) == 12)
    file.write_bytes(bundle(13))
    # Who asks once, and ends, is not answered by the one before.
    with closing(DecisionPoint(open_configured(settings))) as point:
        assert version(point) == 13
    (kept,) = (tmp_path / "state").rglob("bundle.tar.gz")
    before = kept.stat().st_mtime_ns
    open_configured(settings).close()
    # Else all the other processes would load it again.
    assert kept.stat().st_mtime_ns == before


BAD: dict[str, tuple[Callable[[Make, SigningKey], bytes], str]] = {
    "older, replayed": (lambda bundle, _: bundle(8), "it is older, 8, than what was there before, 10"),
    "truncated": (lambda bundle, _: bundle(12)[:-20], "cannot be read"),
    "changed": (lambda bundle, _: pack(unpack(bundle(12)) | {"data.json": b"{}"}), "data.json is not what was signed"),
    "unsigned": (
        lambda bundle, _: pack({n: c for n, c in unpack(bundle(12)).items() if n != SIGNATURES}),
        "not signed",
    ),
    "a delta": (
        lambda bundle, key: pack(key.sign({"patch.json": b"{}", **unpack(bundle(12))}, scope(NAME))),
        "it is a delta bundle",
    ),
    "signed by somebody else": (
        lambda bundle, _: pack(SigningKey.new().sign(unpack(bundle(12)), scope(NAME))),
        "which is not trusted here",
    ),
    "for another environment": (
        lambda bundle, key: pack(key.sign(unpack(bundle(12)), scope("staging.wasm"))),
        "signed for 'bundles/staging.wasm'",
    ),
    "nonsense": (lambda *_: b"<html>sign in</html>", "cannot be read"),
    "no program": (
        lambda bundle, key: pack(key.sign(unpack(bundle(12)) | {"policy.wasm": b"\0asm nonsense"}, scope(NAME))),
        "its policy.wasm cannot be run",
    ),
    **{
        name: (
            lambda bundle, key, data=data: pack(key.sign(unpack(bundle(12)) | {"data.json": data}, scope(NAME))),
            f"its policy.wasm cannot be run: {told}",
        )
        for name, data, told in (
            ("more data than memory", b'{"x":[%s1]}' % (b"1," * 1_500_000), "the policy fails while it is evaluated"),
            ("data that leaves no memory", b'{"x":[%s1]}' % (b"1," * 900_000), "the policy and its data take"),
        )
    },
    "too large": (lambda *_: os.urandom(1 << 20) * 65, "larger than 64 MiB"),
}


# Of what takes most there is one more.
_SLOW = {"data that leaves no memory", "too large"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.exhaustive) if case in _SLOW else case for case in BAD]
)
def test_what_is_not_to_be_trusted_changes_nothing(
    case: str, web: Web, bundle: Make, key: SigningKey, open_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    web.content = bundle(10)
    engine, point = open_engine(web.url)
    assert version(point) == 10
    make, told = BAD[case]
    web.content = make(bundle, key)
    eventually(lambda: any(told in error for error in errors(caplog)))
    time.sleep(0.3)
    assert version(point) == 10
    # Told once, and to the server too.
    assert len([error for error in errors(caplog) if told in error]) == 1
    eventually(lambda: any(told in str(status["bundles"][NAME].get("message")) for status in web.told))
    assert open_engine(web.url)[0].revision == engine.revision
    web.content = bundle(15)
    eventually(lambda: version(point) == 15)


def test_the_last_good_one_stays_while_the_server_is_gone_also_after_a_restart(
    web: Web,
    bundle: Callable[[int], bytes],
    open_engine: Any,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    trust: Trust,
) -> None:
    web.content = bundle(10)
    _, point = open_engine(web.url)
    assert version(point) == 10
    web.status = 503
    eventually(lambda: any("503" in error for error in errors(caplog)))
    web.shutdown()
    web.server_close()
    assert version(point) == 10
    command = asking(web.url, shared_place(tmp_path / "state", web.url), trust)
    restarted = subprocess.run(command, input="\n", capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert restarted.stdout == "10 10 True\n"


def test_a_file_that_somebody_changed_is_fetched_again(
    web: Web, bundle: Callable[[int], bytes], open_engine: Any, tmp_path: Path
) -> None:
    web.content = bundle(10)
    engine, point = open_engine(web.url)
    assert version(point) == 10
    engine.close()
    kept = shared_place(tmp_path / "state", web.url) / "bundle.tar.gz"
    kept.write_bytes(bundle(12)[:-30])
    assert version(open_engine(web.url)[1]) == 10
    kept.write_bytes(b"")
    web.status = 500
    with pytest.raises(PolicyBrokenError, match=r"cannot be had: .*500.*; and the bundle .* is refused"):
        open_engine(web.url)


def test_nothing_ever_is_an_error_and_no_decision(web: Web, open_engine: Any) -> None:
    web.status = 404
    with pytest.raises(PolicyBrokenError, match=rf"^the bundle {web.url} cannot be had: .*404"):
        open_engine(web.url)
    web.status = 401
    with pytest.raises(PolicyBrokenError, match=r"401 Unauthorized \(see policy_token_file\)$"):
        open_engine(web.url)
    web.status = 302
    with pytest.raises(PolicyBrokenError, match=r"302 Found$"):
        open_engine(web.url)
    with pytest.raises(PolicyBrokenError, match="cannot be had"):
        open_engine("nosuchstore://bucket/production.wasm.tar.gz")


def test_one_process_of_a_host_downloads_and_another_one_takes_over(
    web: Web, bundle: Callable[[int], bytes], trust: Trust, tmp_path: Path
) -> None:
    web.content = bundle(10)
    command = asking(web.url, tmp_path / "shared", trust)
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for _ in range(3)
    ]
    seen: dict[int, list[int]] = {process.pid: [] for process in running}

    def serial(process: subprocess.Popen[str]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        seen[process.pid].append(int(process.stdout.readline().split()[0]))
        return seen[process.pid][-1]

    try:
        assert [serial(process) for process in running] == [10] * 3
        time.sleep(1.5)
        waiting = len([asked for asked in web.asked if "wait=30" in asked["Prefer"]])
        assert waiting <= 2  # the leader's, and perhaps its next
        for expected in (11, 12, 13):
            web.content = bundle(expected)
            eventually(lambda expected=expected: {serial(one) for one in running} == {expected})  # type: ignore[misc]
            if len(running) > 1:
                # Whoever leads, one of the two that go is it, or the third does not need to take over.
                gone = running.pop(0)
                gone.kill()
                gone.wait()
        eventually(lambda: web.told[-1]["bundles"][NAME]["active_revision"].startswith("13-"))
    finally:
        for process in running:
            process.kill()
            process.wait()
    # None has ever gone back, and to the server they are one.
    assert all(serials == sorted(serials) for serials in seen.values())
    assert len({status["labels"]["id"] for status in web.told}) == 1


def test_a_forked_child_leaves_reporting_to_its_parent(web: Web, bundle: Make, open_engine: Any) -> None:
    web.content = bundle(10)
    _, point = open_engine(web.url)
    assert version(point) == 10
    eventually(lambda: bool(web.told))

    def decide() -> None:
        assert version(point) == 10
        time.sleep(1)

    child = multiprocessing.get_context("fork").Process(target=decide)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert {status["labels"]["pid"] for status in web.told} == {str(os.getpid())}


@pytest.mark.parametrize("near", [False, True], ids=["web", "file"])
def test_each_process_asks_for_the_newest_before_its_first_answer(
    near: bool, web: Web, bundle: Make, open_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "FIRST_SECONDS", 60.0)
    url = f"file://{tmp_path}/{NAME}" if near else web.url

    def publish(serial: int) -> None:
        if near:
            (tmp_path / "new").write_bytes(bundle(serial))
            (tmp_path / "new").replace(tmp_path / NAME)
        web.content = bundle(serial)

    publish(10)
    engine, point = open_engine(url)
    with ExitStack() as children:
        # A lock that the downloading thread holds for a moment, whenever it begins or ends to wait.
        with engine._stop._cond:
            ask, later = (children.enter_context(forked(lambda: version(point))) for _ in range(2))
        # As if nobody on the host downloaded: as after a fork whose parent has ended.
        engine.close()
        publish(11)
        assert ask() == 11
        publish(12)
        eventually(lambda: bool(ask() == 12))
        assert later() == 12
    publish(13)
    assert version(open_engine(url)[1]) == 13


def test_a_server_that_does_not_answer_holds_a_process_up_for_a_moment_only(
    web: Web, bundle: Make, open_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.content = bundle(10)
    open_engine(web.url)[0].close()
    monkeypatch.setattr(downloads, "FIRST_SECONDS", 0.2)
    web.trickles = "HTTP/1.1 200 OK\r\nX: "
    _, point = open_engine(web.url)
    with forked(lambda: version(point)) as ask:
        assert [version(point), ask()] == [10, 10]


def test_of_two_that_arrive_at_once_the_newer_one_stays(
    web: Web, bundle: Make, open_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.content = bundle(10)
    engine, _ = open_engine(web.url)
    engine.close()
    checking, go_on = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> str:
        checking.set()
        go_on.wait(60)
        return ""

    with monkeypatch.context() as patch, forked(lambda: engine._put(bundle(12))) as put:
        patch.setattr(downloads, "trouble_at_start", slow)
        older = threading.Thread(target=engine._put, args=(bundle(11),))
        older.start()
        assert checking.wait(30)
        newer = threading.Thread(target=put)
        newer.start()
        time.sleep(0.5)
        go_on.set()
        older.join()
        newer.join()
    assert engine._present()[1] == 12


def test_a_bundle_is_compiled_for_speed_in_another_process(
    trust: Trust, bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_here: list[int] = []
    begin = wasmtime.Module.__init__

    def noted(made: wasmtime.Module, engine: wasmtime.Engine, code: str | bytes) -> None:
        compiled_here.append(len(code))
        begin(made, engine, code)

    monkeypatch.setattr(wasmtime.Module, "__init__", noted)
    (tmp_path / "bundle.tar.gz").write_bytes(bundle(10))
    with closing(DecisionPoint(InProcess(tmp_path / "bundle.tar.gz", trust=trust))) as point:
        assert version(point) == 10
    # What calls the policy is small.
    assert max(compiled_here) < 10_000


def test_a_bundle_that_takes_long_to_compile_for_speed_decides_and_keeps_no_processor_busy(
    trust: Trust, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    # One that no bundle server of today makes.
    monkeypatch.setattr(aggregate, "trouble_at_start", lambda *_: "")
    (tmp_path / "bundle.tar.gz").write_bytes(build("production", None, {"alpha": nested("alpha", 10)}, 10, key)[NAME])
    monkeypatch.setattr(wasm, "START_SECONDS", 2)
    with closing(DecisionPoint(InProcess(tmp_path / "bundle.tar.gz", trust=trust))) as point:
        assert version(point) == 10
    assert "not compiled for speed: it does not compile and start within 2 seconds of a processor" in caplog.text


@pytest.mark.parametrize("failure", ["it cannot be started", "it prints something else"])
def test_a_bundle_decides_though_the_process_that_compiles_it_for_speed_fails(
    failure: str, trust: Trust, bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    def run(*arguments: object, **_: object) -> subprocess.CompletedProcess[bytes]:
        if failure == "it cannot be started":
            raise BlockingIOError("Resource temporarily unavailable")
        return subprocess.CompletedProcess(arguments, 0, b"Welcome", b"")

    (tmp_path / "bundle.tar.gz").write_bytes(bundle(10))
    monkeypatch.setattr(own_process, "run", run)
    with closing(DecisionPoint(InProcess(tmp_path / "bundle.tar.gz", trust=trust))) as point:
        assert version(point) == 10
    assert "not compiled for speed: the process that compiles it fails" in caplog.text


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_text("")
    address = "https://bundles.example/bundles/production.wasm"
    settings = parse_settings({"policy": address, "policy_keys_file": str(tmp_path / "keys.pem")})
    assert settings.policy == address
    with pytest.raises(SettingsError, match="policy_keys_file must name the keys that may sign it"):
        parse_settings({"policy": address})
    with pytest.raises(SettingsError, match="policy_keys_file: there is no such file"):
        parse_settings({"policy": address, "policy_keys_file": str(tmp_path / "nothing")})
    hours = {"policy_max_age_hours": "12"}
    keys = {"policy_keys_file": str(tmp_path / "keys.pem")}
    assert parse_settings({"policy": address} | keys | hours).policy_max_age_hours == 12
    for others in (
        {},
        {"policy": str(tmp_path)},
        {"opa_url": "http://opa:8181"},
        keys | {"opa_url": "http://opa:8181"},
    ):
        with pytest.raises(SettingsError, match="policy_max_age_hours takes policy_keys_file, and no opa_url"):
            parse_settings(others | hours)
    with pytest.raises(SettingsError, match="policy: there is no such file"):
        parse_settings({"policy": str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    "address",
    [
        "https://user:s3cret@bundles.example/production.wasm",
        "https://s3cret@bundles.example/production.wasm",
        "http://bundles.example/production.wasm?signature=s3cret",
        "sftp://user:s3cret@bundles.example/production.wasm",
        "https://[s3cret/production.wasm",
        "https://s3cret\u2100/production.wasm",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(address: str, tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_text("")
    with pytest.raises(SettingsError, match=r"^\[team_authz\] policy: ") as refused:
        parse_settings({"policy": address, "policy_keys_file": str(tmp_path / "keys.pem")})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/bundles/production.wasm", "production.wasm"),
        ("https://host/bundles/production.wasm.tar.gz?x=1", "production.wasm"),
        ("s3://bucket/folder/staging.wasm.tar.gz", "staging.wasm"),
    ],
)
def test_a_bundle_is_called_as_the_end_of_its_address(url: str, name: str) -> None:
    assert bundle_name(url) == name
