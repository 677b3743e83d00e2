"""Shared by all sources: the files that an import writes, and the list of untranslated rights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from airflow_team_authz.cli.init import OURS, Done, Files, for_team, platform_files, template
from airflow_team_authz.cli.support.console import Output, UserError, print_columns, print_json, print_line
from airflow_team_authz.escaping import one_line
from airflow_team_authz.files import replace_file

INCOMPLETE = 1

ROLES = PurePosixPath("airflow/roles/data.json")
DIRECTORY = PurePosixPath("airflow/directory/data.json")
SITE_DATA = PurePosixPath("airflow/site/imported/data.json")
# Where rules and data of an import are, and nobody else's.
_PLACES = ("airflow/site/imported.rego", "airflow/site/imported/*", "teams/*/imported.rego", "teams/*/imported/*")

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The platform's policy directory, as team-authz init writes it.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace files that somebody has changed, and those of an earlier import.")
]


@dataclass(frozen=True)
class Untranslated:
    """Something that is not decided as before; ``why`` says what is different, ``help`` what to do about it."""

    what: str
    why: str
    help: str


@dataclass(frozen=True)
class Translation:
    """A policy that decides as the source does, as files of a policy directory, and where it does not.

    ``advice`` is what the administrator may want to do next, in a sentence.
    """

    files: Files
    untranslated: Sequence[Untranslated] = ()
    advice: str = ""


def data_file(value: Mapping[str, Any]) -> bytes:
    """A JSON document for people who change it: an object has a line for each of its parts, a list has one line."""
    return (_document(value, "") + "\n").encode()


def rules(source: str) -> Files:
    """Rules of a source for everyone: the template of its name, without what it has for teams."""
    return {name: content for name, content in template(source).items() if name.parts[0] != "teams"}


def team_files(source: str, team: str, data: Mapping[str, Any]) -> Files:
    """Rules of a source for a team's resources, with the data that they read."""
    (text,) = (content for name, content in template(source).items() if name.parts[0] == "teams")
    place = PurePosixPath("teams", team)
    return {
        place / "imported.rego": for_team(text.decode(), team).encode(),
        place / "imported" / "data.json": data_file(data),
    }


def check_directory(directory: Path) -> None:
    """``UserError`` unless it is the platform's policy directory."""
    if (directory / OURS / ROLES.parent).exists():
        raise UserError(f"{directory} is a team's repository: name the platform's policy directory")
    if not (directory / ROLES.parent).is_dir():
        raise UserError(f"{directory} is not a policy directory: run team-authz init {directory} first")


def finish(directory: Path, translation: Translation, force: bool, output: Output) -> None:
    """Write the files and tell what was written and what could not be translated; exit code 1 if there is any.

    ``UserError``, and nothing is written, if that would replace what somebody has changed.
    """
    try:
        done = list(_write(directory, translation.files, force))
    except OSError as error:
        place = error.filename or directory
        raise UserError(
            f"{place} cannot be written ({error.strerror}): check its permissions and its present content"
        ) from None
    if output is Output.JSON:
        left_out = [asdict(entry) for entry in translation.untranslated]
        print_json({"files": [entry._asdict() for entry in done], "untranslated": left_out})
    else:
        print_columns([*done])
        _tell(translation)
    if translation.untranslated:
        raise typer.Exit(INCOMPLETE)


def _write(directory: Path, files: Files, force: bool) -> Iterator[Done]:
    left = [name for name in _imported(directory) if name not in files]
    plan = {name: _what_to_do(directory / name, name, content) for name, content in files.items()}
    in_the_way = sorted(map(str, [*left, *(name for name, what in plan.items() if what == "in the way")]))
    if in_the_way and not force:
        raise UserError(f"these files exist, and only --force replaces them: {', '.join(in_the_way)}")
    for name in left:
        (directory / name).unlink()
        yield Done("removed", str(name))
    for name, what in sorted(plan.items()):
        if what != "kept":
            # An Airflow that watches the directory must not compile half a file.
            replace_file(directory / name, files[name])
        yield Done("replaced" if what == "in the way" else what, str(name))


def _imported(directory: Path) -> list[PurePosixPath]:
    found = (path for place in _PLACES for path in directory.glob(place))
    return sorted(PurePosixPath(path.relative_to(directory).as_posix()) for path in found)


def _what_to_do(path: Path, name: PurePosixPath, content: bytes) -> str:
    if not os.path.lexists(path):
        return "wrote"
    there = path.read_bytes() if path.exists() else b""
    if there == content:
        return "kept"
    # Nobody has changed what `team-authz init` wrote.
    return "replaced" if there == platform_files().get(name) else "in the way"


def _tell(translation: Translation) -> None:
    if translation.untranslated:
        print_line()
        print_line(f"Not translated ({len(translation.untranslated)}):")
        for entry in translation.untranslated:
            print_line(f"- {one_line(entry.what)}: {one_line(entry.why)}; {one_line(entry.help)}")
    if translation.advice:
        print_line()
        for line in translation.advice.split("\n"):
            print_line(line)


def _document(value: Any, indent: str) -> str:
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = f"{indent}  "
    parts = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_document(part, inner)}" for key, part in value.items()]
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
