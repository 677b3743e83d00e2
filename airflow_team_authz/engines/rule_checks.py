"""Findings about the rules of a policy, for an engine: it tells them in the log, or refuses the policy.

A child process looks for them, since the engine's process would keep the 25 MB that 1,000 teams take. One process of a
host has it done for the others.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from airflow_team_authz import own_process
from airflow_team_authz.opa.compile import CompileError, find_opa, is_shipped, opa_version
from airflow_team_authz.opa.host_files import Recipe, found_or_made

if TYPE_CHECKING:
    from airflow_team_authz.gate.findings import Finding

# Looking at the rules of 1,000 teams takes a second of a processor.
_SECONDS = 300
_MOST_OF_ERROR = 500


class Told(NamedTuple):
    """A finding as one text. A finding that the gate calls a ``WARNING`` is not certain: the author may mean it so."""

    text: str
    is_certain: bool


def findings(policy: Path | Mapping[str, bytes], opa: str | None, kept: Path | None) -> list[Told]:
    """Findings about a policy directory, or about the files of a bundle by their paths.

    ``kept``: the directory in which the processes of a host keep what one of them has found about rules.
    ``CompileError`` if the rules cannot be checked, ``OSError`` if the files cannot be read.
    """
    if not isinstance(policy, Path):
        return _of_rules(policy, opa, kept)
    # Not at the start: an engine does not wait for the gate's modules.
    from airflow_team_authz.gate.policy_files import left_out, rego_files

    return [*_told(left_out(policy)), *_of_rules(rego_files(policy), opa, kept)]


def _of_rules(files: Mapping[str, bytes], opa: str | None, kept: Path | None) -> list[Told]:
    files = {name: text for name, text in files.items() if name.endswith(".rego") and not is_shipped(name)}
    if not files:
        # Nobody needs the `opa` program for the shipped policy alone.
        return []
    try:
        checks = version("airflow-team-authz")
    except PackageNotFoundError:
        # Source that nobody has installed: what another state of it has found is not known.
        return _by_a_child(files, opa)
    digest = hashlib.sha256(f"{checks} {opa_version(find_opa(opa))}".encode())
    for name, text in sorted(files.items()):
        digest.update(b"%d %d\n" % (len(os.fsencode(name)), len(text)) + os.fsencode(name) + text)
    recipe = Recipe(
        digest.hexdigest()[:32],
        ".findings",
        make=lambda: _by_a_child(files, opa),
        content=msgspec.json.encode,
        use=_read,
        unfit=(msgspec.DecodeError,),
    )
    return found_or_made(recipe, kept)


def _read(file: int) -> list[Told]:
    with open(file, "rb", closefd=False) as content:
        content.seek(0)
        return msgspec.json.decode(content.read(), type=list[Told])


def _by_a_child(files: Mapping[str, bytes], opa: str | None) -> list[Told]:
    try:
        # A file's name need not be text.
        given = msgspec.msgpack.encode((opa, {os.fsencode(name): text for name, text in files.items()}))
        done = own_process.run(_print_findings, given, seconds=_SECONDS)
    except subprocess.TimeoutExpired:
        raise CompileError(f"it takes longer than {_SECONDS} seconds") from None
    if done.returncode:
        raise CompileError(done.stderr.decode(errors="replace").strip()[-_MOST_OF_ERROR:])
    return msgspec.json.decode(done.stdout, type=list[Told])


def _print_findings() -> None:
    """Print the findings about the files on the standard input."""
    from airflow_team_authz.gate.policy_files import rule_findings

    opa, files = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=tuple[str | None, dict[bytes, bytes]])
    try:
        found = _told(rule_findings({os.fsdecode(name): text for name, text in files.items()}, opa))
    except (CompileError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(found))


def _told(found: Iterable[Finding]) -> list[Told]:
    from airflow_team_authz.gate.findings import WARNING

    return [Told(f"{one.file}:{one.line}: {one.message}: {one.help}", one.level != WARNING) for one in found]
