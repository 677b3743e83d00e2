"""A cache of one policy's answers, for questions that are exactly the same."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

MOST_BYTES = 8 << 20
# Of these, one subject's answers take at most this share, so that nobody pushes out everybody else's.
_SHARE_OF_ONE = 8
# What Python needs for an answer, beside the answer and the text of its key: measured, and rounded up.
_ENTRY_BYTES = 900
# A longer question is kept as its hash.
_LONGEST_TEXT = 512

# The entrypoint, the question and the digest of resources that the question leaves out. A plain tuple: named ones take
# longer to make than all the rest of a look-up.
Key = tuple[str, bytes, bytes] | tuple[str, bytes, bytes, str]
Who = tuple[str, str]
_EVERYBODY: Who = ("", "")


def key(entrypoint: str, question: bytes, resources: bytes = b"") -> Key:
    """The cache key of a question. ``resources``: their digest, if they are not in the question."""
    if len(question) <= _LONGEST_TEXT:
        return entrypoint, question, resources
    return entrypoint, hashlib.blake2b(question, digest_size=32).digest(), resources, "hash"


class _Entry:
    """An answer, and whether anybody has asked for it since it was looked at last."""

    __slots__ = ("again", "answer", "size", "who")

    def __init__(self, answer: Any, size: int, who: Who) -> None:
        self.answer = answer
        self.size = size
        self.who = who
        self.again = False


class _Shelf:
    """Entries in the order of their removal, the bytes that they take, and whose they are."""

    def __init__(self, who: Who = _EVERYBODY) -> None:
        self.who = who
        self.entries: OrderedDict[Key, _Entry] = OrderedDict()
        self.bytes = 0

    def put(self, key: Key, entry: _Entry) -> None:
        self.entries[key] = entry
        self.bytes += entry.size

    def remove(self, key: Key) -> _Entry:
        entry = self.entries.pop(key)
        self.bytes -= entry.size
        return entry

    def next_to_go(self) -> Key:
        """The oldest that nobody has asked for again; who was asked for gets another round."""
        while True:
            key, entry = next(iter(self.entries.items()))
            if not entry.again:
                return key
            entry.again = False
            self.entries.move_to_end(key)


class Kept:
    """Answers of a policy, up to a size. Thread-safe; looking something up takes no lock.

    Belongs to one policy and ends with it: then it is exact, since the policy in this process has no clock, no chance
    and no network, so that each question has one answer. ``revision`` is the policy's. ``is_alike`` tells whether that
    policy decides an owner's resources regardless of their ids.
    An answer is kept as it is given, so it must be one that nobody can change.
    """

    def __init__(
        self, revision: str, most_bytes: int = MOST_BYTES, is_alike: Callable[[str | None], bool] = lambda _: False
    ) -> None:
        self.revision = revision
        self.is_alike = is_alike
        self._most = most_bytes
        self._all = _Shelf()
        self._of: dict[Who, _Shelf] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> Any:
        """The answer, if it is there still; else ``None``."""
        entry = self._all.entries.get(key)
        if entry is None:
            return None
        entry.again = True
        return entry.answer

    def keep(self, key: Key, answer: Any, size: int, who: Who) -> None:
        """Keep an answer of about ``size`` bytes to what somebody has asked. Nothing else is to be kept: an engine's
        error may be over when the question comes again.
        """
        size += len(key[1]) + _ENTRY_BYTES
        share = self._most // _SHARE_OF_ONE
        if size > share:
            return
        with self._lock:
            if key in self._all.entries:
                return
            own = self._of.setdefault(who, _Shelf(who))
            # All answers of a subject share one tuple.
            entry = _Entry(answer, size, own.who)
            self._all.put(key, entry)
            own.put(key, entry)
            while own.bytes > share:
                self._drop(own.next_to_go())
            while self._all.bytes > self._most:
                self._drop(self._all.next_to_go())

    def _drop(self, key: Key) -> None:
        who = self._all.remove(key).who
        self._of[who].remove(key)
        if not self._of[who].entries:
            del self._of[who]
