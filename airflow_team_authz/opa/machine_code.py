"""Machine code of policies: how a policy is compiled, and the files of what this host has compiled before.

One process compiles a policy, the others map its file. A file of machine code is as good as a program: see
``host_files`` for the files that count.
"""

from __future__ import annotations

import hashlib
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import wasmtime

from airflow_team_authz import own_process
from airflow_team_authz.opa.host_files import Recipe, found_or_made

try:
    # Its public settings do not offer the second compiler.
    from wasmtime._bindings import wasmtime_config_strategy_set as _set_compiler
except ImportError:
    _set_compiler = None  # type: ignore[assignment]

_SUFFIX = ".cwasm"
# wasmtime's second compiler needs a fifth of the time, and its code takes 1.5 times as long. It is used only where
# wasmtime tests it as it does the first one (https://docs.wasmtime.dev/stability-tiers.html). The number is that of
# `wasmtime/config.h`.
_WINCH, _WHERE_WINCH_IS_TESTED = 2, ("Linux", "x86_64")
_WAIT_SECONDS = 300
_OUT_OF_TIME = {signal.SIGXCPU, signal.SIGKILL}


class NotCompiledError(Exception):
    """A process of its own has not compiled a policy. No question has this for an answer."""


def config(threads: bool = False) -> wasmtime.Config:
    """Settings of wasmtime; with ``threads`` for a process that never forks."""
    made = wasmtime.Config()
    # wasmtime's threads, which compile and validate, are gone in a forked child, and it would wait for them for ever:
    # even if only its parent has had them.
    made.parallel_compilation = threads
    return made


def new_engine(quick: bool, threads: bool = False) -> tuple[wasmtime.Engine, str]:
    """What compiles and runs policies, and the name of the compiler. ``quick``, ``threads``: see ``wasm.compiled``."""
    settings = config(threads)
    settings.consume_fuel = True
    settings.cranelift_opt_level = "speed"
    compiler = _hurry(settings) if quick else "speed"
    return wasmtime.Engine(settings), compiler


def _hurry(settings: wasmtime.Config) -> str:
    """Choose what compiles in the least time; its name."""
    if (platform.system(), platform.machine()) == _WHERE_WINCH_IS_TESTED and _set_compiler is not None:
        _set_compiler(settings.ptr(), _WINCH)
        return "winch"
    settings.cranelift_opt_level = "none"
    return "none"


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


def optimized(engine: wasmtime.Engine, wasm: bytes, seconds: int) -> wasmtime.Module:
    """The module, compiled for speed in a process of its own within so many seconds of a processor.

    ``NotCompiledError`` if that fails, whatever the reason is.
    """
    try:
        return wasmtime.Module.deserialize(engine, by_child(_print_optimized, wasm, seconds))
    except (OSError, wasmtime.WasmtimeError) as error:
        raise NotCompiledError(f"the process that compiles it fails: {error}") from None


def _print_optimized() -> None:
    """Print machine code of the policy on the standard input."""
    limited()
    engine, _ = new_engine(quick=False, threads=True)
    sys.stdout.buffer.write(wasmtime.Module(engine, sys.stdin.buffer.read()).serialize())


def by_child(function: Callable[[], None], given: bytes, seconds: int, *arguments: str) -> bytes:
    """What a function prints in a process of its own, which may take so many seconds of a processor.

    The function calls ``limited`` first. ``NotCompiledError`` if the process takes longer or fails; ``OSError`` if it
    cannot be started.
    """
    try:
        done = own_process.run(function, given, str(seconds), *arguments, seconds=_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotCompiledError(f"it does not compile and start within {_WAIT_SECONDS} seconds") from None
    if -done.returncode in _OUT_OF_TIME:
        raise NotCompiledError(f"it does not compile and start within {seconds} seconds of a processor")
    if done.returncode:
        told = done.stderr.decode(errors="replace")[-200:]
        raise NotCompiledError(f"the process that tries it fails (exit code {done.returncode}): {told}")
    return done.stdout


def limited() -> list[str]:
    """Limit this process to the seconds of a processor that ``by_child`` has given it; its other arguments."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return sys.argv[2:]


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
