"""The policy in this process: compiled to Wasm by OPA, run by wasmtime.

Speaks OPA's Wasm ABI 1.x (https://www.openpolicyagent.org/docs/wasm).
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import struct
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import wasmtime

from airflow_team_authz.bundles.archive import MAX_BYTES, BundleRefused, unpack
from airflow_team_authz.compile import ENTRYPOINTS, CompileError, compile_directory, fingerprint
from airflow_team_authz.engines import NOT_JSON, Reply
from airflow_team_authz.model import PolicyBroken, Undefined

if TYPE_CHECKING:
    from airflow_team_authz.bundles.trusted import Trust

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# A new bundle is compiled in a hurry, and after this time again, for speed: all processes of a host do so at once, and
# that one has it in force must not keep the others from it.
_AGAIN_SECONDS = 2.0

# A unit of fuel is about 0.2 ns here; an ordinary decision takes 150,000, one more of a list 45,000.
FUEL_BASE = 50_000_000
FUEL_PER_RESOURCE = 500_000
# Each question compiles its patterns anew, and each team has its own: one of `regex.match` takes 650,000, and 8,000
# when it is used again; one of `glob.match` 140,000 and 8,000.
FUEL_PER_TEAM = 10_000_000
_PAGE = 64 * 1024
_MIN_PAGES = 16
_MAX_PAGES = 4096
# Linear memory never shrinks: a store that a long list has blown up is given back.
_KEEP_PAGES = 512

# One call without arguments instead of one with seven: converting an argument costs as much as a rule.
# The slot holds entrypoint, length of the input, and afterwards the address of the result.
_TRAMPOLINE = """
(module
  (import "opa" "memory" (memory 1))
  (import "opa" "opa_eval" (func $eval (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (func (export "evaluate")
    (i32.store (i32.const {result})
      (call $eval
        (i32.const 0)
        (i32.load (i32.const {entrypoint}))
        (i32.const {data})
        (i32.const {heap})
        (i32.load (i32.const {length}))
        (i32.add (i32.const {heap}) (i32.load (i32.const {length})))
        (i32.const 0)))))
"""


class _Result(msgspec.Struct):
    result: msgspec.Raw


_decode_results = msgspec.json.Decoder(list[_Result]).decode


class Policy(NamedTuple):
    """A compiled policy: what all threads share."""

    engine: wasmtime.Engine
    module: wasmtime.Module
    data: bytes
    revision: str
    serial: int = 0
    key_id: str = ""


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
        self._policy = self._load()
        self._starting = threading.Lock()
        self._watcher: threading.Thread | None = None
        forget = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @property
    def revision(self) -> str:
        """Revision of the policy in force."""
        return self._policy.revision

    @property
    def trouble(self) -> str:
        """Why what is in force is not what it should be; empty if all is well."""
        return self._refused or self._distrusted

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1) -> Reply:
        """See ``Engine``. The machine of a failed evaluation is thrown away, whatever state it is in."""
        self._watch()
        policy = self._policy
        machine: _Machine | None = getattr(self._local, "machine", None)
        if machine is None or machine.policy is not policy:
            machine = start(policy)
        self._local.machine = None
        value = machine.evaluate(entrypoint, question, FUEL_BASE + size * FUEL_PER_RESOURCE + teams * FUEL_PER_TEAM)
        if machine.pages <= _KEEP_PAGES:
            self._local.machine = machine
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
        self._policy = policy

    def _is_trusted(self) -> bool:
        return self._trust is None or self._trust.counts(self._policy.key_id)

    def _look_at_keys(self) -> None:
        distrusted = "" if self._is_trusted() else "it is signed by a key that is not trusted any more"
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
    serial, key_id = 0, ""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyBroken(f"the bundle {path} is larger than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
        if trust is None:
            files = unpack(content)
        else:
            files, serial, key_id = trust.open(content)
        revision = json.loads(files.get(".manifest", b"{}")).get("revision", "")
    except BundleRefused as error:
        raise PolicyBroken(f"the bundle {path} is refused: {error}") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise PolicyBroken(f"the bundle {path} cannot be read: {error}") from None
    if (wasm := files.get("policy.wasm")) is None:
        raise PolicyBroken(f"the bundle {path} holds no policy.wasm: build it with `opa build --target wasm`")
    config = wasmtime.Config()
    config.consume_fuel = True
    # wasmtime's compiler threads are gone in a forked child, and it would wait for them for ever: even if only its
    # parent has had them.
    config.parallel_compilation = False
    config.cranelift_opt_level = "none" if quick else "speed"
    try:
        engine = wasmtime.Engine(config)
        data = files.get("data.json", b"{}")
        policy = Policy(engine, wasmtime.Module(engine, wasm), data, str(revision), serial, key_id)
    except wasmtime.WasmtimeError as error:
        raise PolicyBroken(f"the policy.wasm of {path} cannot be run: {error}") from None
    start(policy)
    return policy


def start(policy: Policy) -> _Machine:
    """An instance of it; ``PolicyBroken`` if it cannot have one."""
    try:
        return _Machine(policy)
    except (wasmtime.WasmtimeError, wasmtime.Trap, LookupError, ValueError, TypeError) as error:
        # Lookups and values: a module that exports other things than OPA's compiler does, or says other things.
        raise PolicyBroken(f"the compiled policy cannot be started: {error!r}") from None


class _Machine:
    """One instance of a policy, with its memory; for one thread at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._store = store = wasmtime.Store(policy.engine)
        store.set_fuel(100 * FUEL_BASE)
        self._memory = memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(_MIN_PAGES, _MAX_PAGES)))
        linker = wasmtime.Linker(policy.engine)
        linker.define(store, "env", "memory", memory)
        linker.define(store, "env", "opa_abort", self._function(1, self._abort, result=False))
        linker.define(store, "env", "opa_println", self._function(1, lambda _: None, result=False))
        for arguments in range(5):
            unknown = self._function(2 + arguments, _unknown_builtin)
            linker.define(store, "env", f"opa_builtin{arguments}", unknown)
        self._exports = exports = linker.instantiate(store, policy.module).exports(store)
        self._entrypoints = self._json("entrypoints")
        if missing := [name for name in ENTRYPOINTS if name not in self._entrypoints]:
            raise PolicyBroken(f"the compiled policy lacks the entrypoint {missing[0]}: build it with this package")
        if builtins := self._json("builtins"):
            raise PolicyBroken(f"the policy calls {', '.join(builtins)}, which the in-process engine does not have")
        slot = self._call("opa_malloc", 12)
        address = self._call("opa_malloc", len(policy.data))
        self._reserve(address + len(policy.data))
        memory.write(store, policy.data, address)
        data = self._call("opa_json_parse", address, len(policy.data))
        if data == 0:
            raise PolicyBroken("the bundle's data.json does not parse")
        self._slot = slot
        self._heap = self._call("opa_heap_ptr_get")
        trampoline = _TRAMPOLINE.format(entrypoint=slot, length=slot + 4, result=slot + 8, data=data, heap=self._heap)
        linker = wasmtime.Linker(policy.engine)
        linker.define(store, "opa", "memory", memory)
        linker.define(store, "opa", "opa_eval", exports["opa_eval"])
        module = wasmtime.Module(policy.engine, trampoline)
        evaluate = linker.instantiate(store, module).exports(store)["evaluate"]
        assert isinstance(evaluate, wasmtime.Func)  # noqa: S101 - our own module, for the type checker
        self._evaluate = evaluate

    @property
    def pages(self) -> int:
        """Size of the linear memory in pages of 64 KiB."""
        return self._memory.size(self._store)

    @property
    def fuel_used(self) -> int:
        """What the last evaluation has taken."""
        return self._fuel - self._store.get_fuel()

    def evaluate(self, entrypoint: str, question: bytes, fuel: int) -> msgspec.Raw:
        """JSON of the entrypoint's value; ``PolicyBroken`` or ``Undefined`` if there is none."""
        store, self._fuel = self._store, fuel
        store.set_fuel(fuel)
        try:
            self._reserve(self._heap + len(question))
            base = ctypes.addressof(self._memory.data_ptr(store).contents)
            number = self._entrypoints[f"airflow/authz/{entrypoint}"]
            ctypes.memmove(base + self._slot, struct.pack("<ii", number, len(question)), 8)
            ctypes.memmove(base + self._heap, question, len(question))
            self._evaluate(store)
            # The memory may have grown, and with it moved.
            base = ctypes.addressof(self._memory.data_ptr(store).contents)
            (result,) = struct.unpack("<I", ctypes.string_at(base + self._slot + 8, 4))
            if not 0 < result < self._memory.data_len(store):
                raise PolicyBroken("the compiled policy answered outside of its memory")
            results = _decode_results(ctypes.string_at(base + result))
        except wasmtime.Trap as trap:
            if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL:
                raise PolicyBroken("a rule does not come to an end: it was stopped when its fuel was used up") from None
            raise PolicyBroken(
                f"the policy fails while it is evaluated: {str(trap).splitlines()[-1].strip()}"
            ) from None
        except (wasmtime.WasmtimeError, *NOT_JSON) as error:
            raise PolicyBroken(f"the policy fails while it is evaluated: {error}") from None
        if not results:
            raise Undefined(f"the compiled policy defines no data.airflow.authz.{entrypoint}")
        return results[0].result

    def _function(self, arguments: int, call: object, result: bool = True) -> wasmtime.Func:
        i32 = wasmtime.ValType.i32
        kind = wasmtime.FuncType([i32() for _ in range(arguments)], [i32()] if result else [])
        return wasmtime.Func(self._store, kind, call)  # type: ignore[arg-type]

    def _call(self, export: str, *arguments: int) -> int:
        function = self._exports[export]
        if not isinstance(function, wasmtime.Func):
            raise PolicyBroken(f"the compiled policy does not export {export}")
        return int(function(self._store, *arguments) or 0)

    def _json(self, export: str) -> dict[str, int]:
        text: dict[str, int] = json.loads(self._text(self._call("opa_json_dump", self._call(export))))
        return text

    def _text(self, address: int) -> bytes:
        text = bytearray()
        while b"\0" not in text and (more := self._memory.read(self._store, address, address + _PAGE)):
            text += more
            address += _PAGE
        return bytes(text).partition(b"\0")[0]

    def _abort(self, address: int) -> None:
        raise PolicyBroken(f"the policy fails while it is evaluated: {self._text(address).decode(errors='replace')}")

    def _reserve(self, size: int) -> None:
        if (lacking := size - self._memory.data_len(self._store)) > 0:
            self._memory.grow(self._store, lacking // _PAGE + 1)


def _unknown_builtin(*_: int) -> int:
    raise PolicyBroken("the policy calls a built-in function that the in-process engine does not have")
