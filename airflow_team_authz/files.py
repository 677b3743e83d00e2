"""Files that only one user can read, such as tokens and the state of this package, and files that are never half."""

from __future__ import annotations

import os
import re
from pathlib import Path


class UnfitTokenError(Exception):
    """A file or a variable does not hold the token that it should; the message names it, and never shows the token."""


def read_token(file: Path) -> str:
    """The token in a file."""
    try:
        return check_token(file.read_bytes(), str(file))
    except OSError as error:
        raise UnfitTokenError(f"{file} cannot be read: {error.strerror}") from None


def check_token(content: bytes, name: str) -> str:
    """The token, if there is nothing else: a header would carry the rest as well, or be shown in an error."""
    token = content.strip()
    if re.fullmatch(rb"[!-~]+", token) is None:
        raise UnfitTokenError(f"{name} holds no token: one word of plain ASCII")
    return token.decode()


def make_private(directory: Path) -> None:
    """Make a directory and those that it is in, as far as they are missing, for this user alone."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write all of it or nothing: whoever reads the file meanwhile finds it whole, as it was or as it is now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
