"""A cache of one policy's answers, for questions that are exactly the same."""

from __future__ import annotations

import hashlib
import threading

import msgspec

MOST_BYTES = 16 << 20
# What Python needs for an answer, beside its text.
_ENTRY_BYTES = 500

Key = tuple[str, bytes]


class Kept:
    """What a policy has answered, as long as that fits; what was not asked for longest goes first. Thread-safe.

    Belongs to one policy and ends with it: then it is exact, since the policy in this process has no clock, no chance
    and no network, so that each question has one answer.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._answers: dict[Key, msgspec.Raw] = {}
        self._lock = threading.Lock()

    @staticmethod
    def key(entrypoint: str, question: bytes) -> Key:
        """The cache key of a question. It is not the text, which is long for a list, and contains data of people."""
        return entrypoint, hashlib.blake2b(question, digest_size=32).digest()

    def get(self, key: Key) -> msgspec.Raw | None:
        """The answer, if it is there still."""
        with self._lock:
            answer = self._answers.pop(key, None)
            if answer is not None:
                self._answers[key] = answer
            return answer

    def keep(self, key: Key, answer: msgspec.Raw) -> None:
        """Keep an answer. Nothing else is to be kept: an engine's error may be over when the question comes again."""
        with self._lock:
            if key not in self._answers:
                self._answers[key] = answer
                self._bytes += _size(answer)
            while self._bytes > self._most:
                self._bytes -= _size(self._answers.pop(next(iter(self._answers))))


def _size(answer: msgspec.Raw) -> int:
    return memoryview(answer).nbytes + _ENTRY_BYTES
