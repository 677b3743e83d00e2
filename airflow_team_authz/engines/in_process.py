"""The policy in this process: compiled to Wasm by OPA, and replaced when another one is there."""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airflow_team_authz.bundles.archive import MAX_BYTES, BundleRefused, unpack
from airflow_team_authz.compile import CompileError, compile_directory, fingerprint
from airflow_team_authz.engines import Reply
from airflow_team_authz.engines.kept import Kept
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import PolicyBroken
from airflow_team_authz.wasm import (
    FUEL_BASE,
    FUEL_PER_RESOURCE,
    FUEL_PER_TEAM,
    KEEP_PAGES,
    USUAL_BASE,
    USUAL_PER_RESOURCE,
    Machine,
    Policy,
    compiled,
    mebibytes,
    start,
)

if TYPE_CHECKING:
    from airflow_team_authz.bundles.trusted import Trust

log = logger(__name__)

POLL_SECONDS = 0.2
# A new bundle is compiled in a hurry, and after this time again, for speed: all processes of a host do so at once, and
# that one has it in force must not keep the others from it.
_AGAIN_SECONDS = 2.0


class _InForce(NamedTuple):
    """A policy and what it has answered: one is never replaced without the other."""

    policy: Policy
    kept: Kept


class InProcess:
    """An ``Engine`` over a bundle file or a directory of Rego, which is watched for changes.

    A changed policy is in force within a second; a broken one is reported, and the last good one stays. With ``trust``
    a bundle has to be signed, and an older one than the present is refused. ``settled``: the file is never written in
    place, but replaced as a whole.
    Raises ``PolicyBroken`` if there is no good one to begin with.
    """

    def __init__(self, source: Path, opa: str | None = None, trust: Trust | None = None, settled: bool = False) -> None:
        self._source = source
        self._opa = opa
        self._trust = trust
        self._settled = settled
        # What is wrong with what is there at present, if it is not in force, and with what is in force.
        self._refused = self._distrusted = ""
        self._local = threading.local()
        self._closed = False
        self._wake = threading.Event()
        self._seen = self._fingerprint()
        self._in_force = _InForce(self._load(), Kept())
        self._starting = threading.Lock()
        self._watcher: threading.Thread | None = None
        forget = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @property
    def _policy(self) -> Policy:
        return self._in_force.policy

    @property
    def revision(self) -> str:
        """Revision of the policy in force."""
        return self._policy.revision

    @property
    def trouble(self) -> str:
        """Why what is in force is not what it should be; empty if all is well."""
        return self._refused or self._distrusted

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1, pace: float | None = None) -> Reply:
        """See ``Engine``. The machine of a failed evaluation is thrown away, whatever state it is in."""
        self._watch()
        policy, kept = self._in_force
        key = kept.key(entrypoint, question)
        if (known := kept.get(key)) is not None:
            return Reply(known, policy.revision)
        machine: Machine | None = getattr(self._local, "machine", None)
        if machine is None or machine.policy is not policy:
            machine = start(policy)
        self._local.machine = None
        fuel = FUEL_BASE + size * FUEL_PER_RESOURCE + teams * FUEL_PER_TEAM
        if pace is not None:
            fuel = min(fuel, int(pace * (USUAL_BASE + size * USUAL_PER_RESOURCE)))
        value = machine.evaluate(entrypoint, question, fuel)
        if machine.grown <= KEEP_PAGES:
            self._local.machine = machine
        elif pace is not None and machine.grown > pace * KEEP_PAGES:
            raise PolicyBroken(f"a rule takes {mebibytes(machine.grown)} MiB of memory, and a new instance each time")
        kept.keep(key, value)
        return Reply(value, policy.revision)

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        self._wake.set()

    def look_now(self) -> None:
        """Look at once whether the source has changed."""
        self._wake.set()

    def _after_fork(self) -> None:
        self._starting, self._wake = threading.Lock(), threading.Event()
        self._watcher = None
        # The parent's machine is still good, but its memory would be copied page by page.
        self._local = threading.local()
        # Another thread of the parent may have held its lock.
        self._in_force = _InForce(self._policy, Kept())

    def _fingerprint(self) -> str:
        try:
            return fingerprint(self._source)
        except OSError as error:
            return f"unreadable: {error}"

    def _load(self, quick: bool = False) -> Policy:
        if not self._source.is_dir():
            return load_bundle(self._source, self._trust, quick)
        if self._trust is not None:
            raise PolicyBroken(f"{self._source} is a directory, and only bundles are signed")
        with tempfile.TemporaryDirectory() as directory:
            bundle = Path(directory) / "bundle.tar.gz"
            try:
                compile_directory(self._source, bundle, self._opa)
            except CompileError as error:
                raise PolicyBroken(f"the policy in {self._source} does not compile: {error}") from None
            except OSError as error:
                raise PolicyBroken(f"the policy in {self._source} cannot be read: {error}") from None
            return load_bundle(bundle)

    def _replace(self, policy: Policy) -> None:
        # Who has stolen a key may have signed any serial.
        if policy.serial < self._policy.serial and self._is_trusted():
            raise PolicyBroken(f"the bundle {self._source} is older, {policy.serial}, than {self._policy.serial}")
        self._in_force = _InForce(policy, Kept())

    def _is_trusted(self) -> bool:
        return self._trust is None or self._trust.counts(self._policy.key_id)

    def _look_at_keys(self) -> None:
        distrusted = "" if self._is_trusted() else "it is signed by a key that is not trusted any more"
        if self._trust is not None and not distrusted:
            distrusted = self._trust.outdated(self._policy.issued_at)
        if distrusted and not self._distrusted:
            log.error("policy revision %s stays in force, although %s", self._policy.revision, distrusted)
        self._distrusted = distrusted

    def _watch(self) -> None:
        """Start the watching thread of this process, if it does not run: threads do not survive a fork."""
        watcher = self._watcher
        if watcher is None or not watcher.is_alive():
            with self._starting:
                if (self._watcher is None or not self._watcher.is_alive()) and not self._closed:
                    self._watcher = threading.Thread(target=self._poll, name="team-authz-policy", daemon=True)
                    self._watcher.start()

    def _poll(self) -> None:
        pause, again = POLL_SECONDS, math.inf
        while True:
            self._wake.wait(pause)
            if self._closed:
                return
            self._wake.clear()
            began = time.thread_time()
            self._look_at_keys()
            now = self._fingerprint()
            # Looking takes a tenth of the time at most, however many files there are.
            pause = max(POLL_SECONDS, 9 * (time.thread_time() - began))
            quick = now != self._seen
            if not quick and time.monotonic() < again:
                continue
            if quick and not self._settled:
                # Somebody may be writing still: load what two looks in a row agree on.
                time.sleep(POLL_SECONDS / 2)
                if self._fingerprint() != now:
                    continue
            self._seen, again = now, math.inf
            try:
                self._replace(self._load(quick))
                self._refused = ""
                if quick:
                    log.info("policy revision %s of %s is in force", self._policy.revision, self._source)
                    again = math.inf if self._source.is_dir() else time.monotonic() + _AGAIN_SECONDS
            except PolicyBroken as error:
                self._refused = str(error)
                log.error("policy revision %s stays in force: %s", self._policy.revision, error)
            except Exception as error:
                self._refused = repr(error)
                log.exception(
                    "policy revision %s stays in force: loading %s failed", self._policy.revision, self._source
                )


def load_bundle(path: Path, trust: Trust | None = None, quick: bool = False) -> Policy:
    """Read and compile a bundle that ``opa build --target wasm`` has made; ``PolicyBroken`` if it is not one, or if
    it is not to be trusted. ``quick``: compiled in three quarters of the time, and slower when it decides.
    """
    serial, key_id, issued_at = 0, "", None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyBroken(f"the bundle {path} is larger than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
        if trust is None:
            files = unpack(content)
        else:
            files, serial, key_id, issued_at = trust.open(content)
        revision = json.loads(files.get(".manifest", b"{}")).get("revision", "")
    except BundleRefused as error:
        raise PolicyBroken(f"the bundle {path} is refused: {error}") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise PolicyBroken(f"the bundle {path} cannot be read: {error}") from None
    if (wasm := files.get("policy.wasm")) is None:
        raise PolicyBroken(f"the bundle {path} holds no policy.wasm: build it with `opa build --target wasm`")
    data = files.get("data.json", b"{}")
    try:
        return compiled(wasm, data, str(revision), serial, key_id, quick)._replace(issued_at=issued_at)
    except PolicyBroken as error:
        raise PolicyBroken(f"the policy.wasm of {path} cannot be run: {error}") from None
