"""Measures the cost of a team's package in every engine: memory for its data, and time to compile its rules.

It is measured as an engine has it: a text of JSON takes up to a hundred times its size there.
"""

from __future__ import annotations

from collections.abc import Iterator

from airflow_team_authz.gate.findings import Finding
from airflow_team_authz.gate.patterns import trying_policy
from airflow_team_authz.model import PolicyBrokenError
from airflow_team_authz.opa.archive import canonical
from airflow_team_authz.opa.wasm import code_bytes, start

MAX_DATA_MEMORY = 4 * 1024 * 1024
# A megabyte of it takes each process a second or two.
MAX_CODE_BYTES = 192 * 1024


def data_findings(file: str, data: object, opa: str) -> Iterator[Finding]:
    """A finding if the data of a team takes too much memory."""
    try:
        taken = start(trying_policy(opa)._replace(data=canonical(data))).data_bytes
    except PolicyBrokenError as error:
        told = f"no engine can start with it: {error}"
    else:
        told = f"it takes {taken:,} bytes of memory in an engine, and {MAX_DATA_MEMORY:,} may be"
        if taken <= MAX_DATA_MEMORY:
            return
    yield Finding(
        "too-large", file, 1, told, "have fewer and larger values: texts instead of lists of numbers or objects"
    )


def code_findings(place: str, without: bytes, wasm: bytes) -> Iterator[Finding]:
    """A finding if the rules of a team compile to too much Wasm: ``wasm`` with them, and ``without``."""
    taken = code_bytes(wasm) - code_bytes(without)
    if taken > MAX_CODE_BYTES:
        told = f"its rules compile to {taken:,} bytes of Wasm, and {MAX_CODE_BYTES:,} may be"
        yield Finding("too-large", place, 1, told, "have fewer rules: keep lists of names in data.json")
