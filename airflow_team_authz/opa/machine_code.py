"""Machine code that this host has compiled before: one process compiles a policy, the others map its file.

A file of machine code is as good as a program: see ``host_files`` for the files that count.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import wasmtime

from airflow_team_authz.opa.host_files import Recipe, found_or_made

_SUFFIX = ".cwasm"


def module(
    engine: wasmtime.Engine,
    wasm: bytes,
    settings: str,
    directory: Path | None,
    make: Callable[[], wasmtime.Module] | None = None,
) -> wasmtime.Module:
    """The module as machine code: of a file in the directory if it has one, else compiled, and kept there.

    ``settings``: what of the engine's matters. Without a directory, or if it cannot be used, it is compiled: by
    ``make``, whose errors this raises, or here. ``wasmtime.WasmtimeError`` if it cannot be.
    """
    recipe = Recipe(
        _name(wasm, settings),
        _SUFFIX,
        make=make or (lambda: wasmtime.Module(engine, wasm)),
        content=lambda made: made.serialize(),
        # By its name another one might be there by now.
        use=lambda file: wasmtime.Module.deserialize_file(engine, f"/dev/fd/{file}"),
        unfit=(wasmtime.WasmtimeError,),
    )
    return found_or_made(recipe, directory)


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
