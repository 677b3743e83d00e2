"""Machine code that this host has compiled before: one process compiles a policy, the others map its file.

A file of machine code is as good as a program. So it has to be a file that this user alone can write, in a directory
that this user alone can write; both are looked at when they are open already, so that nobody can exchange them
between the look and the use. The file's name holds a digest of its content, since a part of one would crash a process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import wasmtime

from airflow_team_authz.escaping import logger
from airflow_team_authz.files import make_private
from airflow_team_authz.opa.errors import OpaError

log = logger(__name__)

# How long a process waits for another one that is compiling, before it compiles for itself.
WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.02
# A policy has two, one compiled in a hurry. What was used last stays.
KEEP_FILES = 6
_MOST_BYTES = 1 << 30
_SUFFIX = ".cwasm"
_LOCK = "lock"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnfitCodeError(OpaError):
    """A directory or a file is not this user's alone; the message says which, and why."""


class _Place(NamedTuple):
    """The open directory, and what the files for one module in it begin with."""

    directory: int
    prefix: str


def module(engine: wasmtime.Engine, wasm: bytes, settings: str, directory: Path | None) -> wasmtime.Module:
    """The module as machine code: of a file in the directory if it has one, else compiled, and kept there.

    ``settings``: what of the engine's matters. Without a directory, or if it cannot be used, it is compiled.
    ``wasmtime.WasmtimeError`` if it cannot be.
    """
    if directory is None:
        return wasmtime.Module(engine, wasm)
    try:
        with _opened(directory) as opened:
            return _found_or_made(engine, wasm, _Place(opened, _name(wasm, settings)))
    except (OSError, UnfitCodeError) as error:
        log.info("compiled policies are not kept in %s: %s", directory, error)
        return wasmtime.Module(engine, wasm)


def _found_or_made(engine: wasmtime.Engine, wasm: bytes, place: _Place) -> wasmtime.Module:
    if (found := _found(engine, place)) is not None:
        return found
    with _alone(place) as lock_or_nothing:
        # Another process may have been the one that compiled.
        if (found := _found(engine, place)) is not None:
            return found
        made = wasmtime.Module(engine, wasm)
        if lock_or_nothing is not None:
            try:
                _keep(place, made.serialize())
            except (OSError, wasmtime.WasmtimeError) as error:
                log.info("a compiled policy is not kept: %s", error)
        return made


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """The directory, made if it is missing: this user's alone."""
    make_private(directory)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_owner(os.fstat(opened), str(directory))
        yield opened
    finally:
        os.close(opened)


def _check_owner(about: os.stat_result, name: str) -> None:
    if about.st_uid != os.geteuid():
        raise UnfitCodeError(f"{name} belongs to another user")
    if about.st_mode & _OTHERS_WRITE:
        raise UnfitCodeError(f"other users may write {name}")


def _name(wasm: bytes, settings: str) -> str:
    """The name of the machine code, from everything that it depends on."""
    parts = (version("wasmtime"), platform.system(), _processor(), settings)
    digest = hashlib.sha256("\n".join(parts).encode() + b"\n")
    digest.update(wasm)
    return digest.hexdigest()[:32]


def _processor() -> str:
    """Which instructions it has; wasmtime compares them too, when it maps a file."""
    flags = ""
    with suppress(OSError), Path("/proc/cpuinfo").open() as told:
        flags = next((line for line in told if line.startswith(("flags", "Features"))), "")
    return platform.machine() + flags


def _found(engine: wasmtime.Engine, place: _Place) -> wasmtime.Module | None:
    for name in os.listdir(place.directory):
        if name.startswith(f"{place.prefix}-") and name.endswith(_SUFFIX):
            try:
                return _mapped(engine, name, place)
            except (OSError, UnfitCodeError, wasmtime.WasmtimeError) as error:
                log.warning("the compiled policy %s is not used: %s", name, error)
                with suppress(OSError):
                    os.unlink(name, dir_fd=place.directory)
    return None


def _mapped(engine: wasmtime.Engine, name: str, place: _Place) -> wasmtime.Module:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place.directory)
    try:
        about = os.fstat(file)
        _check_owner(about, name)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or about.st_size > _MOST_BYTES:
            raise UnfitCodeError(f"{name} is no plain file of its own")
        with open(file, "rb", closefd=False) as content:
            if name != f"{place.prefix}-{hashlib.file_digest(content, 'sha256').hexdigest()}{_SUFFIX}":
                raise UnfitCodeError(f"{name} does not hold what its name says")
        with suppress(OSError):
            os.utime(file)
        # By its name another one might be there by now.
        return wasmtime.Module.deserialize_file(engine, f"/dev/fd/{file}")
    finally:
        os.close(file)


@contextmanager
def _alone(place: _Place) -> Iterator[int | None]:
    """While no other process of the host compiles; nothing if that takes too long, or the other one has the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    lock = os.open(_LOCK, flags, 0o600, dir_fd=place.directory)
    try:
        yield lock if _locked(lock, place) else None
    finally:
        # The system gives the lock back with it.
        os.close(lock)


def _locked(lock: int, place: _Place) -> bool:
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            # Unlike those of `flock`, these are not handed on to forked children, which would keep them.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until or any(name.startswith(place.prefix) for name in os.listdir(place.directory)):
                return False
            time.sleep(_LOOK_SECONDS)
        else:
            return True


def _keep(place: _Place, code: bytes | bytearray) -> None:
    fresh = f".{os.getpid()}.{threading.get_ident()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(fresh, flags, 0o600, dir_fd=place.directory), "wb") as file:
            file.write(code)
        name = f"{place.prefix}-{hashlib.sha256(code).hexdigest()}{_SUFFIX}"
        os.rename(fresh, name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
    finally:
        with suppress(OSError):
            os.unlink(fresh, dir_fd=place.directory)
    _remove_old(place)


def _remove_old(place: _Place) -> None:
    """Delete old files. A process that has mapped one keeps it."""

    def used(name: str) -> int:
        try:
            return os.stat(name, dir_fd=place.directory, follow_symlinks=False).st_mtime_ns
        except OSError:
            return 0

    names = (name for name in os.listdir(place.directory) if name != _LOCK)
    for name in sorted(names, key=used, reverse=True)[KEEP_FILES:]:
        with suppress(OSError):
            os.unlink(name, dir_fd=place.directory)
