"""From Rego to a bundle for the in-process engine, by the ``opa`` program.

Uses the standard library only, because the wheel's build hook calls it as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

from airflow_team_authz.files import replacing
from airflow_team_authz.opa import kinds, shapes
from airflow_team_authz.opa.errors import OpaError, Problem, in_one_text, problems
from airflow_team_authz.opa.host_files import Recipe, found_or_made
from airflow_team_authz.opa.kinds import READ_OF_STANDING, REGARDLESS_OF_ID, read_of_standing, regardless_of_id
from airflow_team_authz.opa.shapes import PATTERN_SHAPES, pattern_shapes

MINIMUM_OPA = (1, 22, 2)
ENTRYPOINTS = ("airflow/authz/decision", "airflow/authz/decisions", "airflow/authz/allowed", "airflow/authz/whoami")
# As `opa build` takes them.
ENTRYPOINT_OPTIONS = tuple(part for name in ENTRYPOINTS for part in ("--entrypoint", name))
_SHIPPED_ONLY = "airflow/authz"
_DATA_FILES = {"data.json", "data.yaml", "data.yml"}
_DEFAULT_DATA = "airflow/roles"
_TIMEOUT_SECONDS = 60
_SUFFIX = ".tar.gz"
# What decides how a bundle is built, beside `opa`.
_SOURCES = (Path(__file__), Path(str(kinds.__file__)), Path(str(shapes.__file__)))


class CompileError(OpaError):
    """The policy directory cannot be compiled; the message says which file and why, ``problems`` what OPA has found."""

    def __init__(self, told: str, found: Sequence[Problem] = ()) -> None:
        super().__init__(told)
        self.problems = tuple(found)


class StartError(CompileError):
    """No engine can start the compiled policy: too much data, too much code, or a trap."""


def shipped_policies() -> Path:
    """The directory of the policy that comes with the package: in the wheel, or the repository's."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "policies"
    return installed if installed.is_dir() else here.parent / "policies"


def find_opa(configured: str | None = None) -> str:
    """Path of the ``opa`` program: the configured one, beside this Python, or on PATH.

    Raises ``CompileError`` if there is none, or if it is older than 1.22.2: older ones accept bundles
    that nobody signed (before 1.21.3), lose a ``deny`` (1.21.0 to 1.22.0) or corrupt memory in Wasm (before 1.20.0).
    """
    opa = _opa_program(configured)
    found = opa_version(opa)
    if found < MINIMUM_OPA:
        raise CompileError(f"{opa} is OPA {'.'.join(map(str, found))}: 1.22.2 or newer is needed")
    return opa


def _opa_program(configured: str | None) -> str:
    beside = Path(sys.executable).parent / "opa"
    opa = configured or (str(beside) if beside.exists() else shutil.which("opa"))
    if opa is None:
        raise CompileError(
            "compiling a policy directory takes the `opa` program, and none was found beside Python or on PATH: "
            "install OPA 1.22.2 or newer, or set [team_authz] opa to its path"
        )
    return opa


def opa_version(opa: str) -> tuple[int, ...]:
    """The version of an ``opa`` program as integers; ``CompileError`` if it does not run."""
    try:
        return _version(opa, _state(Path(opa).stat()))
    except OSError:
        # A name that is looked for on PATH, or nothing at all.
        return _version.__wrapped__(opa, "")


@lru_cache(maxsize=8)
def _version(opa: str, state: str) -> tuple[int, ...]:  # noqa: ARG001 - another program in its place is asked anew
    match = re.search(r"^Version: (\d+)\.(\d+)\.(\d+)", run_opa([opa, "version"]), re.MULTILINE)
    if match is None:
        raise CompileError(f"`{opa} version` does not tell a version: is this Open Policy Agent?")
    return tuple(map(int, match.groups()))


def scratch_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory for as long as a ``with`` lasts. A program may end while one of its threads still writes there."""
    return tempfile.TemporaryDirectory(prefix="team-authz-", ignore_cleanup_errors=True)


def compile_shipped(out: Path, opa: str | None = None) -> None:
    """Write the bundle of the shipped policy alone (no site, no teams, nobody in the directory) to ``out``."""
    with scratch_directory() as staged:
        for part in (_SHIPPED_ONLY, _DEFAULT_DATA):
            _copy_policy(shipped_policies() / part, Path(staged) / part)
        _build(Path(staged), out, find_opa(opa))


def compile_directory(source: Path, out: Path, opa: str | None = None, kept: Path | None = None) -> None:
    """Write the bundle of a site's policy directory, merged with the shipped policy, to ``out``.

    ``source`` holds ``airflow/roles``, ``airflow/directory``, ``airflow/site`` and ``teams/<id>``; roles default to
    the shipped ones. ``kept``: the directory in which the processes of a host keep what one of them has built.
    Raises ``CompileError`` if a file does not parse, uses a forbidden built-in, or if a team's file declares a package
    that is not the team's.
    """
    if not source.is_dir():
        raise CompileError(f"the policy directory {source} does not exist")
    own = {path.relative_to(source).as_posix(): path.read_bytes() for path in policy_files(source)}
    if any(map(is_shipped, own)) and source.resolve() != shipped_policies().resolve():
        raise CompileError(
            f"{source / _SHIPPED_ONLY} is part of the package and cannot be replaced: "
            "put the platform's own rules into airflow/site"
        )
    files, program = merged(own), _opa_program(opa)
    recipe = Recipe(
        _name(files, program),
        _SUFFIX,
        make=lambda: _built(files, opa),
        content=lambda bundle: bundle,
        use=lambda file: os.pread(file, os.fstat(file).st_size, 0),
    )
    with replacing(out) as fresh:
        fresh.write_bytes(found_or_made(recipe, kept))


def _built(files: Mapping[str, bytes], opa: str | None) -> bytes:
    """The bundle of these files."""
    with scratch_directory() as directory:
        staged, out = Path(directory) / "policy", Path(directory) / "bundle.tar.gz"
        for name, content in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _build(staged, out, find_opa(opa))
        return out.read_bytes()


def _name(files: Mapping[str, bytes], opa: str) -> str:
    """The name of a bundle, from everything that it depends on."""
    program = shutil.which(opa) or opa
    with suppress(OSError):
        program += _state(Path(program).stat())
    code = b"".join(source.read_bytes() for source in _SOURCES)
    digest = hashlib.sha256()
    parts = {"opa": program.encode(), "code": code, "rules": (shipped_policies() / "capabilities.json").read_bytes()}
    for name, content in (*parts.items(), *sorted(files.items())):
        digest.update(b"%s\0%d\0" % (os.fsencode(name), len(content)) + content)
    return digest.hexdigest()[:32]


def write_derived(staged: Path) -> None:
    """Write the files of ``derived`` for the policy in a directory, over any of that name there."""
    files = {path.relative_to(staged).as_posix(): path.read_bytes() for path in policy_files(staged)}
    for name, content in derived(files).items():
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def derived(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the shipped policy has to know of the files of a policy, as files beside them."""
    return {
        REGARDLESS_OF_ID: regardless_of_id(files),
        READ_OF_STANDING: read_of_standing(files),
        PATTERN_SHAPES: pattern_shapes(files),
    }


def compile_bundle(bundle: Path, out: Path, opa: str | None = None) -> None:
    """Write a bundle of Rego and data, which has the shipped policy in it, compiled to ``out``. Who may declare what
    is not looked at: see ``check_ownership``.
    """
    _compile(bundle.parent, bundle.name, out, "compiled", find_opa(opa))


def merged(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The shipped policy and the files that OPA would load, tests excepted; roles default to the shipped ones."""
    own = {name: content for name, content in files.items() if _is_policy(name) and not is_shipped(name)}
    parts = (
        [_SHIPPED_ONLY] if any(name.startswith(f"{_DEFAULT_DATA}/") for name in own) else [_SHIPPED_ONLY, _DEFAULT_DATA]
    )
    root = shipped_policies()
    shipped = {
        path.relative_to(root).as_posix(): path.read_bytes() for part in parts for path in policy_files(root / part)
    }
    return own | shipped


def _is_policy(name: str, tests: bool = False) -> bool:
    file = name.rpartition("/")[2]
    return file in _DATA_FILES or (file.endswith(".rego") and (tests or not file.endswith("_test.rego")))


def is_shipped(name: str) -> bool:
    """Whether a path in a policy directory is of the part that comes with the package."""
    return name.startswith(f"{_SHIPPED_ONLY}/")


def fingerprint(source: Path) -> str:
    """A text that changes with a policy file or directory; cheap enough for several calls a second."""
    if source.is_file():
        return _state(source.stat())
    seen = [f"{path}:{_state(status)}" for path, status in sorted(_policy_entries(source))]
    return hashlib.sha256("\n".join(seen).encode(errors="surrogateescape")).hexdigest()


def _state(status: os.stat_result) -> str:
    # Modification times are set back to what they were (`cp -p`, reproducible archives), those of change cannot be.
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def policy_files(root: Path, tests: bool = False) -> list[Path]:
    """Rego and data files that OPA would load from a bundle directory, sorted; those of tests only if asked for.

    ``OSError`` if a part of it cannot be read, or is a link to a directory.
    """
    return sorted(Path(path) for path, _ in _policy_entries(root, tests))


def _policy_entries(folder: str | Path, tests: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of each policy file. Strings and one system call a file: a site may have thousands of teams."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    yield from _policy_entries(entry.path, tests)
            elif _is_policy(entry.name, tests):
                yield entry.path, entry.stat()
            elif entry.is_symlink() and not entry.name.startswith(".") and entry.is_dir():
                # Following it may never end, and leaving it out, as OPA does, loses a `deny` without a word.
                raise OSError(f"{entry.path} is a link to a directory: put the files themselves there")


def _copy_policy(source: Path, target: Path) -> None:
    for path in policy_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _build(staged: Path, out: Path, opa: str) -> None:
    """Compile what lies in ``staged``; the revision is a digest of its content, so equal policy is equal revision."""
    check_ownership(staged, opa)
    write_derived(staged)
    digest = hashlib.sha256()
    for path in policy_files(staged):
        digest.update(os.fsencode(path.relative_to(staged)) + b"\0")
        digest.update(path.read_bytes() + b"\0")
    _compile(staged, ".", out, digest.hexdigest()[:12], opa)


def _compile(place: Path, bundle: str, out: Path, revision: str, opa: str) -> None:
    capabilities = shipped_policies() / "capabilities.json"
    with replacing(out) as fresh:
        run_opa(
            [
                *(opa, "build", "--target", "wasm", "--bundle", bundle),
                *("--capabilities", str(capabilities), *ENTRYPOINT_OPTIONS),
                *("--revision", revision, "--output", str(fresh.resolve())),
            ],
            cwd=place,
        )


def check_ownership(source: Path, opa: str) -> None:
    """``CompileError`` if a file of a directory or bundle declares the package of somebody else.

    Nothing but this keeps a team from deciding for others, and a site from replacing the shipped policy.
    """
    place, name = (source, ".") if source.is_dir() else (source.parent, source.name)
    namespaces = json.loads(run_opa([opa, "inspect", "--format", "json", name], cwd=place)).get("namespaces", {})
    for namespace, files in namespaces.items():
        for file in files:
            parts = Path(file.lstrip("/")).parts
            if not file.endswith(".rego"):
                continue
            declares = f"{file.lstrip('/')} declares package {namespace.removeprefix('data.')}"
            if parts[0] == "teams":
                # Of other names it cannot be told from the text of a package whose it is: a team `b.allow` would be
                # a part of team b's package.
                if len(parts) < 3 or not re.fullmatch(r"[\w-]+", parts[1]):
                    raise CompileError(f"{declares}: a team's files are in teams/<id>, and <id> is a word")
                if not any(_within(namespace, own) for own in (f"data.teams.{parts[1]}", f'data.teams["{parts[1]}"]')):
                    raise CompileError(
                        f"{declares}: files under teams/<id> may only declare that team's package, "
                        f"such as teams.{parts[1]}"
                    )
            # A package `airflow` could hold the rule `authz.guardrails.deny`.
            elif parts[:2] != ("airflow", "authz") and (
                _within(namespace, "data.airflow.authz") or namespace == "data.airflow"
            ):
                raise CompileError(f"{declares}, which the shipped policy is in: use package airflow.site")


def _within(namespace: str, package: str) -> bool:
    return namespace == package or namespace.startswith((package + ".", package + "["))


def run_opa(command: list[str], cwd: Path | None = None) -> str:
    """Output of a command; ``CompileError`` with what it printed if it fails, mistakes in policies in our words."""
    try:
        done = subprocess.run(  # noqa: S603 - the program is the administrator's choice, no shell
            command,
            cwd=cwd,
            # It ends soon: collecting garbage as often as in a server is a fifth of its time.
            env={"GOGC": "400"} | os.environ,
            capture_output=True,
            # It quotes what it was given, whatever that is.
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        told = done.stderr or done.stdout
        raise CompileError(in_one_text(told, functions()), problems(told, functions()))
    return done.stdout


@cache
def functions() -> tuple[str, ...]:
    """Names of the built-in functions that policies may call."""
    capabilities = json.loads((shipped_policies() / "capabilities.json").read_bytes())
    return tuple(str(builtin["name"]) for builtin in capabilities["builtins"])
