"""Requests of commands to a bundle server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from airflow_team_authz.cli.support.console import Output, UserError, print_columns, print_json
from airflow_team_authz.files import UnfitTokenError, check_token, read_token

ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="TEAM_AUTHZ_SERVER",
        metavar="URL",
        help="The address of the bundle server, such as https://bundles.example.",
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="File with the token. Default: the environment's TEAM_AUTHZ_TOKEN."
    ),
]


def ask(method: str, server: str, path: str, token_file: Path | None, output: Output, **more: Any) -> Any:
    """The answer: what its JSON says, or its text. Exit code 1 if the server refuses, and why is printed."""
    import httpx

    from airflow_team_authz.cli.bundle.check import show
    from airflow_team_authz.gate.findings import Finding

    if "@" in server:
        raise UserError("--server: messages show this address, so it must not have a user or a password")
    url = f"{server.rstrip('/')}/{path}"
    headers = {"Authorization": f"Bearer {_token(token_file)}"}
    try:
        answer = httpx.request(method, url, headers=headers, timeout=120, **more)
        is_text = answer.headers.get("Content-Type", "").startswith("text/x-diff")
        told = answer.text if is_text else answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"the server at {url} does not answer: {error}") from None
    except ValueError:
        raise _odd(url, answer.status_code) from None
    if answer.status_code == httpx.codes.OK:
        return told
    problem = told if isinstance(told, dict) else {}
    try:
        # A newer server may tell more of each.
        findings = [
            Finding(str(row["rule"]), str(row["file"]), int(row["line"]), str(row["message"]), str(row["help"]))
            for row in problem.get("findings", [])
        ]
    except (TypeError, KeyError, ValueError):
        raise _odd(url, answer.status_code) from None
    if findings:
        show(findings, output)
        raise typer.Exit(1)
    why = str(problem.get("error") or problem.get("detail") or "no reason given")
    if answer.status_code in {409, 422, 423}:
        print_json(problem) if output is Output.JSON else print_columns([["refused", why]])
        raise typer.Exit(1)
    raise UserError(f"{server} answers {answer.status_code}: {why}")


def released(answer: Any, server: str, owner: str, version: int | None = None) -> dict[str, Any]:
    """The answer, if it tells that this is in force now: whatever is in between may say 200 as well."""
    told = answer if isinstance(answer, dict) else {}
    if not told.keys() >= {"owner", "version", "environment", "serial"} or told["owner"] != owner:
        raise _odd(server, 200)
    if version is not None and told["version"] != version:
        raise _odd(server, 200)
    return told


def _odd(url: str, status: int) -> UserError:
    return UserError(f"{url} answers {status}, but not as a bundle server: check --server")


def _token(file: Path | None) -> str:
    given = os.environb.get(b"TEAM_AUTHZ_TOKEN")
    if not (file or given):
        raise UserError("name the file with the token by --token-file, or put the token into TEAM_AUTHZ_TOKEN")
    try:
        return read_token(file) if file else check_token(given or b"", "TEAM_AUTHZ_TOKEN")
    except UnfitTokenError as error:
        raise UserError(str(error)) from None
