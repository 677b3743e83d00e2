"""Requests of commands to a bundle server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from airflow_team_authz.cli.support.console import Output, UserError, print_columns, print_json, print_line
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


# The exit code of what waits for an approval.
HELD = 3
_HELD = {"id", "state", "version", "environment", "expires_at", "waits_for", "approvers"}


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
    problem = told if isinstance(told, dict) else {}
    is_held = answer.status_code == httpx.codes.ACCEPTED and problem.keys() >= _HELD
    if answer.status_code == httpx.codes.OK or is_held:
        return told
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


def released(answer: Any, server: str, owner: str, output: Output, version: int | None = None) -> dict[str, Any]:
    """The answer, if it tells that this is in force now: whatever is in between may say 200 as well.

    Exit code 3 if it waits for an approval, and what it waits for is printed.
    """
    told = answer if isinstance(answer, dict) else {}
    if told.get("owner") != owner or (version is not None and told.get("version") != version):
        raise _odd(server, 200)
    if told.keys() >= _HELD and told["state"] == "waiting":
        print_json(told) if output is Output.JSON else print_held(told)
        raise typer.Exit(HELD)
    if not told.keys() >= {"version", "environment", "serial"}:
        raise _odd(server, 200)
    return told


def print_held(held: dict[str, Any]) -> None:
    """What waits for an approval, why, and who may approve it."""
    what = f"{held.get('action')} of version {held['version']} of {held['owner']} in {held['environment']}"
    print_line(f": {what}, by {held.get('actor')}, until {held['expires_at']}", heading=f"{held['state']} {held['id']}")
    for why in held["waits_for"]:
        print_line(f"It waits for an approval: {why}")
    if held["state"] == "waiting":
        print_line(f"It can be approved by {held['approvers']}.")
    elif held.get("decided_by"):
        print_line(f"By {held['decided_by']}: {held.get('reason') or held['state']}")
    print_impact(held)


def print_impact(answer: dict[str, Any]) -> None:
    """The impact in an answer, in words, if there is one. What waits for an approval is marked."""
    impact = answer.get("impact") or {}
    for line in impact.get("lines", []):
        print_line(f"{'* ' if line['approval'] else '  '}{line['told']}")
    if impact.get("unknown"):
        print_line(f"Nobody knows what it gives and takes: {impact['unknown']}")
    elif impact:
        print_line(f"{impact['different']:,} of {impact['questions']:,} questions have other answers.")


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
