"""The in-process engine over a signed bundle: of a bundle server, any web server, an object store, or a file.

One process of the host downloads, all of them watch the file that it puts there: so what has arrived is in force
everywhere at the same time, and whoever starts while the server is down has the last good one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from airflow_team_authz import forks
from airflow_team_authz.bundles.aggregate import WASM
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import Reply
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.engines.kept import Kept
from airflow_team_authz.escaping import logger
from airflow_team_authz.files import make_private, read_token
from airflow_team_authz.model import PolicyBrokenError
from airflow_team_authz.opa.archive import MAX_BYTES, BundleRefusedError
from airflow_team_authz.opa.compile import fingerprint
from airflow_team_authz.opa.wasm import START_SECONDS, trouble_at_start

if TYPE_CHECKING:
    import httpx

log = logger(__name__)

WAIT_SECONDS = 30
# A server that does not let us wait, and object stores, are asked this often.
POLL_SECONDS = 5.0
STATUS_SECONDS = 30.0
_LEAD_SECONDS = 1.0
# How long a process that begins waits for what the store has, before it goes on with the last good bundle.
FIRST_SECONDS = 10.0
_TIMEOUT_SECONDS = 10.0
# What a whole bundle may take, beside waiting for a new one.
_TOTAL_SECONDS = 60.0
_MAX_PAUSE_SECONDS = 30.0
# What is near is asked this often, also after a bad bundle.
_LOOK_SECONDS = 0.1
_NOT_MODIFIED = 304
_TOKEN_REFUSED = (401, 403)


class Fetched(NamedTuple):
    """A bundle, what names this state of it, and whether the next question may wait for another one."""

    content: bytes | None
    tag: str
    waits: bool = False


class Store(Protocol):
    """Where bundles come from. One that is ``near`` is asked at start too, and all the time: it costs nothing."""

    near: bool

    def fetch(self, tag: str, wait: int) -> Fetched:
        """The bundle, or no content if it still has this tag. Any exception means that it cannot be had."""


class Downloaded:
    """An ``Engine`` over the bundle at an address; ``PolicyBrokenError`` if there is none and has never been one.

    ``place`` is the directory that the processes of a host share for it. Each process, also a forked one, asks the
    store itself before its first question is answered; later one of them asks for all.
    """

    def __init__(
        self,
        url: str,
        place: Path,
        trust: Trust,
        token_file: Path | None = None,
        strict: bool = False,
        kept_code: Path | None = None,
    ) -> None:
        self._url = url
        self._kept_code = kept_code
        self._strict = strict
        self._file = place / "bundle.tar.gz"
        self._trust = trust
        self._store = open_store(url, token_file)
        self._report = _reporter(url, token_file)
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leads = False
        self._trouble = ""
        self._tag = ""
        self._left_out: Callable[[], str] = str
        try:
            make_private(place)
        except OSError as error:
            raise PolicyBrokenError(
                f"[team_authz] state has no place for the last good bundle: {_told(error)}"
            ) from None
        self._engine = self._open()
        forks.after_fork(self._after_fork)
        self._start()

    def _open(self) -> InProcess:
        if self._store.near:
            # Whatever is wrong with it is told when the thread asks again.
            with suppress(Exception):
                self._keep(self._store.fetch("", 0))
        try:
            return self._in_process()
        except PolicyBrokenError as kept:
            missing = not self._file.exists()
            try:
                self._keep(self._store.fetch("", 0))
            except Exception as error:
                why = f"the bundle {self._url} cannot be had: {_told(error)}"
                raise PolicyBrokenError(why if missing else f"{why}; and {kept}") from None
            return self._in_process()

    def _in_process(self) -> InProcess:
        return InProcess(self._file, trust=self._trust, settled=True, strict=self._strict, kept_code=self._kept_code)

    @property
    def revision(self) -> str:
        """Revision of the policy in force."""
        return self._engine.revision

    def report_left_out(self, told: Callable[[], str]) -> None:
        """Tell the bundle server too which teams' resources lists leave out."""
        self._left_out = told

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1, pace: float | None = None) -> Reply:
        """See ``Engine``."""
        self._download()
        return self._engine.query(entrypoint, question, size, teams, pace)

    def kept(self) -> Kept | None:
        """See ``Engine``."""
        self._download()
        return self._engine.kept()

    def close(self) -> None:
        """Stop downloading and watching."""
        self._stop.set()
        self._engine.close()

    def _download(self) -> None:
        """Start the threads of this process, if they do not run: threads do not survive a fork."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._start()

    def _start(self) -> None:
        with self._starting:
            if (self._thread is None or not self._thread.is_alive()) and not self._stop.is_set():
                asked = threading.Event()
                thread = threading.Thread(target=self._run, args=(asked,), name="team-authz-download", daemon=True)
                thread.start()
                if self._report is not None:
                    threading.Thread(target=self._report_on, name="team-authz-status", daemon=True).start()
                asked.wait(FIRST_SECONDS)
                # Only now: who asks meanwhile waits too.
                self._thread = thread

    def _after_fork(self) -> None:
        # Neither the parent's threads nor its lock on the file are there.
        self._starting, self._stop = threading.Lock(), forks.renewed(self._stop)
        self._thread, self._leads = None, False

    def _run(self, asked_once: threading.Event) -> None:
        """Download once, and from then on whenever no other process of the host does."""
        lock: IO[bytes] | None = None
        pause, failures = 0.0, 0
        usual, longest = (_LOOK_SECONDS,) * 2 if self._store.near else (POLL_SECONDS, _MAX_PAUSE_SECONDS)
        while not self._stop.wait(pause):
            try:
                lock = lock or self._lead()
                self._leads = lock is not None
                if lock is None and asked_once.is_set():
                    pause = _LEAD_SECONDS
                    continue
                asked = time.monotonic()
                fetched = self._store.fetch(self._tag, WAIT_SECONDS if asked_once.is_set() else 0)
                # Who says that it lets us wait, and does not, or tells the same again, is not asked without end.
                waited = self._tag == "" or time.monotonic() - asked > _LEAD_SECONDS
                if self._keep(fetched):
                    waited = True
                # Also what another process has put there.
                self._engine.catch_up()
                pause, failures = 0.0 if fetched.waits and fetched.tag and waited else usual, 0
                self._tell("")
            except Exception as error:
                # All of them: a thread that ends would leave everybody with an old policy, without a word.
                failures += 1
                pause = min(longest, 2.0 ** min(failures, 10)) * random.uniform(0.5, 1)  # noqa: S311
                self._tell(_told(error))
            asked_once.set()
        if lock is not None:
            lock.close()

    def _lead(self) -> IO[bytes] | None:
        """The lock that only one process of the host holds; the system gives it back when the process ends."""
        lock = self._file.with_name("lock").open("wb")
        try:
            # Unlike those of `flock`, these are not handed on to forked children, which would keep them.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock

    def _keep(self, fetched: Fetched) -> bool:
        """Whether there was another bundle, which is in its place now."""
        changes = fetched.content is not None and self._put(fetched.content)
        self._tag = fetched.tag
        return changes

    def _put(self, content: bytes) -> bool:
        """Put a bundle that is to be trusted, and newer than the present one, in its place at once and as a whole.

        What is there already is left alone: all processes would load it again. One process after the other, so that
        nobody replaces what is newer than what it has looked at.
        """
        with self._file.with_name("putting").open("wb") as lock:
            # Given back when the file is closed, or the process ends.
            fcntl.lockf(lock, fcntl.LOCK_EX)
            return self._put_alone(content)

    def _put_alone(self, content: bytes) -> bool:
        kept, present = self._present()
        if content == kept:
            return False
        opened = self._trust.open(content)
        if opened.serial < present:
            raise BundleRefusedError(f"it is older, {opened.serial}, than what was there before, {present}")
        # Else there would be no policy at all after a restart.
        wasm, data = opened.files.get(WASM, b""), opened.files.get("data.json", b"{}")
        if trouble := trouble_at_start(wasm, data, START_SECONDS, quick=True, kept=self._kept_code):
            raise BundleRefusedError(f"its {WASM} cannot be run: {trouble}")
        self._write(content)
        return True

    def _write(self, content: bytes) -> None:
        fresh = self._file.with_name(f".{os.getpid()}.{threading.get_ident()}")
        try:
            with fresh.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
        finally:
            fresh.unlink(missing_ok=True)

    def _present(self) -> tuple[bytes, int]:
        """The file's content and serial; nothing and 0 if it is not to be trusted."""
        try:
            content = self._file.read_bytes()
            # Also what is too old to be loaded: nothing older takes its place.
            return content, self._trust.open(content, any_age=True).serial
        except (OSError, BundleRefusedError):
            return b"", 0

    def _tell(self, trouble: str) -> None:
        """Log a change of state, not each attempt."""
        if trouble and trouble != self._trouble:
            log.error("policy revision %s stays in force: the bundle %s: %s", self.revision, self._url, trouble)
        elif self._trouble and not trouble:
            log.warning("the bundle %s can be had again", self._url)
        self._trouble = trouble

    def _report_on(self) -> None:
        """Tell the bundle server which policy this host runs: at once when it changes, else now and then.

        Whoever downloads tells it for all: they change together, and each that ends would be missed there for days.
        """
        told, failing = "", False
        waited = STATUS_SECONDS
        while not self._stop.is_set():
            state = f"{self.revision} {self._told_trouble()}"
            if self._leads and (state != told or waited >= STATUS_SECONDS):
                try:
                    assert self._report is not None  # noqa: S101 - for the type checker
                    self._report(self._status())
                    failing = False
                except Exception as error:
                    if not failing:
                        log.warning("the bundle server is not told about this process: %s", _told(error))
                    failing = True
                told, waited = state, 0.0
            self._stop.wait(0.5)
            waited += 0.5

    def _told_trouble(self) -> str:
        return self._trouble or self._engine.trouble or self._left_out()

    def _status(self) -> dict[str, Any]:
        """As OPA's status plugin has it (https://www.openpolicyagent.org/docs/management-status)."""
        now = datetime.now(UTC).isoformat()
        trouble = self._told_trouble()
        bundle = {
            "name": self._trust.name,
            "active_revision": self.revision,
            "last_request": now,
            **({"code": "bundle_error", "message": trouble} if trouble else {"last_successful_activation": now}),
        }
        host = socket.gethostname()
        # The same after a restart; there may be another Airflow on the host, or another bundle.
        identity = f"{host}-{hashlib.sha256(str(self._file.absolute()).encode()).hexdigest()[:8]}"
        labels = {"app": "airflow_team_authz", "host": host, "pid": str(os.getpid()), "id": identity}
        return {"labels": labels, "bundles": {self._trust.name: bundle}}


def bundle_name(url: str) -> str:
    """The name that the bundle at an address is signed for: the last part of it."""
    return urlsplit(url).path.rpartition("/")[2].removesuffix(".tar.gz")


def shared_place(state: Path, url: str) -> Path:
    """The directory below ``state`` for the bundle at an address."""
    return state / "policy" / hashlib.sha256(url.encode()).hexdigest()[:16]


def open_store(url: str, token_file: Path | None) -> Store:
    """By the address: the web's, a file's, or whatever fsspec knows."""
    if url.startswith(("http://", "https://")):
        return _Web(url, token_file)
    return _File(Path(url.removeprefix("file://"))) if url.startswith("file://") else _ObjectStore(url)


class _Web:
    """A bundle server that lets us wait for a new bundle, as OPA does, or any other server that knows ETags."""

    near = False

    def __init__(self, url: str, token_file: Path | None) -> None:
        self._url = url
        self._token_file = token_file

    def fetch(self, tag: str, wait: int) -> Fetched:
        """See ``Store``."""
        wanted = f"modes=snapshot;wait={wait}" if wait else "modes=snapshot"
        headers = _bearer(self._token_file) | {"Prefer": wanted, "Accept-Encoding": "identity"}
        if tag:
            headers["If-None-Match"] = tag
        with _asked("GET", self._url, wait, headers=headers) as answer:
            waits = answer.headers.get("Content-Type") == "application/vnd.openpolicyagent.bundles"
            if answer.status_code == _NOT_MODIFIED:
                return Fetched(None, tag, waits)
            _check_success(answer)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                # A few bytes may decode to any number.
                raise BundleRefusedError("the server encodes it, although it is asked not to")
            content = bytearray()
            for part in answer.iter_raw():
                content += part
                if len(content) > MAX_BYTES:
                    raise BundleRefusedError(f"it is larger than {MAX_BYTES >> 20} MiB")
        # A proxy that compresses makes the tag a weak one, which not every server takes for its own.
        return Fetched(bytes(content), answer.headers.get("ETag", "").removeprefix("W/"), waits)


@contextmanager
def _asked(method: str, url: str, wait: int = 0, **sent: Any) -> Iterator[httpx.Response]:
    """A server's answer of which only the header has been read."""
    import httpx

    timeout = httpx.Timeout(_TIMEOUT_SECONDS, read=_TIMEOUT_SECONDS + wait)
    with (
        _Deadline(wait + _TOTAL_SECONDS) as deadline,
        httpx.Client(timeout=timeout, verify=_tls()) as client,
        client.stream(method, url, extensions={"trace": deadline.note}, **sent) as answer,
    ):
        yield answer


def _check_success(answer: httpx.Response) -> None:
    if not answer.is_success:
        # Without the address that a redirection leads to, which may be a secret.
        hint = " (see policy_token_file)" if answer.status_code in _TOKEN_REFUSED else ""
        raise BundleRefusedError(f"the server answers {answer.status_code} {answer.reason_phrase}{hint}")


class _Deadline:
    """Cuts the connections of an exchange off when its time is over: the client's timeouts are for each piece."""

    def __init__(self, seconds: float) -> None:
        self._sockets: list[socket.socket] = []
        self._over = False
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def note(self, event: str, told: dict[str, Any]) -> None:
        """Takes what the client tells of its doings, and from it the connections."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._sockets.append(told["return_value"].get_extra_info("socket"))

    def _cut(self) -> None:
        self._over = True
        for connection in self._sockets:
            with suppress(OSError):
                # Of TLS, too, the plain connection, which another thread is reading from.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._over:
            raise BundleRefusedError(f"it does not come within {self._seconds:.0f} seconds") from None


class _File:
    """A file of this host, which somebody may be writing still: two looks in a row have to agree."""

    near = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def fetch(self, tag: str, wait: int) -> Fetched:  # noqa: ARG002 - it is asked often
        """See ``Store``."""
        seen, now = "", fingerprint(self._path)
        until = time.monotonic() + _TOTAL_SECONDS
        while now not in (tag, seen):
            if time.monotonic() > until:
                raise BundleRefusedError("it changes all the time")
            time.sleep(_LOOK_SECONDS)
            seen, now = now, fingerprint(self._path)
        if now == tag:
            return Fetched(None, tag)
        if self._path.stat().st_size > MAX_BYTES:
            raise BundleRefusedError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return Fetched(self._path.read_bytes(), now)


class _ObjectStore:
    """S3, Google's, Azure's: as fsspec has them, with the credentials of the environment."""

    near = False

    def __init__(self, url: str) -> None:
        self._url = url

    def fetch(self, tag: str, wait: int) -> Fetched:  # noqa: ARG002 - stores cannot wait
        """See ``Store``."""
        import fsspec

        files, path = fsspec.core.url_to_fs(self._url, use_listings_cache=False)
        about = files.info(path)
        # Not by its size alone: another one may be just as large.
        told = [str(about[key]) for key in ("ETag", "etag", "mtime", "LastModified") if about.get(key)]
        now = "-".join([*told, str(about.get("size"))]) if told else ""
        if now and now == tag:
            return Fetched(None, tag)
        if (about.get("size") or 0) > MAX_BYTES:
            raise BundleRefusedError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return Fetched(files.cat_file(path), now)


def _reporter(url: str, token_file: Path | None) -> Callable[[dict[str, Any]], None] | None:
    """The sender of status messages to a bundle server; ``None`` for other addresses."""
    address, found, _ = url.rpartition("/bundles/")
    if not found or not url.startswith(("http://", "https://")):
        return None

    def report(status: dict[str, Any]) -> None:
        with _asked("POST", f"{address}/status", json=status, headers=_bearer(token_file)) as answer:
            _check_success(answer)

    return report


@cache
def _tls() -> ssl.SSLContext:
    """Made once in a process: reading the certificates that count takes 20 ms."""
    import httpx

    return httpx.create_ssl_context()


os.register_at_fork(after_in_child=_tls.cache_clear)


def _bearer(token_file: Path | None) -> dict[str, str]:
    # Read each time, so that a renewed token counts without a restart.
    return {"Authorization": f"Bearer {read_token(token_file)}"} if token_file else {}


def _told(error: Exception) -> str:
    """An error in one sentence without line breaks. It contains neither tokens nor answers."""
    return " ".join(f"{error}".split())[:300] or type(error).__name__
