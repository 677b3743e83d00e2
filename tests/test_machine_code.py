"""Machine code that a host's processes share: only what is this user's alone and whole is run, else it is compiled."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from airflow_team_authz.engines.choice import open_engine, packaged_baseline
from airflow_team_authz.opa import host_files, machine_code, wasm
from airflow_team_authz.opa.archive import unpack
from airflow_team_authz.opa.host_files import KEEP_FILES
from airflow_team_authz.opa.machine_code import config, module
from airflow_team_authz.settings import Settings
from tests.conftest import build

Patch = pytest.MonkeyPatch
SEVEN = bytes(wasmtime.wat2wasm('(module (func (export "answer") (result i32) (i32.const 7)))'))
OTHER = bytes(wasmtime.wat2wasm('(module (func (export "answer") (result i32) (i32.const 8)))'))
ENGINE = wasmtime.Engine(config())


@pytest.fixture
def compiled(monkeypatch: Patch) -> list[bytes]:
    """What has really been compiled."""
    seen: list[bytes] = []
    begin = wasmtime.Module.__init__

    def noted(made: wasmtime.Module, engine: wasmtime.Engine, wasm: bytes) -> None:
        seen.append(wasm)
        begin(made, engine, wasm)

    monkeypatch.setattr(wasmtime.Module, "__init__", noted)
    return seen


def answer(place: Path, wasm: bytes = SEVEN, settings: str = "fast") -> object:
    store = wasmtime.Store(ENGINE)
    exports = wasmtime.Instance(store, module(ENGINE, wasm, settings, place), []).exports(store)
    function = exports["answer"]
    assert isinstance(function, wasmtime.Func)
    return function(store)


def files(place: Path) -> list[Path]:
    return sorted(place.glob("*.cwasm"))


def test_a_policy_is_compiled_once(tmp_path: Path, compiled: list[bytes]) -> None:
    place = tmp_path / "state" / "compiled"
    assert [answer(place) for _ in range(3)] == [7, 7, 7]
    assert compiled == [SEVEN]
    assert [path.stat().st_mode & 0o777 for path in (place, *files(place))] == [0o700, 0o600]


def test_another_policy_setting_version_or_processor_is_compiled_anew(
    tmp_path: Path, compiled: list[bytes], monkeypatch: Patch
) -> None:
    assert (answer(tmp_path), answer(tmp_path, OTHER), answer(tmp_path, settings="small")) == (7, 8, 7)
    monkeypatch.setattr(machine_code, "version", lambda _: "0")
    answer(tmp_path)
    monkeypatch.setattr(machine_code, "_processor", lambda: "another one")
    answer(tmp_path)
    assert len(compiled) == len(files(tmp_path)) == 5


def poisoned(file: Path) -> None:
    """The place of what is asked for holds what was compiled of something else."""
    answer(file.parent, OTHER)
    (other,) = (path for path in files(file.parent) if path != file)
    os.replace(other, file)


def linked(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def piped(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a changed byte": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
    "more": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "of another policy": poisoned,
    "writable for the group": lambda file: file.chmod(0o620),
    "writable for all": lambda file: file.chmod(0o602),
    "a symbolic link": linked,
    "a hard link": lambda file: os.link(file, file.parent.parent / "second"),
    "a pipe": piped,
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_not_run_and_is_replaced(case: str, tmp_path: Path, compiled: list[bytes]) -> None:
    place = tmp_path / "compiled"
    answer(place)
    SPOILT[case](files(place)[0])
    compiled.clear()
    assert [answer(place), answer(place)] == [7, 7]
    assert compiled == [SEVEN]


@pytest.mark.parametrize("case", ["its mode", "a symbolic link", "another owner", "a file", "read-only"])
def test_a_directory_of_others_is_not_used(
    case: str, tmp_path: Path, compiled: list[bytes], monkeypatch: Patch
) -> None:
    place = tmp_path / "compiled"
    answer(place)
    match case:
        case "its mode":
            place.chmod(0o770)
        case "a symbolic link":
            place = tmp_path / "link"
            place.symlink_to(tmp_path / "compiled")
        case "another owner":
            monkeypatch.setattr(os, "geteuid", lambda: 12_345)
        case "a file":
            place = tmp_path / "file"
            place.write_bytes(b"")
        case "read-only":
            monkeypatch.setattr(host_files, "make_private", lambda _: (_ for _ in ()).throw(PermissionError()))
    compiled.clear()
    before = files(tmp_path / "compiled")
    assert [answer(place), answer(place)] == [7, 7]
    assert compiled == [SEVEN] * 2
    assert files(tmp_path / "compiled") == before


def test_a_file_that_is_exchanged_after_the_look_is_not_run(
    tmp_path: Path, compiled: list[bytes], monkeypatch: Patch
) -> None:
    answer(tmp_path)
    (file,) = files(tmp_path)

    def exchange(_: int) -> None:
        (tmp_path / "bad").write_bytes(b"bad")
        (tmp_path / "bad").replace(file)

    monkeypatch.setattr(host_files.os, "utime", exchange)
    compiled.clear()
    assert answer(tmp_path) == 7
    assert compiled == []
    assert file.read_bytes() == b"bad"


def test_of_processes_that_begin_at_once_one_compiles(tmp_path: Path, monkeypatch: Patch) -> None:
    context = multiprocessing.get_context("fork")
    together, told = context.Barrier(4), context.SimpleQueue()
    begin = wasmtime.Module.__init__
    made: list[int] = []

    def noted(*given: object) -> None:
        made.append(1)
        # Long enough for the others to come meanwhile.
        time.sleep(0.5)
        begin(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(wasmtime.Module, "__init__", noted)

    def run() -> None:
        together.wait(60)
        told.put((answer(tmp_path), len(made)))

    children = [context.Process(target=run, daemon=True) for _ in range(4)]
    for child in children:
        child.start()
    answers = [told.get() for _ in children]
    for child in children:
        child.join(60)
    assert sorted(answers) == [(7, 0)] * 3 + [(7, 1)]


def test_nobody_waits_for_ever_for_who_compiles(tmp_path: Path, compiled: list[bytes], monkeypatch: Patch) -> None:
    monkeypatch.setattr(host_files, "WAIT_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def hold() -> None:
        with (tmp_path / "lock").open("wb") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            there.send(True)
            there.recv()

    child = context.Process(target=hold, daemon=True)
    child.start()
    assert here.recv()
    assert answer(tmp_path) == 7
    assert compiled == [SEVEN]
    here.send(True)
    child.join(30)


def test_old_files_are_removed_and_used_ones_stay(tmp_path: Path) -> None:
    answer(tmp_path)
    (first,) = files(tmp_path)
    for number in range(KEEP_FILES + 2):
        os.utime(first, ns=(10**18, 10**18 * 3))
        answer(tmp_path, settings=str(number))
    assert len(files(tmp_path)) == KEEP_FILES
    assert first in files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in files(tmp_path)} == {"lock"}


def test_an_engine_keeps_its_policy_in_state(tmp_path: Path, compiled: list[bytes]) -> None:
    rules = "".join(f"{name} := {{}}\n" for name in ("decision", "decisions", "allowed", "whoami"))
    (tmp_path / "bundle.tar.gz").write_bytes(build(f"package airflow.authz\n{rules}"))
    for _ in range(2):
        open_engine(Settings(policy=tmp_path / "bundle.tar.gz", state=tmp_path / "state")).close()
    assert len(files(tmp_path / "state" / "compiled")) == 1
    assert len([wasm for wasm in compiled if isinstance(wasm, bytes)]) == 1


@pytest.mark.parametrize(("processor", "is_offered", "compiler"), [
    ("x86_64", True, "winch"), ("aarch64", True, "none"), ("x86_64", False, "none"),
])  # fmt: skip
def test_the_second_compiler_is_used_where_it_is_tested(
    processor: str, is_offered: bool, compiler: str, monkeypatch: Patch
) -> None:
    policy = unpack(packaged_baseline().read_bytes())["policy.wasm"]
    sizes, told = {}, []

    def noted(engine: wasmtime.Engine, code: bytes, settings: str, *rest: Any) -> wasmtime.Module:
        told.append(settings)
        return module(engine, code, settings, *rest)

    monkeypatch.setattr(wasm, "module", noted)
    monkeypatch.setattr(machine_code.platform, "machine", lambda: processor)
    if not is_offered:
        monkeypatch.setattr(machine_code, "_set_compiler", None)
    for quick in (True, False):
        sizes[quick] = len(wasm.compiled(policy, quick=quick).module.serialize())
    assert told == [f"fuel {compiler}", "fuel speed"]
    # It spends no time on making the code short.
    assert (sizes[True] > 1.3 * sizes[False]) is (compiler == "winch")
