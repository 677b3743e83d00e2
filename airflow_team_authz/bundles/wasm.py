"""Whether compiled policy can be run, without the time that compiling it for this machine takes."""

from __future__ import annotations

import wasmtime

from airflow_team_authz.compile import ENTRYPOINTS


def trouble_with(wasm: bytes) -> str:
    """What keeps it from being run, as far as a look at it tells; empty if nothing does."""
    try:
        wasmtime.Module.validate(wasmtime.Engine(), wasm)
    except wasmtime.WasmtimeError as error:
        return " ".join(str(error).split())
    # OPA's compiler has their names in the module's data.
    lacking = [name for name in ENTRYPOINTS if name.encode() not in wasm]
    return f"it lacks the entrypoint {lacking[0]}" if lacking else ""
