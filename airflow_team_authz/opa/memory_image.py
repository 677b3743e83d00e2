"""The memory of a started policy as a file, which all instances of a host map: each has only what it writes alone.

The data of many teams takes an instance tens of megabytes, nearly all of which is only read. As with machine code, what
is in such a file decides: see ``host_files`` for the files that count.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import struct
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from airflow_team_authz.opa.host_files import Recipe, found_or_made

# Linux replaces a part of a mapping in place, as the others may not.
IS_AVAILABLE = sys.platform == "linux"
_SUFFIX = ".memory"
_PAGE = 64 * 1024
# At the end of the file: how many bytes of it tell of the memory.
_LENGTH = struct.Struct("<Q")
# The module `mmap` lacks the first; both are the same on every Linux of today.
_FIXED, _DO_NOT_NEED = 0x10, 4
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _madvise = _libc.mmap, _libc.madvise
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_trim, _set_option = getattr(_libc, "malloc_trim", None), getattr(_libc, "mallopt", None)
# Options of glibc by their numbers: the environment variable and the tunable that override each, and our value.
_OPTIONS = {-8: ("MALLOC_ARENA_MAX", "arena_max", 1), -3: ("MALLOC_MMAP_THRESHOLD_", "mmap_threshold", 128 << 10)}


class MemoryImage:
    """Memory of a policy that has been started and not asked yet, and what is ``told`` of it, in an open file.

    ``is_shared``: other processes find the file, too.
    """

    def __init__(self, file: int, is_shared: bool) -> None:
        """``ValueError`` if the file, which belongs to this object from now on, has another form."""
        self._file, self.is_shared = file, is_shared
        size = os.fstat(file).st_size
        (length,) = _LENGTH.unpack(os.pread(file, _LENGTH.size, max(size - _LENGTH.size, 0)))
        self.size = size - _LENGTH.size - length
        if self.size <= 0 or self.size % _PAGE:
            raise ValueError("this is no memory of whole pages")
        self.told = os.pread(file, length, self.size)

    def __del__(self) -> None:
        os.close(self._file)

    @classmethod
    def of(cls, address: int, size: int, told: bytes) -> MemoryImage:
        """A copy of the memory at an address of this process."""
        file = os.memfd_create("policy")
        try:
            for part in ((ctypes.c_ubyte * size).from_address(address), told, _LENGTH.pack(len(told))):
                _write(file, memoryview(part).cast("B"))
        except OSError:
            os.close(file)
            raise
        return cls(file, is_shared=False)

    def content(self) -> bytes:
        """All of the file."""
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            return file.read()

    def map_over(self, address: int) -> None:
        """Have the memory at this address be this one. What is written there, nobody else sees. ``OSError``."""
        how = mmap.MAP_PRIVATE | _FIXED
        if _mmap(address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, how, self._file, 0) == _FAILED:
            raise OSError(ctypes.get_errno(), "the memory of a policy cannot be mapped")


def forget(address: int, size: int) -> None:
    """Give back what was written into this memory: it is as in the image again, and zero beyond. ``OSError``."""
    if _madvise(address, size, _DO_NOT_NEED):
        raise OSError(ctypes.get_errno(), "the memory of a policy cannot be given back")


def give_back() -> None:
    """Have the C library give the system what it keeps for later: long lists take large blocks of it for a moment.

    Elsewhere than with glibc this does nothing.
    """
    if _trim is not None:
        _trim(0)


def keep_little() -> None:
    """Limit the free memory that the C library keeps from now on.

    By default, glibc has up to eight arenas for each processor. Once it has freed a large block, it keeps later blocks
    of up to that size (at most 32 MiB). Lists that run at the same time then leave gaps of 10 to 20 MB in a busy
    process. With one arena, threads that allocate at the same moment wait for each other. Python's threads do so
    rarely, because they share one lock. Options that the environment sets stay. Elsewhere than with glibc this does
    nothing.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for option, (variable, tunable, value) in _OPTIONS.items():
        if _set_option is not None and variable not in os.environ and tunable not in tunables:
            _set_option(option, value)


def memory_image(wasm: bytes, data: bytes, make: Callable[[], MemoryImage], directory: Path | None) -> MemoryImage:
    """The memory of a policy that was started with this data: of a file in the directory if it has one, else made.

    Without a directory, or if it cannot be used, the processes of the host do not share it.
    """
    digest = hashlib.sha256(f"1 {version('wasmtime')} {sys.byteorder}\n".encode())
    for part in (wasm, data):
        digest.update(_LENGTH.pack(len(part)) + part)
    recipe = Recipe(
        digest.hexdigest()[:32],
        _SUFFIX,
        make=make,
        content=MemoryImage.content,
        use=lambda file: MemoryImage(os.dup(file), is_shared=True),
        unfit=(ValueError, struct.error),
    )
    found = found_or_made(recipe, directory)
    # Who has made it shares the file from now on, too.
    return found if found.is_shared else found_or_made(recipe._replace(make=lambda: found), directory)


def _write(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]
