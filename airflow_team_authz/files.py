"""Files that only one user can read, such as tokens and the state of this package, and files that are never half."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that is not there yet; ``FileExistsError``."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
        opened.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a new content to, which takes the place of ``path`` at the end, or is removed after an error.

    A reader finds the file whole at all times, with the old content or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename is atomic; of this thread, as processes of two containers have the same ids.
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    fresh.unlink(missing_ok=True)
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write all of it or nothing, see ``replacing``. ``mode`` is of the new file, as far as the umask allows."""
    with replacing(path) as fresh:
        write_new(fresh, content, mode)
