"""Text from outside, such as a name in a request or a reason of a team's rule, for lines of logs and terminals.

Every character that is no letter, sign or space is written as Python writes it: line breaks, terminal escapes, what
turns the direction of writing. So no text can look like a line that nobody has written.
"""

from __future__ import annotations

import logging
import traceback


def escaped(text: str, keep: str = "") -> str:
    r"""The text on one line: ``\n`` for a line break, ``\u202e`` for what turns the direction of writing.

    Characters in ``keep`` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _shown(letter) for letter in text)


def one_line(text: str) -> str:
    """The same for people who read sentences: line breaks and runs of spaces become one space."""
    return escaped(" ".join(text.split()))


def logger(name: str) -> logging.Logger:
    """The logger of this name, which escapes each message that it is given. All loggers of this package come from here.

    The lines of a traceback are indented by a bar, since the message of an exception may come from outside too.
    """
    found = logging.getLogger(name)  # noqa: TID251 - this is what others use instead
    if _escape not in found.filters:
        found.addFilter(_escape)
    return found


def _escape(record: logging.LogRecord) -> bool:
    lines = [record.getMessage()]
    if isinstance(record.exc_info, tuple):
        lines += [f"  | {line}" for line in "".join(traceback.format_exception(*record.exc_info)).split("\n") if line]
    record.msg, record.args, record.exc_info, record.exc_text = "\n".join(map(escaped, lines)), None, None, None
    return True


def _shown(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
