"""``team-authz bundle build``, ``publish``, ``aggregate`` and ``push``: from a directory to the engines' bundles."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from airflow_team_authz.cli.support.console import Output, OutputOption, UserError, print_columns, print_json
from airflow_team_authz.cli.support.server_client import ServerOption, TokenOption, ask, print_impact, released

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A policy directory, as `team-authz init` writes it.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The private key. Default: TEAM_AUTHZ_SIGNING_KEY in the environment."),
]
TeamOption = Annotated[str | None, typer.Option("--team", metavar="ID", help="The team, if there are several.")]
VersionOption = Annotated[
    int | None,
    typer.Option(
        "--version", min=1, help="The artifact's version, higher each time. Default: the number of Git commits."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write the artifact to.")]


def build(
    directory: Directory,
    out: OutOption,
    team: TeamOption = None,
    platform: Annotated[bool, typer.Option("--platform", help="Build the platform's part, not a team's.")] = False,
    key: KeyOption = None,
    version: VersionOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a package and make its signed artifact. The same files, version and key make the same bytes."""
    from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, build_artifact
    from airflow_team_authz.cli.bundle.check import show
    from airflow_team_authz.cli.keys import signing_key
    from airflow_team_authz.gate.check import check_package, read_package
    from airflow_team_authz.gate.platform_part import check_platform, read_platform

    signer = signing_key(key)
    if platform:
        owner, files = PLATFORM, read_platform(directory)
        findings = check_platform(files)
    else:
        owner = team or _only_team(directory)
        files = read_package(directory, owner)
        findings = check_package(files, owner)
    if findings:
        show(findings, output)
        raise typer.Exit(1)
    artifact = Artifact(owner, version or _commits(directory), files)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(build_artifact(artifact, signer))
    told = {
        "owner": owner,
        "version": artifact.version,
        "digest": artifact.digest,
        "key": signer.public.id,
        "file": str(out),
    }
    print_json(told) if output is Output.JSON else print_columns(
        [["wrote", f"{out}: version {artifact.version} of {owner}"]]
    )


def publish(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A file that `team-authz bundle build` made.")],
    server: ServerOption,
    token_file: TokenOption = None,
    environment: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the server's first.")] = None,
    impact: Annotated[bool, typer.Option(help="Show what it gives and takes, which the server computes.")] = True,
    output: OutputOption = Output.TEXT,
) -> None:
    """Send an artifact to a bundle server, which checks it again and puts it in force.

    Exit code 1: refused. 3: held until somebody else approves it, see `team-authz server approvals`.
    """
    from airflow_team_authz.bundles.artifact import PLATFORM
    from airflow_team_authz.opa.archive import BundleRefusedError, read_manifest, unpack

    try:
        content = artifact.read_bytes()
        metadata = read_manifest(unpack(content))["metadata"]
        owner, version = metadata["owner"], metadata["version"]
    except (OSError, KeyError, BundleRefusedError) as error:
        raise UserError(f"{artifact} is not an artifact of `team-authz bundle build`: {error}") from None
    path = "platform/package" if owner == PLATFORM else f"teams/{owner}/package"
    chosen = ({"environment": environment} if environment else {}) | ({"impact": "true"} if impact else {})
    done = ask("PUT", server, path, token_file, output, params=chosen, content=content)
    answer = released(done, server, owner, output, version)
    if output is Output.JSON:
        print_json(answer)
        return
    print_columns([["published", f"version {version} of {owner}, serial {answer['serial']}"]])
    print_impact(answer)


def aggregate(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The directory for the bundles and the last good artifacts.")
    ],
    platform: Annotated[Path, typer.Option(metavar="DIR", help="The platform's policy directory.")],
    artifacts: Annotated[Path, typer.Option(metavar="DIR", help="The teams' artifacts: TEAM.tar.gz.")],
    trusted: Annotated[Path, typer.Option(metavar="DIR", help="The teams' public keys: TEAM.pub.")],
    environment: Annotated[str, typer.Option(metavar="NAME", help="The name of the bundles.")] = "production",
    key: KeyOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make the bundles that engines load, from the platform's policy and all teams' artifacts.

    If the command refuses a team's artifact, the team keeps its last good one, and the other teams are not delayed.
    Exit code 1: it refused some.
    """
    from airflow_team_authz.bundles.offline import OfflineError, Site
    from airflow_team_authz.cli.keys import signing_key
    from airflow_team_authz.gate.platform_part import read_platform

    for directory in (platform, artifacts, trusted):
        if not directory.is_dir():
            raise UserError(f"there is no directory {directory}")
    try:
        outcomes = Site(artifacts, trusted, out).aggregate(environment, read_platform(platform), signing_key(key))
    except OfflineError as error:
        raise UserError(f"the policy in {platform} cannot be published: {error}") from None
    if output is Output.JSON:
        print_json([outcome._asdict() for outcome in outcomes])
    elif outcomes:
        print_columns([[did, team, f"version {version}", detail] for did, team, version, detail in outcomes])
    if any(outcome.did == "refused" for outcome in outcomes):
        raise typer.Exit(1)


def push(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory that `team-authz bundle aggregate` made.")
    ],
    url: Annotated[str, typer.Argument(metavar="URL", help="s3://bucket/folder, gs://, abfs://, file:// and so on.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Copy the bundles to an object store, with credentials from the environment."""
    from airflow_team_authz.bundles.push import PushError
    from airflow_team_authz.bundles.push import push as push_files

    files = sorted(directory.glob("*.tar.gz"))
    if not files:
        raise UserError(f"there are no bundles in {directory}: `team-authz bundle aggregate` makes them")
    try:
        written = push_files(files, url)
    except PushError as error:
        raise UserError(str(error)) from None
    print_json(written) if output is Output.JSON else print_columns([["wrote", target] for target in written])


def _only_team(directory: Path) -> str:
    teams = sorted(path.name for path in (directory / "teams").glob("*") if path.is_dir())
    if len(teams) != 1:
        found = f"has the teams {', '.join(teams)}" if teams else "has no directory teams/<id>"
        raise UserError(f"{directory} {found}: name one by --team, or the platform's part by --platform")
    return teams[0]


def _commits(directory: Path) -> int:
    """How many commits there are: it rises with every change that is merged, and is the same on every machine."""
    command = ["git", "rev-list", "--count", "HEAD"]
    try:
        counted = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)  # noqa: S603
        return int(counted.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        raise UserError(f"{directory} has no Git history to number versions by: name one by --version") from None
