"""Makes any text fit into Airflow's database. A reason may be as long as a policy likes."""

from __future__ import annotations

from collections.abc import Iterable

# Of MySQL's TEXT, the smallest column for texts that Airflow's databases have.
TEXT_BYTES = 65_535
# JSON makes up to six bytes of one, so all of these fit into such a column.
_REASONS = 10
_REASON_BYTES = 1_000
_MARK = " … (cut)"


def fitting(text: str, size: int = TEXT_BYTES) -> str:
    """``text`` in at most ``size`` bytes of UTF-8, with a mark at its end if it had more.

    What no database stores, NUL and half characters, becomes U+FFFD.
    """
    stored = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="surrogatepass").decode(errors="replace")
    whole = stored.encode()
    if len(whole) <= size:
        return stored
    return whole[: size - len(_MARK.encode())].decode(errors="ignore") + _MARK


def with_lines(text: str | None, *more: str) -> str:
    """``text``, if there is one, with more lines after it, cut like any other."""
    return fitting("\n".join(filter(None, (text, *more))))


def fitting_reasons(reasons: Iterable[str]) -> list[str]:
    """The first ten ``reasons`` with at most 1,000 bytes each, and how many more there are."""
    told = list(reasons)
    kept = [fitting(reason, _REASON_BYTES) for reason in told[:_REASONS]]
    return kept + [f"and {len(told) - _REASONS} more reasons"] * (len(told) > _REASONS)
