"""Files that only one user can read: tokens, and the state of this package."""

from __future__ import annotations

import re
from pathlib import Path


class TokenUnfit(Exception):
    """A file or a variable does not hold the token that it should; the message names it, and never shows the token."""


def read_token(file: Path) -> str:
    """The token in a file."""
    try:
        return check_token(file.read_bytes(), str(file))
    except OSError as error:
        raise TokenUnfit(f"{file} cannot be read: {error.strerror}") from None


def check_token(content: bytes, name: str) -> str:
    """The token, if there is nothing else: a header would carry the rest as well, or be shown in an error."""
    token = content.strip()
    if re.fullmatch(rb"[!-~]+", token) is None:
        raise TokenUnfit(f"{name} holds no token: one word of plain ASCII")
    return token.decode()


def make_private(directory: Path) -> None:
    """Make a directory and those that it is in, as far as they are missing, for this user alone."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
