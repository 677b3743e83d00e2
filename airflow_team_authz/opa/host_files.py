"""Files that the processes of a host share: one process makes a file, the others use it.

What is in such a file decides, or runs. So it has to be a file that this user alone can write, in a directory that this
user alone can write; both are looked at when they are open already, so that nobody can exchange them between the look
and the use. The file's name holds a digest of its content, so that a part of one is not used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from airflow_team_authz.escaping import logger
from airflow_team_authz.files import make_private
from airflow_team_authz.opa.errors import OpaError

log = logger(__name__)

# How long a process waits for another one that is making a file, before it makes its own.
WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.02
# What was used last stays.
KEEP_FILES = 6
_MOST_BYTES = 1 << 30
_LOCK = "lock"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

T = TypeVar("T")


class UnfitFileError(OpaError):
    """A directory or a file is not this user's alone; the message says which, and why."""


class Recipe(NamedTuple, Generic[T]):
    """How to come by something: by the name that stands for all that it depends on, from a file or anew.

    ``suffix`` is of the files. ``use`` takes an open file; ``unfit`` is what it raises for a content of no use.
    """

    name: str
    suffix: str
    make: Callable[[], T]
    content: Callable[[T], bytes | bytearray]
    use: Callable[[int], T]
    unfit: tuple[type[Exception], ...] = ()


def found_or_made(recipe: Recipe[T], directory: Path | None) -> T:
    """What a file in the directory holds, if there is one, else made, and kept there.

    Without a directory, or if it cannot be used, it is made. Errors are those of ``recipe.make``.
    """
    if directory is None:
        return recipe.make()
    try:
        with _opened(directory) as opened:
            return _of_directory(recipe, opened)
    except (OSError, UnfitFileError) as error:
        log.info("nothing is kept in %s: %s", directory, error)
        return recipe.make()


def _of_directory(recipe: Recipe[T], directory: int) -> T:
    if (found := _found(recipe, directory)) is not None:
        return found
    with _alone(recipe.name, directory) as lock_or_nothing:
        # Another process may have been the one that made it.
        if (found := _found(recipe, directory)) is not None:
            return found
        made = recipe.make()
        if lock_or_nothing is not None:
            try:
                _keep(recipe, recipe.content(made), directory)
            except _errors_of_files(recipe) as error:
                log.info("%s is not kept: %s", recipe.name, error)
        return made


def _errors_of_files(recipe: Recipe[T]) -> tuple[type[Exception], ...]:
    """Errors after which a file is of no use, and nothing else is."""
    return (OSError, UnfitFileError, *recipe.unfit)


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
        raise UnfitFileError(f"{name} belongs to another user")
    if about.st_mode & _OTHERS_WRITE:
        raise UnfitFileError(f"other users may write {name}")


def _found(recipe: Recipe[T], directory: int) -> T | None:
    for name in os.listdir(directory):
        if name.startswith(f"{recipe.name}-") and name.endswith(recipe.suffix):
            try:
                return _used(recipe, name, directory)
            except _errors_of_files(recipe) as error:
                log.warning("the file %s is not used: %s", name, error)
                with suppress(OSError):
                    os.unlink(name, dir_fd=directory)
    return None


def _used(recipe: Recipe[T], name: str, directory: int) -> T:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    try:
        about = os.fstat(file)
        _check_owner(about, name)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or about.st_size > _MOST_BYTES:
            raise UnfitFileError(f"{name} is no plain file of its own")
        with open(file, "rb", closefd=False) as content:
            if name != f"{recipe.name}-{hashlib.file_digest(content, 'sha256').hexdigest()}{recipe.suffix}":
                raise UnfitFileError(f"{name} does not hold what its name says")
        with suppress(OSError):
            os.utime(file)
        return recipe.use(file)
    finally:
        os.close(file)


@contextmanager
def _alone(prefix: str, directory: int) -> Iterator[int | None]:
    """While no other process of the host makes one; nothing if that takes too long, or the other one has the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    lock = os.open(_LOCK, flags, 0o600, dir_fd=directory)
    try:
        yield lock if _locked(lock, prefix, directory) else None
    finally:
        # The system gives the lock back with it.
        os.close(lock)


def _locked(lock: int, prefix: str, directory: int) -> bool:
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            # Unlike those of `flock`, these are not handed on to forked children, which would keep them.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until or any(name.startswith(prefix) for name in os.listdir(directory)):
                return False
            time.sleep(_LOOK_SECONDS)
        else:
            return True


def _keep(recipe: Recipe[T], content: bytes | bytearray, directory: int) -> None:
    fresh = f".{os.getpid()}.{threading.get_ident()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(fresh, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
        name = f"{recipe.name}-{hashlib.sha256(content).hexdigest()}{recipe.suffix}"
        os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with suppress(OSError):
            os.unlink(fresh, dir_fd=directory)
    _remove_old(directory)


def _remove_old(directory: int) -> None:
    """Delete old files. A process that has mapped one keeps it."""

    def used(name: str) -> int:
        try:
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns
        except OSError:
            return 0

    names = (name for name in os.listdir(directory) if name != _LOCK)
    for name in sorted(names, key=used, reverse=True)[KEEP_FILES:]:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
