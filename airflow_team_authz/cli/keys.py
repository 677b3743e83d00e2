"""``team-authz keys``: signing keys and their public parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    print_line,
    read_file,
)
from airflow_team_authz.files import replace_file, write_new

if TYPE_CHECKING:
    from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys

app = typer.Typer(no_args_is_help=True, help="Make, replace and retire the keys that sign artifacts and bundles.")

KeyArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The private key. FILE.pub beside it has the public keys.")
]


@app.command()
def new(file: KeyArgument, output: OutputOption = Output.TEXT) -> None:
    """Make a key: FILE for its owner alone, and FILE.pub for the verifier. It never overwrites a file."""
    from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys

    for path in (file, _public(file)):
        if path.exists():
            raise UserError(f"{path} exists: name another file, or replace its key with `team-authz keys rotate`")
    key = SigningKey.new()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_new(file, key.pem())
    _public(file).write_bytes(key.public.pem())
    _show(TrustedKeys.of([key.public]), output, f"Keep {file} secret. Give {_public(file)} to each verifier.")


@app.command()
def rotate(file: KeyArgument, output: OutputOption = Output.TEXT) -> None:
    """Replace the key. The old public key stays in FILE.pub, so both are valid until `team-authz keys retire`."""
    from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys

    SigningKey.load(read_file(file), str(file))
    old = TrustedKeys.read(_public(file))
    if len(old) > 1:
        raise UserError(f"{_public(file)} has two keys already: run `team-authz keys retire {file}` first")
    key = SigningKey.new()
    trusted = TrustedKeys.of([key.public, *old.values()])
    # First those who check: a key that is lost before anybody has signed with it does no harm.
    replace_file(_public(file), trusted.pem(), 0o644)
    replace_file(file, key.pem(), 0o600)
    _show(
        trusted,
        output,
        f"Give {_public(file)} to each verifier, sign, then run `team-authz keys retire {file}`.",
    )


@app.command()
def retire(file: KeyArgument, output: OutputOption = Output.TEXT) -> None:
    """Remove all public keys from FILE.pub except that of FILE. Verifying programs then refuse the other keys."""
    from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys

    key = SigningKey.load(read_file(file), str(file))
    trusted = TrustedKeys.of([key.public])
    replace_file(_public(file), trusted.pem(), 0o644)
    _show(trusted, output, f"Give {_public(file)} to each verifier.")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Public keys, as in FILE.pub.")],
    opa: Annotated[bool, typer.Option("--opa", help="Print the `keys` of an OPA configuration, as YAML.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the ids of the public keys in a file."""
    from airflow_team_authz.bundles.signing import ALGORITHM, TrustedKeys

    trusted = TrustedKeys.read(file)
    if opa:
        print_line("keys:")
        for id_, key in trusted.items():
            pem = [f"      {line}" for line in key.pem().decode().splitlines()]
            for line in (f'  "{id_}":', f"    algorithm: {ALGORITHM}", "    key: |", *pem):
                print_line(line)
    else:
        _show(trusted, output)


def signing_key(file: Path | None, variable: str = "TEAM_AUTHZ_SIGNING_KEY") -> SigningKey:
    """The private key in a file, or in a variable of the environment if no file is named."""
    from airflow_team_authz.bundles.signing import SigningKey

    if file is not None:
        return SigningKey.load(read_file(file), str(file))
    if pem := os.environ.get(variable):
        return SigningKey.load(pem.encode(), variable)
    raise UserError(f"name the key by --key, or put it into {variable}: `team-authz keys new` makes one")


def _public(file: Path) -> Path:
    return file.with_name(f"{file.name}.pub")


def _show(keys: TrustedKeys, output: Output, next_: str = "") -> None:
    from airflow_team_authz.bundles.signing import ALGORITHM

    if output is Output.JSON:
        print_json([{"id": id_, "algorithm": ALGORITHM} for id_ in keys])
        return
    print_columns([[id_, ALGORITHM] for id_ in keys])
    if next_:
        print_line()
        print_line(next_)
