"""The memory of a started policy, which instances and processes of a host share: each changes only its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import wasmtime

from airflow_team_authz.engines.instances import FORGET_SECONDS, Instances
from airflow_team_authz.model import PolicyBrokenError
from airflow_team_authz.opa import wasm
from airflow_team_authz.opa.archive import unpack
from airflow_team_authz.opa.memory_image import IS_AVAILABLE, MemoryImage
from tests.conftest import build

pytestmark = pytest.mark.skipif(not IS_AVAILABLE, reason="this system cannot replace a part of a mapping")

Patch = pytest.MonkeyPatch
REGO = """package airflow.authz
decision := {}
allowed := []
whoami := {}
decisions := [data.names[input.name], count(split(input.many, ""))]
"""
WASM = unpack(build(REGO))["policy.wasm"]
LONG, MANY = "x" * 20_000, "x" * 100_000


def data(value: int = 7) -> bytes:
    """Four megabytes, most of which nobody asks for."""
    return json.dumps({"names": {f"name{number}": value for number in range(100_000)}}).encode()


DATA, OTHER = data(), data(8)


def policy(state: Path | None, content: bytes = DATA) -> wasm.Policy:
    return wasm.compiled(WASM, content, quick=True, kept=state and state / "compiled")


def answer(machine: wasm.Machine, many: str = "") -> object:
    question = json.dumps({"name": "name99999", "many": many}).encode()
    return json.loads(bytes(machine.evaluate("decisions", question, 10**10)))


def files(state: Path) -> list[Path]:
    return sorted((state / "started").glob("*.memory"))


def own_kilobytes(machine: wasm.Machine) -> int:
    """What this instance alone has of its memory."""
    own, inside = 0, False
    base = machine._base()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = base < end and begin < base + (machine.pages << 16)
        elif inside and first == "Anonymous:":
            own += int(line.split()[1])
    return own


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "not kept"])
def test_instances_share_the_data(is_kept: bool, tmp_path: Path) -> None:
    shared = policy(tmp_path if is_kept else None)
    machines = [wasm.start(shared) for _ in range(3)]
    assert [answer(machine) for machine in machines] == [[7, 0]] * 3
    assert machines[0].data_bytes > 4 << 20
    assert max(map(own_kilobytes, machines)) < 256


def test_another_process_of_the_host_neither_parses_the_data_nor_has_it_alone(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    mine = policy(tmp_path)
    assert mine.image is not None
    assert mine.image.is_shared
    monkeypatch.delattr(wasm.Machine, "_parse")
    machines = [wasm.start(mine), wasm.start(policy(tmp_path))]
    assert [answer(machine) for machine in machines] == [[7, 0]] * 2
    (file,) = files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Path("/proc/self/maps").read_text().count(str(file)) == 2


def test_what_a_process_of_its_own_has_compiled_and_started_is_used_here(tmp_path: Path, monkeypatch: Patch) -> None:
    """It compiles with several threads, and this one without."""
    assert wasm.trouble_at_start(WASM, DATA, quick=True, kept=tmp_path / "compiled") == ""
    begin = wasmtime.Module.__init__

    def noted(made: wasmtime.Module, engine: wasmtime.Engine, code: bytes | str) -> None:
        assert code != WASM
        begin(made, engine, code)

    monkeypatch.setattr(wasmtime.Module, "__init__", noted)
    monkeypatch.delattr(wasm.Machine, "_parse")
    assert answer(wasm.start(policy(tmp_path))) == [7, 0]


def test_what_an_instance_writes_nobody_else_sees(tmp_path: Path) -> None:
    shared = policy(tmp_path)
    first, second = wasm.start(shared), wasm.start(shared)
    before = hashlib.sha256(files(tmp_path)[0].read_bytes()).digest()
    assert answer(first, MANY) == [7, 100_000]
    assert answer(second) == [7, 0]
    assert second.taken < first.taken
    assert hashlib.sha256(files(tmp_path)[0].read_bytes()).digest() == before
    assert answer(wasm.start(shared), MANY) == [7, 100_000]


def test_other_data_of_the_same_rules_is_another_memory(tmp_path: Path) -> None:
    policies = [policy(tmp_path), policy(tmp_path, OTHER)]
    assert [answer(wasm.start(one)) for one in policies] == [[7, 0], [8, 0]]
    assert len(files(tmp_path)) == 2
    # Data that is put in afterwards counts, and not that of the image.
    assert answer(wasm.start(policies[0]._replace(data=OTHER))) == [8, 0]


def test_the_memory_of_a_long_question_is_given_back_when_there_is_no_work(tmp_path: Path) -> None:
    instances = Instances(policy(tmp_path), at_rest=1)
    machine = instances.take()
    answer(machine, LONG)
    instances.give(machine)
    assert own_kilobytes(machine) > 1024
    machine.rests_since = time.monotonic() - FORGET_SECONDS - 1
    assert instances.shrink()
    assert instances.idle == (machine,)
    assert own_kilobytes(machine) < 256
    assert instances.take() is machine
    assert [answer(machine), answer(machine, LONG)] == [[7, 0], [7, 20_000]]


def test_the_memory_of_a_very_long_question_is_given_back_at_once(tmp_path: Path) -> None:
    instances = Instances(policy(tmp_path), at_rest=1)
    machine = instances.take()
    answer(machine, MANY)
    assert own_kilobytes(machine) > 4096
    instances.give(machine)
    assert own_kilobytes(machine) < 256
    assert [instances.shrink(), instances.shrink()] == [True, False]
    assert answer(instances.take(), MANY) == [7, 100_000]


def test_an_instance_at_work_keeps_its_memory(tmp_path: Path) -> None:
    instances = Instances(policy(tmp_path), at_rest=2)
    at_work, just_now = instances.take(), instances.take()
    for machine in (at_work, just_now):
        answer(machine, LONG)
    instances.give(just_now)
    instances.shrink()
    assert min(at_work.taken, just_now.taken) > 1 << 20


def poisoned(file: Path) -> None:
    policy(file.parent.parent, OTHER)
    (other,) = (path for path in files(file.parent.parent) if path != file)
    os.replace(other, file)


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 65_536),
    "a changed byte": lambda file: file.write_bytes(b"?" + file.read_bytes()[1:]),
    "more": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "of other data": poisoned,
    "writable for all": lambda file: file.chmod(0o602),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_not_used_and_is_replaced(case: str, tmp_path: Path) -> None:
    policy(tmp_path)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    SPOILT[case](file)
    assert answer(wasm.start(policy(tmp_path))) == [7, 0]
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (good, 0o600)


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 65_536 + b"\1" * 8, b"\0" * 8], ids=len)
def test_a_file_of_another_form_is_refused(content: bytes) -> None:
    file = os.memfd_create("bad")
    os.write(file, content)
    with pytest.raises(Exception, match=r"memory|unpack"):
        MemoryImage(file, is_shared=True)


def test_where_there_is_no_such_file_each_instance_parses_the_data(tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(_: str) -> int:
        raise PermissionError("no")

    monkeypatch.setattr(os, "memfd_create", refuse)
    alone = policy(tmp_path)
    assert alone.image is None
    assert [answer(wasm.start(alone)) for _ in range(2)] == [[7, 0]] * 2


def test_an_instance_that_cannot_map_it_is_not_started(tmp_path: Path, monkeypatch: Patch) -> None:
    shared = policy(tmp_path)
    assert shared.image is not None
    # No page begins there.
    with pytest.raises(OSError, match="cannot be mapped") as refused:
        shared.image.map_over(1)
    monkeypatch.setattr(MemoryImage, "map_over", lambda *_: (_ for _ in ()).throw(refused.value))
    with pytest.raises(PolicyBrokenError, match="cannot be mapped"):
        wasm.start(shared)


# All threads hold a block at once, so each has an arena of its own if it may. By default, glibc takes a large block
# from the heap after it has freed a larger one.
KEPT_BY_C = """
import ctypes, re, sys, tempfile, threading
from pathlib import Path
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import PolicyBrokenError
if sys.argv[1] == "engine":
    try:
        InProcess(Path("there-is-none.tar.gz"))
    except PolicyBrokenError:
        pass
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
ready = threading.Barrier(9)
def hold():
    ready.wait()
    libc.malloc(1000)
    ready.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
ready.wait()
libc.free(libc.malloc(8 << 20))
large = libc.malloc(4 << 20)
with tempfile.TemporaryFile() as file:
    told = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
    libc.malloc_info(0, told)
    libc.fflush(told)
    file.seek(0)
    text = file.read()
mapped = int(re.findall(rb'type="mmap" count="[0-9]+" size="([0-9]+)"', text)[-1])
print(len(re.findall(rb"<heap nr=", text)), mapped >> 20)
"""
_MANY = range(4, 10)


@pytest.mark.parametrize(
    ("opened", "environment", "places", "maps_large_blocks"),
    [
        ("nothing", {}, _MANY, False),
        ("engine", {}, [1], True),
        ("engine", {"MALLOC_ARENA_MAX": "5"}, [4, 5], True),
        ("engine", {"MALLOC_MMAP_THRESHOLD_": "33554432"}, [1], False),
        ("engine", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=5:glibc.malloc.mmap_threshold=33554432"}, [4, 5], False),
    ],
)
def test_an_engine_limits_the_free_memory_that_glibc_keeps_unless_the_environment_does(
    opened: str, environment: dict[str, str], places: Sequence[int], maps_large_blocks: bool
) -> None:
    command = [sys.executable, "-c", KEPT_BY_C, opened]
    told = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    found, mapped = map(int, told.stdout.split())
    assert found in places
    assert (mapped >= 4) is maps_large_blocks
