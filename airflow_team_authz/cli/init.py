"""``team-authz init``: a policy directory to start from, the platform's or a team's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    print_line,
)
from airflow_team_authz.cli.support.vocabulary import require_team_id

# Written by us and by nobody else: the shipped policy, its schemas and capabilities.
OURS = PurePosixPath(".team-authz")
_ROLES = PurePosixPath("airflow/roles")
_TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
_SCHEMA = ".jsonschema"
_PLACEHOLDER = "example"
_KEYWORDS = {
    "as", "contains", "default", "else", "every", "false", "if", "import", "in", "not", "null", "package", "some",
    "true", "with",
}  # fmt: skip


class Done(NamedTuple):
    """The result for a file: ``wrote`` or ``kept`` as it was. By an update also ``renewed``, ``removed`` or ``edited``.

    ``edited`` is kept as well, because a person has changed it.
    """

    did: str
    file: str


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write, made if necessary.")],
    team: Annotated[
        str | None, typer.Option(metavar="ID", help="Write the rules of this team instead of the platform's.")
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help=f"Update {OURS} to the installed package, and also the files for checks, CI and editors that nobody "
            "has edited.",
        ),
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    r"""Write a policy directory with rules, tests, CI and editor files. Only --update changes what exists.

    Without --team the directory is the platform's: set \[team_authz] policy to it. With --team it is a team's own
    repository. If DIR is the platform's directory, --team adds the team to it.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: name a directory")
    try:
        done = list(_update(directory) if update else _write(directory, team))
    except OSError as error:
        place = error.filename or directory
        raise UserError(
            f"{place} cannot be written ({error.strerror}): check its permissions and its present content"
        ) from None
    if output is Output.JSON:
        print_json([entry._asdict() for entry in done])
    else:
        print_columns([*done])
        if any(entry.did == "wrote" for entry in done):
            print_line()
            print_line(f"Next: see {directory / 'README.md'}, and run {directory / 'check.sh'}")
        if any(entry.did == "edited" for entry in done):
            print_line()
            print_line(
                "Files marked `edited` have changes of yours, so they stay as they are. Compare them with those that "
                "`team-authz init` writes into a new directory."
            )


def _write(directory: Path, team: str | None) -> Iterator[Done]:
    require_team_id("--team", team)
    if team is None and _is_teams(directory):
        raise UserError(f"{directory} is a team's repository: name another directory for the platform's policy")
    is_teams = team is not None and not (directory / _ROLES).exists()
    files = template("shared") | _ours(is_teams)
    files |= platform_files() if team is None else _team(team)
    if is_teams:
        # Not for the platform's directory: an OPA that is started on it would load them.
        files |= template("rules")
    for name, content in sorted(files.items()):
        yield Done("wrote" if _write_new(directory / name, content) else "kept", str(name))


def _update(directory: Path) -> Iterator[Done]:
    if not (directory / OURS).is_dir():
        raise UserError(f"{directory / OURS} does not exist: run team-authz init without --update")
    files = _ours(_is_teams(directory))
    for name, content in sorted(files.items()):
        if _write_new(directory / name, content):
            yield Done("wrote", str(name))
        else:
            yield Done(_renew(directory / name, content), str(name))
    # Rules that the package no longer has would otherwise go on deciding in tests.
    for path in sorted((directory / OURS).rglob("*.*")):
        name = PurePosixPath(path.relative_to(directory).as_posix())
        if path.suffix in {".rego", ".json", _SCHEMA} and path.is_file() and name not in files:
            path.unlink()
            yield Done("removed", str(name))
    yield from _update_tools(directory)


def _update_tools(directory: Path) -> Iterator[Done]:
    """Files for checks, CI and editors: what nobody has edited is renewed, and what somebody has deleted stays away."""
    for name, content in sorted(tool_files().items()):
        path = directory / name
        if not path.is_file():
            continue
        found = path.read_bytes()
        if found != content and hashlib.sha256(found).hexdigest() not in written_before()[str(name)]:
            yield Done("edited", str(name))
        else:
            yield Done(_renew(path, content), str(name))


def _renew(path: Path, content: bytes) -> str:
    if path.read_bytes() == content:
        return "kept"
    path.write_bytes(content)
    return "renewed"


def tool_files() -> Files:
    """Files for checks, CI and editors, whose text is the same for every team."""
    files = template("shared") | template("rules")
    return {name: content for name, content in files.items() if name.parts[0] != str(OURS)}


def written_before() -> dict[str, list[str]]:
    """SHA-256 of every text that ``init`` has ever written to a file of ``tool_files``, the present one last."""
    found: dict[str, list[str]] = json.loads((_TEMPLATES / "written.json").read_text(encoding="utf-8"))
    return found


def _is_teams(directory: Path) -> bool:
    """Whether the directory is a team's repository, which is to say, has no role table of its own."""
    return (directory / OURS / _ROLES).exists()


def _write_new(path: Path, content: bytes) -> bool:
    """Write a file, ``False`` if something is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    if path.suffix == ".sh":
        path.chmod(path.stat().st_mode | 0o111)
    return True


Files = dict[PurePosixPath, bytes]


def template(kind: str) -> Files:
    """Files of a template; ``dot-`` stands for the dot of hidden ones, which packaging tools like to leave out."""
    root = _TEMPLATES / kind
    return {
        PurePosixPath(re.sub(r"(^|/)dot-", r"\1.", path.relative_to(root).as_posix())): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def platform_files() -> Files:
    """Files of a platform's directory, without those that platforms and teams share."""
    from airflow_team_authz.opa.compile import shipped_policies

    roles = _ROLES / "data.json"
    return template("platform") | {roles: (shipped_policies() / roles).read_bytes()}


def _team(team: str) -> Files:
    return {_team_file(name, team): for_team(text.decode(), team).encode() for name, text in template("team").items()}


def _team_file(name: PurePosixPath, team: str) -> PurePosixPath:
    # A file x_test.rego is a test to everybody, also if the team is called so.
    stem = "policy" if team.endswith("_test") else team
    return PurePosixPath(
        *(team if part == _PLACEHOLDER else re.sub(rf"^{_PLACEHOLDER}(?=[._])", stem, part) for part in name.parts)
    )


def for_team(text: str, team: str) -> str:
    """The text of a template, for a team."""

    def replace(found: re.Match[str]) -> str:
        return reference(team + (found[1] or "")) if "." in found[0] else team

    return re.sub(rf"\bteams\.{_PLACEHOLDER}(_test)?\b|\b{_PLACEHOLDER}\b", replace, text)


def reference(team: str) -> str:
    """How Rego refers to a team's package: ``teams.alpha``, but ``teams["my-team"]``."""
    if re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", team) and team not in _KEYWORDS:
        return f"teams.{team}"
    return f'teams["{team}"]'


def _ours(for_a_team: bool) -> Files:
    """The shipped policy, schemas and capabilities, as they go into ``.team-authz``."""
    from airflow_team_authz.opa.compile import shipped_policies

    shipped = shipped_policies()
    sources = [shipped / "capabilities.json", *(shipped / "schemas").rglob("*.json")]
    sources += [path for path in (shipped / "airflow" / "authz").rglob("*.rego") if not path.stem.endswith("_test")]
    files = {name: content for name, content in template("shared").items() if name.parts[0] == str(OURS)}
    files |= {_place(path.relative_to(shipped)): path.read_bytes() for path in sources}
    if for_a_team:
        files[OURS / _ROLES / "roles.rego"] = _roles_as_rego(json.loads((shipped / _ROLES / "data.json").read_text()))
    return files


def _place(path: Path) -> PurePosixPath:
    """Where a file of the shipped policy goes. A schema is renamed: ``opa test`` takes each `.json` for data."""
    return OURS / (path.with_suffix(_SCHEMA) if path.parts[0] == "schemas" else path).as_posix()


def _roles_as_rego(roles: dict[str, object]) -> bytes:
    """The role table as rules: OPA finds data by its path, which begins with .team-authz here, but rules by package."""
    rules = "".join(f"\n{name} := {json.dumps(value, indent=2)}\n" for name, value in roles.items())
    return f"# The packaged role table.\npackage airflow.roles\n{rules}".encode()
