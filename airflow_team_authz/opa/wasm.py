"""Policy as Wasm: what OPA has compiled, run by wasmtime.

Speaks OPA's Wasm ABI 1.x (https://www.openpolicyagent.org/docs/wasm).
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import wasmtime

from airflow_team_authz.escaping import logger
from airflow_team_authz.model import PolicyBrokenError, TooLongError, UndefinedError
from airflow_team_authz.opa.compile import ENTRYPOINTS
from airflow_team_authz.opa.machine_code import (
    NotCompiledError,
    by_child,
    config,
    limited,
    module,
    new_engine,
    optimized,
)
from airflow_team_authz.opa.memory_image import IS_AVAILABLE, MemoryImage, forget, memory_image

log = logger(__name__)

# A unit of fuel is about 0.2 ns here; an ordinary decision takes 150,000, one more of a list 45,000.
FUEL_BASE = 50_000_000
FUEL_PER_RESOURCE = 500_000
# Each question compiles its patterns anew, and each team has its own: one of `regex.match` takes 650,000, and 8,000
# when it is used again; one of `glob.match` 140,000 and 8,000.
FUEL_PER_TEAM = 10_000_000
# A person may have thousands of groups, and a group may stand for thousands of teams: one more name of a subject takes
# 10,000, and ten times that where all teams are asked for.
FUEL_PER_SUBJECT_BYTE = 10_000
FUEL_PER_DIRECTORY_BYTE = 2_000
# What a list usually takes, with some to spare: 50,000 to 60,000 for each resource.
USUAL_BASE = 5_000_000
USUAL_PER_RESOURCE = 75_000
USUAL_PER_SUBJECT_BYTE = 4_000
USUAL_PER_DIRECTORY_BYTE = 500
_PAGE = 64 * 1024
_MIN_PAGES = 16
_MAX_PAGES = 4096
# What an instance may take before it is asked anything: the policy and the data of the platform and of all teams. The
# rest of its memory is for questions.
MAX_START_PAGES = 2048
# Linear memory never shrinks: a store that a long list has blown up by more than this is given back.
KEEP_PAGES = 512
# Processor time for compiling and starting a policy that comes from elsewhere.
START_SECONDS = 60
_CODE_SECTION = 10
_MOST_DIRECTORY_BYTES = 8 << 20
_NOT_AS_AGREED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# One call without arguments instead of one with seven: converting an argument costs as much as a rule.
# The slot holds entrypoint, length of the input, and afterwards the address of the result and the end of what it took.
_TRAMPOLINE = """
(module
  (import "opa" "memory" (memory 1))
  (import "opa" "opa_eval" (func $eval (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "opa" "opa_heap_ptr_get" (func $end (result i32)))
  (func (export "evaluate")
    (i32.store (i32.const {result})
      (call $eval
        (i32.const 0)
        (i32.load (i32.const {entrypoint}))
        (i32.const {data})
        (i32.const {heap})
        (i32.load (i32.const {length}))
        (i32.add (i32.const {heap}) (i32.load (i32.const {length})))
        (i32.const 0)))
    (i32.store (i32.const {end}) (call $end))))
"""


class _Result(msgspec.Struct):
    result: msgspec.Raw


_decode_results = msgspec.json.Decoder(list[_Result]).decode


class Alike(msgspec.Struct, frozen=True):
    """The owners about whose resources no rule looks at ids, as ``kinds.py`` has found them in a policy's rules."""

    site: bool = False
    teams: dict[str, bool] = {}
    others: bool = False

    def __call__(self, team_id: str | None) -> bool:
        """Whether the resources of this owner are decided by kind. As ``_alike_in`` of ``data.airflow.authz``."""
        return self.site and (team_id is None or self.teams.get(team_id, self.others))


class Policy(NamedTuple):
    """A compiled policy: what all threads share. ``rego`` is the source that was beside it, for who loads it.

    ``data`` is JSON. Without it, a started policy's memory is in ``image``.
    """

    engine: wasmtime.Engine
    module: wasmtime.Module
    data: bytes
    revision: str
    serial: int = 0
    key_id: str = ""
    issued_at: int | None = None
    directory_bytes: int = 0
    alike: Alike = Alike()
    rego: Mapping[str, bytes] | None = None
    image: MemoryImage | None = None

    def fuel(self, question: bytes, size: int, teams: int, pace: float | None = None) -> int:
        """The allowance of a question about so many resources of so many teams; ``pace``: a multiple of the usual cost.

        It grows with what is told of the subject, which comes first in a question.
        """
        # The last one: a claim may be called so, too.
        subject = max(question.rfind(b'"resources":'), 0)
        fuel = FUEL_BASE + size * FUEL_PER_RESOURCE + teams * FUEL_PER_TEAM
        fuel += subject * FUEL_PER_SUBJECT_BYTE + self.directory_bytes * FUEL_PER_DIRECTORY_BYTE
        if pace is None:
            return fuel
        usual = USUAL_BASE + size * USUAL_PER_RESOURCE
        usual += subject * USUAL_PER_SUBJECT_BYTE + self.directory_bytes * USUAL_PER_DIRECTORY_BYTE
        return min(fuel, int(pace * usual))


class _Airflow(msgspec.Struct, frozen=True):
    directory: msgspec.Raw = msgspec.Raw(b"")
    regardless_of_id: msgspec.Raw = msgspec.Raw(b"{}")


class _Data(msgspec.Struct):
    airflow: _Airflow = _Airflow()


def trouble_with(wasm: bytes) -> str:
    """What keeps it from being run, as far as a look at it tells, which takes a hundredth of the time that compiling it
    does; empty if nothing does.
    """
    try:
        wasmtime.Module.validate(wasmtime.Engine(config()), wasm)
    except wasmtime.WasmtimeError as error:
        return " ".join(str(error).split())
    # OPA's compiler has their names in the module's data.
    lacking = [name for name in ENTRYPOINTS if name.encode() not in wasm]
    return f"it lacks the entrypoint {lacking[0]}" if lacking else ""


def trouble_at_start(
    wasm: bytes, data: bytes, seconds: int = START_SECONDS, quick: bool = False, kept: Path | None = None
) -> str:
    """The reason why no engine can compile and start it within so many seconds of a processor; empty if one can.

    It is compiled and started in a process of its own, which alone can be stopped. ``quick``, ``kept``: see
    ``compiled``. What is quick for one compiler may take another one a hundred times as long.
    """
    if trouble := trouble_with(wasm):
        return trouble
    given = struct.pack("<I", len(wasm)) + wasm + data
    try:
        told = by_child(_start_for_parent, given, seconds, str(int(quick)), *([str(kept.absolute())] if kept else []))
    except NotCompiledError as error:
        return str(error)
    return told.decode(errors="replace").strip()


def _start_for_parent() -> None:
    """Print what keeps the policy on the standard input from being started."""
    quick, *kept = limited()
    given = sys.stdin.buffer.read()
    end = 4 + struct.unpack_from("<I", given)[0]
    try:
        compiled(given[4:end], given[end:], quick=quick == "1", kept=next(map(Path, kept), None), threads=True)
    except PolicyBrokenError as error:
        sys.stdout.write(" ".join(str(error).split())[:500])


def code_bytes(wasm: bytes) -> int:
    """How much machine-independent code a module has: what compiling it takes grows with it."""
    at, found = 8, 0
    while at < len(wasm):
        section = wasm[at]
        size, at = _number(wasm, at + 1)
        found += size if section == _CODE_SECTION else 0
        at += size
    return found


def _number(wasm: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number, in which the highest bit says that more follows; and where it ends."""
    value = shift = 0
    while True:
        byte = wasm[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def compiled(
    wasm: bytes,
    data: bytes = b"{}",
    revision: str = "",
    serial: int = 0,
    key_id: str = "",
    quick: bool = False,
    kept: Path | None = None,
    threads: bool = False,
    is_bounded: bool = False,
) -> Policy:
    """The policy, compiled for this machine; ``PolicyBrokenError`` if it cannot be.

    ``quick``: in a fifth of the time, and 1.5 times as slow when it decides. ``kept``: the directory for what processes
    of this host have compiled already. ``threads``: in two thirds of the time on two processors, in a process that
    never forks. ``is_bounded``: if it has to be compiled for speed, a process of its own does that within
    ``START_SECONDS`` of a processor, else ``NotCompiledError``.
    """
    engine, compiler = new_engine(quick, threads)
    make = partial(optimized, engine, wasm, START_SECONDS) if is_bounded and not quick else None
    try:
        machine_code = module(engine, wasm, f"fuel {compiler}", kept, make)
        directory_bytes, alike = _of_data(data)
        policy = Policy(
            engine, machine_code, data, revision, serial, key_id, directory_bytes=directory_bytes, alike=alike
        )
    except wasmtime.WasmtimeError as error:
        raise PolicyBrokenError(str(error)) from None
    if not IS_AVAILABLE:
        _start_within_bounds(policy)
        return policy
    try:
        directory = kept and kept.with_name("started")
        image = memory_image(wasm, data, lambda: _start_within_bounds(policy).image(), directory)
    except OSError as error:
        log.info("instances of the policy do not share their memory: %s", error)
        return policy
    policy = policy._replace(data=b"", image=image)
    start(policy)
    return policy


def _start_within_bounds(policy: Policy) -> Machine:
    machine = start(policy)
    if machine.pages > MAX_START_PAGES:
        raise PolicyBrokenError(
            f"the policy and its data take {mebibytes(machine.pages)} MiB before the first question, "
            f"and {mebibytes(MAX_START_PAGES)} may be"
        )
    return machine


def _of_data(data: bytes) -> tuple[int, Alike]:
    """How long the directory is, and the owners whose resources are decided by kind."""
    try:
        airflow = msgspec.json.decode(data, type=_Data).airflow
        directory_bytes = min(len(memoryview(airflow.directory)), _MOST_DIRECTORY_BYTES)
    except _NOT_AS_AGREED:
        # Whether it is data at all is seen when it is started.
        return 0, Alike()
    try:
        return directory_bytes, msgspec.json.decode(airflow.regardless_of_id, type=Alike, strict=True)
    except _NOT_AS_AGREED:
        # Then the policy, too, looks at each resource.
        return directory_bytes, Alike()


def mebibytes(pages: int) -> int:
    """Memory in MiB."""
    return pages * _PAGE >> 20


def start(policy: Policy) -> Machine:
    """An instance of it; ``PolicyBrokenError`` if it cannot have one."""
    try:
        return Machine(policy)
    except (wasmtime.WasmtimeError, wasmtime.Trap, LookupError, ValueError, TypeError, OSError) as error:
        # Lookups and values: a module that exports other things than OPA's compiler does, or says other things.
        raise PolicyBrokenError(f"the compiled policy cannot be started: {error!r}") from None


class _Start(msgspec.Struct, frozen=True):
    """What an instance has to know of its memory: addresses, and the numbers of entrypoints.

    ``data_bytes`` is what the data takes, with its text.
    """

    slot: int
    data: int
    heap: int
    data_bytes: int
    entrypoints: dict[str, int]


class Machine:
    """An instance of a policy, with its memory; for one thread at a time."""

    def __init__(self, policy: Policy) -> None:
        # For whoever hands it out: on the clock of ``time.monotonic``.
        self.rests_since = 0.0
        image = None if policy.data else policy.image
        self._has_image = image is not None
        self._store = store = wasmtime.Store(policy.engine)
        store.set_fuel(100 * FUEL_BASE)
        pages = image.size // _PAGE if image else _MIN_PAGES
        self._memory = memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(pages, _MAX_PAGES)))
        linker = wasmtime.Linker(policy.engine)
        linker.define(store, "env", "memory", memory)
        # wasmtime keeps what it calls until the store ends: by a strong reference to this object neither ever would.
        aborts: weakref.WeakMethod[Callable[[int], None]] = weakref.WeakMethod(self._abort)
        linker.define(
            store, "env", "opa_abort", self._function(1, lambda address: _call(aborts, address), result=False)
        )
        linker.define(store, "env", "opa_println", self._function(1, lambda _: None, result=False))
        for arguments in range(5):
            unknown = self._function(2 + arguments, _unknown_builtin)
            linker.define(store, "env", f"opa_builtin{arguments}", unknown)
        self._exports = linker.instantiate(store, policy.module).exports(store)
        if image:
            image.map_over(self._base())
            self._start = msgspec.json.decode(image.told, type=_Start)
        else:
            self._start = self._parse(policy.data)
        self._pages_at_start, self._end = self.pages, self._start.heap
        self._evaluate = self._trampoline(policy.engine)

    def _parse(self, data: bytes) -> _Start:
        """Put data into the memory. ``PolicyBrokenError`` if it is none, or the policy needs what there is not."""
        entrypoints = self._json("entrypoints")
        if missing := [name for name in ENTRYPOINTS if name not in entrypoints]:
            raise PolicyBrokenError(
                f"the compiled policy lacks the entrypoint {missing[0]}: build it with this package"
            )
        if builtins := self._json("builtins"):
            raise PolicyBrokenError(
                f"the policy calls {', '.join(builtins)}, which the in-process engine does not have"
            )
        slot = self._call("opa_malloc", 16)
        before = self._call("opa_heap_ptr_get")
        address = self._call("opa_malloc", len(data))
        self._reserve(address + len(data))
        self._memory.write(self._store, data, address)
        parsed = self._call("opa_json_parse", address, len(data))
        if parsed == 0:
            raise PolicyBrokenError("the bundle's data.json does not parse")
        heap = self._call("opa_heap_ptr_get")
        return _Start(slot, parsed, heap, heap - before, entrypoints)

    def _trampoline(self, engine: wasmtime.Engine) -> wasmtime.Func:
        start = self._start
        text = _TRAMPOLINE.format(
            entrypoint=start.slot, length=start.slot + 4, result=start.slot + 8, end=start.slot + 12,
            data=start.data, heap=start.heap,
        )  # fmt: skip
        linker = wasmtime.Linker(engine)
        linker.define(self._store, "opa", "memory", self._memory)
        for name in ("opa_eval", "opa_heap_ptr_get"):
            linker.define(self._store, "opa", name, self._exports[name])
        module = wasmtime.Module(engine, text)
        evaluate = linker.instantiate(self._store, module).exports(self._store)["evaluate"]
        assert isinstance(evaluate, wasmtime.Func)  # noqa: S101 - our own module, for the type checker
        return evaluate

    def image(self) -> MemoryImage:
        """A copy of its memory for further instances. To be taken before the first question."""
        return MemoryImage.of(self._base(), self.pages * _PAGE, msgspec.json.encode(self._start))

    def forget(self) -> None:
        """Give back the memory that questions have taken, if the system takes it. It answers as before."""
        if self._has_image:
            # Whoever has asked has an answer already, and memory that stays is no error.
            with suppress(OSError):
                forget(self._base(), self.pages * _PAGE)
            self._end = self._start.heap

    @property
    def data_bytes(self) -> int:
        """What its data takes, with its text."""
        return self._start.data_bytes

    @property
    def taken(self) -> int:
        """How many bytes of its memory its questions have taken since it has given them back last."""
        return self._end - self._start.heap

    @property
    def pages(self) -> int:
        """Size of the linear memory in pages of 64 KiB."""
        return self._memory.size(self._store)

    @property
    def grown(self) -> int:
        """By how many pages its questions have made it grow."""
        return self.pages - self._pages_at_start

    @property
    def fuel_used(self) -> int:
        """Fuel that the last evaluation has used."""
        return self._fuel - self._store.get_fuel()

    def evaluate(self, entrypoint: str, question: bytes, fuel: int) -> msgspec.Raw:
        """JSON of the entrypoint's value; ``PolicyBrokenError`` or ``UndefinedError`` if there is none."""
        store, self._fuel = self._store, fuel
        store.set_fuel(fuel)
        try:
            slot, heap = self._start.slot, self._start.heap
            self._reserve(heap + len(question))
            base = self._base()
            number = self._start.entrypoints[f"airflow/authz/{entrypoint}"]
            ctypes.memmove(base + slot, struct.pack("<ii", number, len(question)), 8)
            ctypes.memmove(base + heap, question, len(question))
            self._evaluate(store)
            # The memory may have grown, and with it moved.
            base = self._base()
            result, end = struct.unpack("<II", ctypes.string_at(base + slot + 8, 8))
            self._end = max(self._end, end)
            if not 0 < result < self._memory.data_len(store):
                raise PolicyBrokenError("the compiled policy answered outside of its memory")
            results = _decode_results(ctypes.string_at(base + result))
        except wasmtime.Trap as trap:
            if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL:
                raise TooLongError("a rule does not come to an end: it was stopped when its fuel was used up") from None
            raise PolicyBrokenError(
                f"the policy fails while it is evaluated: {str(trap).splitlines()[-1].strip()}"
            ) from None
        except (wasmtime.WasmtimeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PolicyBrokenError(f"the policy fails while it is evaluated: {error}") from None
        if not results:
            raise UndefinedError(f"the compiled policy defines no data.airflow.authz.{entrypoint}")
        return results[0].result

    def _base(self) -> int:
        return ctypes.addressof(self._memory.data_ptr(self._store).contents)

    def _function(self, arguments: int, call: object, result: bool = True) -> wasmtime.Func:
        i32 = wasmtime.ValType.i32
        kind = wasmtime.FuncType([i32() for _ in range(arguments)], [i32()] if result else [])
        return wasmtime.Func(self._store, kind, call)  # type: ignore[arg-type]

    def _call(self, export: str, *arguments: int) -> int:
        function = self._exports[export]
        if not isinstance(function, wasmtime.Func):
            raise PolicyBrokenError(f"the compiled policy does not export {export}")
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
        raise PolicyBrokenError(
            f"the policy fails while it is evaluated: {self._text(address).decode(errors='replace')}"
        )

    def _reserve(self, size: int) -> None:
        if (lacking := size - self._memory.data_len(self._store)) > 0:
            self._memory.grow(self._store, lacking // _PAGE + 1)


def _call(method: weakref.WeakMethod[Callable[[int], None]], address: int) -> None:
    if (living := method()) is not None:
        living(address)


def _unknown_builtin(*_: int) -> int:
    raise PolicyBrokenError("the policy calls a built-in function that the in-process engine does not have")
