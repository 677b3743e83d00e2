"""``team-authz review``: signatures of access reviews, and the differences of two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.support.changes import FailOn
from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    as_code,
    complain,
    print_columns,
    print_json,
    print_line,
    read_file,
)
from airflow_team_authz.cli.support.spreadsheet import csv_line

if TYPE_CHECKING:
    from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
    from airflow_team_authz.review.document import Difference, Permission, Review

app = typer.Typer(no_args_is_help=True, help="Verify and compare access reviews of `team-authz matrix`.")
FAILED = 1
# A signature is of one thing only: no team can be called so, and no bundle.
_SCOPE, _NAME = "@review", "the review"
# More lines than these nobody reads; JSON and CSV have all.
_MOST_LINES = 200

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A file that `team-authz matrix --out` has written.")
]


class Form(StrEnum):
    """The form of a difference."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    CSV = "csv"


@app.command()
def verify(
    file: FileArgument,
    keys: Annotated[Path, typer.Option(metavar="FILE", help="The public keys of the signers, as in KEY.pub.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Verify the signature of an access review. FILE.sig beside the file has the signature.

    Exit code 0: the file is as one of the keys has signed it. 1: it is not. 2: a file cannot be read.
    """
    from airflow_team_authz.bundles.signing import TrustedKeys
    from airflow_team_authz.opa.archive import BundleRefusedError

    trusted, content = TrustedKeys.read(keys), read_file(file)
    try:
        key_id, issued_at = _verified(file, content, trusted)
    except BundleRefusedError as error:
        if output is Output.JSON:
            print_json({"file": str(file), "valid": False, "error": str(error)})
        else:
            print_columns([["refused", f"{file}: {error}"]])
        raise typer.Exit(FAILED) from None
    at = "" if issued_at is None else f"{datetime.fromtimestamp(issued_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if output is Output.JSON:
        print_json({"file": str(file), "valid": True, "key": key_id, "signed_at": at})
    else:
        print_columns([["ok", f"{file}: signed by the key {key_id} at {at or 'an unknown time'}"]])


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The older review: `team-authz matrix --output json`.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The newer one, made with the same options.")],
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Verify both signatures first, with these public keys.")
    ] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with 1 if somebody has gained rights, lost rights, or either.")
    ] = None,
    output: Annotated[Form, typer.Option("--output", "-o", help="The form; csv is a permission a line.")] = Form.TEXT,
) -> None:
    """Show the permissions that were gained and lost between two access reviews.

    Exit code 0: shown. 1: there are differences that --fail-on names. 2: a file is not a review, or not a signed one.
    """
    from airflow_team_authz.review.document import NotComparableError, difference

    before, after = _review(old, keys), _review(new, keys)
    try:
        found = difference(before, after)
    except NotComparableError as error:
        raise UserError(str(error)) from None
    if before.head.made_at > after.head.made_at:
        complain(f"{old} is newer than {new}: gained and lost are those from the newer to the older one")
    _PRINT[output](found, before, after)
    if fail_on is not None and found.has(fail_on):
        raise typer.Exit(FAILED)


def signed(file: Path, content: bytes, key: SigningKey | None) -> None:
    """Write a file, and its signature beside it if there is a key. An older signature would be wrong, so it goes."""
    from airflow_team_authz.files import replace_file

    signature = _signature_of(file)
    try:
        signature.unlink(missing_ok=True)
        replace_file(file, content)
        if key is not None:
            from airflow_team_authz.bundles.signing import SIGNATURES

            replace_file(signature, key.sign({_NAME: content}, _SCOPE, int(time.time()))[SIGNATURES])
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


def _signature_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sig")


def _verified(file: Path, content: bytes, trusted: TrustedKeys) -> tuple[str, int | None]:
    from airflow_team_authz.bundles.signing import SIGNATURES
    from airflow_team_authz.opa.archive import BundleRefusedError

    signature = _signature_of(file)
    if not signature.exists():
        raise BundleRefusedError(f"it is not signed: there is no {signature}")
    return trusted.verify({_NAME: content, SIGNATURES: read_file(signature)}, _SCOPE)


def _review(file: Path, keys: Path | None) -> Review:
    from airflow_team_authz.review.document import UnreadableReviewError, read

    content = read_file(file)
    if keys is not None:
        from airflow_team_authz.bundles.signing import TrustedKeys
        from airflow_team_authz.opa.archive import BundleRefusedError

        try:
            _verified(file, content, TrustedKeys.read(keys))
        except BundleRefusedError as error:
            raise UserError(f"{file}: {error}") from None
    try:
        return read(content)
    except UnreadableReviewError as error:
        raise UserError(f"{file}: {error}") from None


# The forms of a difference


def _lines(permissions: tuple[Permission, ...], verb: str) -> Iterator[str]:
    from airflow_team_authz.review.document import told

    lines = list(told(permissions, verb))
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES:,} lines more: --output json has them"


def _summary(found: Difference, old: Review, new: Review) -> Iterator[str]:
    told = f"{len(found.gained):,} permissions gained, {len(found.lost):,} lost"
    yield f"{told}: from revision {old.head.revision} ({old.head.made_at}) to {new.head.revision} ({new.head.made_at})."
    yield from (f"Not covered: {gap}." for gap in dict.fromkeys((*old.head.not_covered, *new.head.not_covered)))


def _print_text(found: Difference, old: Review, new: Review) -> None:
    for line in (*_lines(found.gained, "gain"), *_lines(found.lost, "lose")):
        print_line(line)
    print_line()
    for line in _summary(found, old, new):
        print_line(line)


def _print_markdown(found: Difference, old: Review, new: Review) -> None:
    for heading, lines in (("Gained", _lines(found.gained, "gain")), ("Lost", _lines(found.lost, "lose"))):
        if shown := [f"- {as_code(line)}" for line in lines]:
            for line in (f"## {heading}", "", *shown, ""):
                print_line(line)
    for line in _summary(found, old, new):
        print_line(f"- {as_code(line)}")


def _print_json(found: Difference, old: Review, new: Review) -> None:
    import msgspec

    def plain(value: Any) -> Any:
        return msgspec.to_builtins(value)

    print_json(
        {"old": plain(old.head), "new": plain(new.head)} | {"gained": plain(found.gained), "lost": plain(found.lost)}
    )


def _print_csv(found: Difference, old: Review, new: Review) -> None:
    from airflow_team_authz.review.document import COLUMNS

    print_line(csv_line(("change", *COLUMNS)))
    about = dict.fromkeys(COLUMNS, "")
    for text in _summary(found, old, new):
        print_line(csv_line(("review", *(about | {"reason": text}).values())))
    for change, permissions in (("gained", found.gained), ("lost", found.lost)):
        for one in permissions:
            print_line(csv_line((change, *(str(getattr(one, name) or "") for name in COLUMNS))))


_PRINT = {Form.TEXT: _print_text, Form.JSON: _print_json, Form.MARKDOWN: _print_markdown, Form.CSV: _print_csv}
