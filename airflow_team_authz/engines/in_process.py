"""The policy in this process: OPA compiles it to Wasm, and a changed policy replaces it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airflow_team_authz import forks
from airflow_team_authz.engines import Reply
from airflow_team_authz.engines.instances import Instances
from airflow_team_authz.engines.kept import Kept
from airflow_team_authz.engines.rule_checks import Told, findings
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import PolicyBrokenError
from airflow_team_authz.opa.archive import MAX_BYTES, BundleRefusedError, unpack
from airflow_team_authz.opa.compile import CompileError, compile_directory, fingerprint, scratch_directory
from airflow_team_authz.opa.machine_code import NotCompiledError
from airflow_team_authz.opa.memory_image import give_back, keep_little
from airflow_team_authz.opa.wasm import KEEP_PAGES, Policy, compiled, mebibytes

if TYPE_CHECKING:
    from airflow_team_authz.bundles.verifying import Trust

log = logger(__name__)

POLL_SECONDS = 0.2
# A new bundle is compiled in a hurry, and after this time again, for speed: all processes of a host do so at once, and
# that one has it in force must not keep the others from it.
_AGAIN_SECONDS = 2.0
# The C library gives its free memory to the system at most so often: it takes some milliseconds.
_GIVE_BACK_SECONDS = 5.0
# How often a process that begins looks whether somebody is still writing, before it loads what there is.
_MOST_LOOKS = 20
# More than these nobody reads in a log.
_MOST_TOLD = 20


class _InForce(NamedTuple):
    """A policy, its instances and what it has answered: one is never replaced without the others."""

    policy: Policy
    instances: Instances
    kept: Kept

    @classmethod
    def anew(cls, policy: Policy) -> _InForce:
        """A policy that nobody has asked yet."""
        return cls(policy, Instances(policy), Kept(policy.revision, is_alike=policy.alike))


class InProcess:
    """An ``Engine`` over a bundle file or a directory of Rego, which is watched for changes.

    A changed policy is in force as soon as it is compiled; a broken one is reported, and the last good one stays. With
    ``trust`` a bundle has to be signed, and an older one than the present is refused. ``settled``: the file is never
    written in place, but replaced as a whole. ``strict``: a policy is broken, too, if a rule reads what no question
    has, or if rules are where no engine looks; else the log warns of it, once the policy is in force.
    ``kept_code``: the directory in which the processes of a host keep what one of them has compiled. ``standing``:
    where the policy is, for the log.
    A forked process begins as a new one does: its first question is answered by what there is then. If that has changed
    since the fork and is broken, it has no policy, since it cannot know which one was the last good.
    Raises ``PolicyBrokenError`` if there is no good one to begin with.
    """

    def __init__(
        self,
        source: Path,
        opa: str | None = None,
        trust: Trust | None = None,
        settled: bool = False,
        strict: bool = False,
        kept_code: Path | None = None,
        standing: str = "in force",
    ) -> None:
        keep_little()
        self._source = source
        self._standing = standing
        self._kept_code = kept_code
        self._kept_build = kept_code and kept_code.with_name("built")
        self._opa = opa
        self._trust = trust
        self._settled = settled
        self._strict = strict
        # What is in force and has still to be looked at: a directory, or the files of a bundle.
        self._unexamined: Path | Mapping[str, bytes] | None = None
        # What is wrong with what is there at present, if it is not in force, and with what is in force.
        self._refused = self._distrusted = ""
        # Why this process has no policy, though its parent had one.
        self._missing = ""
        self._is_forked = False
        self._of_parent: tuple[object, ...] = ()
        self._closed = threading.Event()
        self._starting, self._loading = threading.Lock(), threading.Lock()
        self._watcher: threading.Thread | None = None
        self._again = math.inf
        self._seen = self._fingerprint()
        self._in_force = _InForce.anew(self._load())
        forks.after_fork(self._after_fork)
        # Also before the first question: whoever is forked until then is to have the newest.
        self._watch()

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
        """See ``Engine``. The instance of a failed evaluation is thrown away, whatever state it is in."""
        self._watch()
        if self._missing:
            raise PolicyBrokenError(self._missing)
        policy, instances, kept = self._in_force
        machine, fit = instances.take(), False
        try:
            value = machine.evaluate(entrypoint, question, policy.fuel(question, size, teams, pace))
            grown = machine.grown
            fit = grown <= KEEP_PAGES
        finally:
            if fit:
                instances.give(machine)
            else:
                instances.discard()
        if pace is not None and grown > max(1, pace) * KEEP_PAGES:
            raise PolicyBrokenError(f"a rule takes {mebibytes(grown)} MiB of memory, and a new instance each time")
        return Reply(value, policy.revision, kept=kept)

    def kept(self) -> Kept | None:
        """See ``Engine``."""
        self._watch()
        return None if self._missing else self._in_force.kept

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def catch_up(self) -> None:
        """Have in force what there is now, or report it, before this returns."""
        self._look_at_keys()
        now = self._fingerprint()
        for _ in range(_MOST_LOOKS):
            if now == self._seen or self._is_at_rest(now):
                break
            now = self._fingerprint()
        self._replace_by(now, quick=True)

    def _after_fork(self) -> None:
        # Threads of the parent held these, or run on there only.
        self._starting, self._loading = threading.Lock(), threading.Lock()
        self._closed = forks.renewed(self._closed)
        self._watcher, self._is_forked = None, True
        # Never freed here: wasmtime waits then for what another thread of the parent may have been doing, for ever.
        self._of_parent = (*self._of_parent, self._in_force, self._unexamined)
        # The parent goes on with it.
        self._unexamined = None
        # The parent's instances are still good, but their memory would be copied page by page; and another thread of
        # the parent may have held a lock of either.
        self._in_force = _InForce.anew(self._policy)

    def _fingerprint(self) -> str:
        try:
            return fingerprint(self._source)
        except OSError as error:
            return f"unreadable: {error}"

    def _load(self, quick: bool = False) -> Policy:
        if not self._source.is_dir():
            policy = load_bundle(self._source, self._trust, quick, self._kept_code)
            self._examine(policy.rego or {})
            return policy._replace(rego=None)
        if self._trust is not None:
            raise PolicyBrokenError(f"{self._source} is a directory, and only bundles are signed")
        with scratch_directory() as directory:
            bundle = Path(directory) / "bundle.tar.gz"
            try:
                compile_directory(self._source, bundle, self._opa, self._kept_build)
            except CompileError as error:
                raise PolicyBrokenError(f"the policy in {self._source} does not compile: {error}") from None
            except OSError as error:
                raise PolicyBrokenError(f"the policy in {self._source} cannot be read: {error}") from None
            self._examine(self._source)
            return load_bundle(bundle, kept_code=self._kept_code)

    def _examine(self, policy: Path | Mapping[str, bytes]) -> None:
        """Refuse what is wrong with it, or have it looked at when it is in force, which takes a while."""
        if not self._strict:
            self._unexamined = policy
            return
        try:
            found = [one.text for one in self._found(policy) if one.is_certain]
        except (CompileError, OSError) as error:
            raise PolicyBrokenError(f"the policy {self._source} cannot be checked: {error}") from None
        if found:
            told = "; ".join(found[:_MOST_TOLD])
            raise PolicyBrokenError(
                f"the policy {self._source} is not what [team_authz] strict_policy asks for: {told}"
            )

    def _warn(self) -> bool:
        """Tell what is wrong with the policy in force, once; whether there was something to look at."""
        policy, self._unexamined = self._unexamined, None
        if policy is None:
            return False
        try:
            # A child that is forked meanwhile would keep a pipe to the program open.
            with forks.whole():
                found = [one.text for one in self._found(policy)]
        except (CompileError, OSError) as error:
            log.info("the rules of %s are not checked: %s", self._source, error)
            return True
        except Exception:
            log.exception("checking the rules of %s failed", self._source)
            return True
        for told in found[:_MOST_TOLD]:
            log.warning("policy %s is %s, but %s", self._source, self._standing, told)
        if len(found) > _MOST_TOLD:
            log.warning("`team-authz doctor` tells %d more of policy %s", len(found) - _MOST_TOLD, self._source)
        return True

    def _found(self, policy: Path | Mapping[str, bytes]) -> list[Told]:
        return findings(policy, self._opa, self._kept_code and self._kept_code.with_name("examined"))

    def _replace(self, policy: Policy) -> None:
        # Who has stolen a key may have signed any serial.
        if policy.serial < self._policy.serial and self._is_trusted():
            raise PolicyBrokenError(f"the bundle {self._source} is older, {policy.serial}, than {self._policy.serial}")
        self._in_force = _InForce.anew(policy)

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
        if self._watcher is None:
            with self._starting:
                if self._watcher is None and not self._closed.is_set():
                    self.catch_up()
                    watcher = threading.Thread(target=self._poll, name="team-authz-policy", daemon=True)
                    watcher.start()
                    # Only now: who asks meanwhile waits for what there is.
                    self._watcher = watcher

    def _poll(self) -> None:
        try:
            self._look_again_and_again()
        finally:
            # Whoever asks next starts another one, unless this is closed.
            with self._starting:
                self._watcher = None

    def _look_again_and_again(self) -> None:
        pause = POLL_SECONDS
        has_much, given_back = False, -math.inf
        while not self._closed.wait(pause):
            began = time.thread_time()
            self._look_at_keys()
            now = self._fingerprint()
            # Looking takes a tenth of the time at most, however many files there are.
            pause = max(POLL_SECONDS, 9 * (time.thread_time() - began))
            if now != self._seen:
                if self._is_at_rest(now):
                    self._replace_by(now, quick=True)
            elif time.monotonic() >= self._again:
                self._replace_by(now, quick=False)
            has_much = self._warn() or has_much
            has_much = self._in_force.instances.shrink() or has_much
            if has_much and time.monotonic() > given_back + _GIVE_BACK_SECONDS:
                # What was loaded, or has answered long lists, has taken large blocks of memory for a moment.
                give_back()
                has_much, given_back = False, time.monotonic()

    def _is_at_rest(self, fingerprint_: str) -> bool:
        """Whether nobody is writing: two looks in a row have to agree."""
        if self._settled:
            return True
        time.sleep(POLL_SECONDS / 2)
        return self._fingerprint() == fingerprint_

    def _replace_by(self, now: str, quick: bool) -> None:
        """Load what has this fingerprint, once: another thread may have been faster."""
        with self._loading, forks.whole():
            if quick and now == self._seen:
                return
            self._again = math.inf
            try:
                self._replace(self._load(quick))
                self._refused = self._missing = ""
                if quick:
                    log.info("policy revision %s of %s is %s", self._policy.revision, self._source, self._standing)
                    self._again = math.inf if self._source.is_dir() else time.monotonic() + _AGAIN_SECONDS
                else:
                    # It is the same once more.
                    self._unexamined = None
            except PolicyBrokenError as error:
                self._refuse(str(error))
                log.error("%s: %s", self._what_stays(), error)
            except Exception as error:
                self._refuse(repr(error))
                log.exception("%s: loading %s failed", self._what_stays(), self._source)
            # At the end: who is forked before has not seen it.
            self._seen = now

    def _refuse(self, why: str) -> None:
        self._refused = why
        if self._missing or (self._is_forked and self._watcher is None):
            self._missing = f"the policy has changed since this process was forked, and it cannot be loaded: {why}"

    def _what_stays(self) -> str:
        if self._missing:
            return "this process has no policy"
        return f"policy revision {self._policy.revision} stays {self._standing}"


def load_bundle(path: Path, trust: Trust | None = None, quick: bool = False, kept_code: Path | None = None) -> Policy:
    """Read and compile a bundle that ``opa build --target wasm`` has made.

    Raises ``PolicyBrokenError`` if the file is not such a bundle, or not to be trusted. ``quick``: compilation takes
    a fifth of the time, and decisions take longer.
    """
    serial, key_id, issued_at = 0, "", None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyBrokenError(f"the bundle {path} is larger than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
        if trust is None:
            files = unpack(content)
        else:
            files, serial, key_id, issued_at = trust.open(content)
        revision = json.loads(files.get(".manifest", b"{}")).get("revision", "")
    except BundleRefusedError as error:
        raise PolicyBrokenError(f"the bundle {path} is refused: {error}") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise PolicyBrokenError(f"the bundle {path} cannot be read: {error}") from None
    if (wasm := files.get("policy.wasm")) is None:
        raise PolicyBrokenError(f"the bundle {path} holds no policy.wasm: build it with `opa build --target wasm`")
    data = files.get("data.json", b"{}")
    rego = {name: text for name, text in files.items() if name.endswith(".rego")}
    make = partial(compiled, wasm, data, str(revision), serial, key_id, kept=kept_code)
    try:
        # A signed bundle may come from anybody who has a key, so it must not keep this process busy.
        policy = make(quick=True) if quick else _optimized(path, make, is_bounded=trust is not None)
    except PolicyBrokenError as error:
        raise PolicyBrokenError(f"the policy.wasm of {path} cannot be run: {error}") from None
    return policy._replace(issued_at=issued_at, rego=rego)


def _optimized(path: Path, make: Callable[..., Policy], is_bounded: bool) -> Policy:
    """The policy, compiled for speed; or if that fails within the bounds, compiled quickly."""
    try:
        return make(is_bounded=is_bounded)
    except NotCompiledError as error:
        log.warning("the bundle %s is in force, but is not compiled for speed: %s", path, error)
        return make(quick=True)
