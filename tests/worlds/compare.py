"""Sends the same request into both worlds, and says where the answers differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx

from tests.worlds.catalogue import ALPHA, Call
from tests.worlds.routes import VERSION_HEADER
from tests.worlds.site import WITH, WITHOUT, Worlds

_THREADS = 4
_SECONDS = 60
_HEADERS = ("content-type", "location", "allow", "etag", "retry-after", "www-authenticate")
_STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?")
# Lists that nobody orders: what a bulk change could not do is a set of Airflow's, and who uses an asset comes as the
# database finds it.
_ANY_ORDER = {"aliases", "consuming_tasks", "errors", "producing_tasks", "scheduled_dags", "watchers"}
# In answers to changes and dry runs also these: Airflow asks for no order, and PostgreSQL finds changed rows in any.
_CHANGED_IN_ANY_ORDER = {"dags", "task_instances"}
_UNSORTED = re.compile(f'"(?:{"|".join(sorted(_ANY_ORDER | _CHANGED_IN_ANY_ORDER))})"')
# How long something has been going on.
_SINCE = re.compile(r'("\w*duration"):\s?\d{7,}\.\d+')
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# What Airflow draws anew for each error, and for each test of a connection.
_DRAWN = re.compile(r'look for ID \w+|"token":\s?"[\w-]{40,}"')
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


class Difference(NamedTuple):
    """What tells the worlds apart: the answers' statuses, and where they differ first."""

    person: str
    call: Call
    statuses: tuple[int, int]
    where: str
    without: str
    with_: str

    @property
    def explained(self) -> bool:
        """Whether it is only that a refusal names the owner."""
        return self.statuses[1] == 403 and f"of team {ALPHA}" in self.with_

    def __str__(self) -> str:
        status = "/".join(map(str, dict.fromkeys(self.statuses)))
        return f"{self.person} {self.call} [{status}] {self.where}: {self.without[:160]} | {self.with_[:160]}"


class Answer(NamedTuple):
    """What came back, without what is the machine's."""

    status: int
    headers: dict[str, str]
    text: str


class Comparison:
    """Both worlds as one person or task."""

    def __init__(self, worlds: Worlds, person: str, keep_alive: bool = True) -> None:
        self._worlds, self.person = worlds, person
        # Now, not by several threads at a time.
        worlds.ids()
        # What was done, by world.
        self._done: list[str] = []
        # After an error in the middle the server ends the connection: what is not to be sent twice gets a new one.
        kept = _THREADS if keep_alive else 0
        limits = httpx.Limits(max_connections=_THREADS, max_keepalive_connections=kept, keepalive_expiry=2)
        self._clients = {
            world: httpx.Client(
                base_url=worlds.url(world, person), headers={"Authorization": f"Bearer {worlds.tokens[person]}"},
                trust_env=False, timeout=_SECONDS, limits=limits,
            )
            for world in worlds.airflows
        }  # fmt: skip

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def read(self, calls: Iterable[Call]) -> list[Difference]:
        """What is answered differently; many are asked at a time."""
        with ThreadPoolExecutor(_THREADS) as threads:
            found = threads.map(lambda call: self._compared(call, *self._send_both(call)), calls)
            return [one for one in found if one]

    def write(self, calls: Sequence[Call]) -> list[Difference]:
        """The same of what changes something: one after the other, in both worlds at the same time."""
        answers = self._worlds.both(lambda world, _: [self._send(world, call) for call in calls])
        found = map(self._compared, calls, answers[WITHOUT], answers[WITH])
        return [one for one in found if one]

    def done(self) -> int:
        """How many requests succeeded in the world with alpha's things."""
        return self._done.count(WITH)

    def answers(self, world: str, calls: Iterable[Call]) -> list[Answer]:
        """What one of the worlds answers; many are asked at a time."""
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(lambda call: self._send(world, call), calls))

    def _send_both(self, call: Call) -> tuple[Answer, Answer]:
        return self._send(WITHOUT, call), self._send(WITH, call)

    def _compared(self, call: Call, without: Answer, with_: Answer) -> Difference | None:
        return difference(self.person, call, without, with_)

    def _send(self, world: str, call: Call) -> Answer:
        more: dict[str, Any] = {} if call.body is None else {"json": call.body}
        version = call.route.version
        headers = {} if version is None else {VERSION_HEADER: version}
        for attempt in (1, 2):
            try:
                answer = self._clients[world].request(
                    call.route.method, call.path, params=list(call.query), headers=headers, **more
                )
            except httpx.TransportError as error:
                # A connection ended by the server, or an answer that breaks off because Airflow fails in the middle.
                if attempt == 2 or not call.route.reads:
                    return Answer(0, {}, type(error).__name__)
            else:
                break
        if answer.is_success:
            self._done.append(world)
        # New ids and times must not decide about the order.
        text = self._plain(world, answer.text)
        if answer.status_code == 200 and _UNSORTED.search(text):
            ordered = call.route.method == "GET" or call.route.template.endswith("/list")
            text = _sorted_lists(text, _ANY_ORDER if ordered else _ANY_ORDER | _CHANGED_IN_ANY_ORDER)
        kept = {name: self._plain(world, answer.headers[name]) for name in _HEADERS if name in answer.headers}
        return Answer(answer.status_code, kept, text)

    def _plain(self, world: str, text: str) -> str:
        """Without what is the machine's: times after the worlds began, ports, directories, new tokens."""
        airflow = self._worlds.airflows[world]
        for machine, name in ((airflow.url, "<url>"), (str(airflow.port), "<port>"), (str(airflow.home), "<home>")):
            text = text.replace(machine, name)
        text = _DRAWN.sub("<drawn>", _UUID.sub(self._known, text))
        return _SINCE.sub(r'\1:"<until now>"', _JWT.sub("<token>", _STAMP.sub(self._time, text)))

    def _known(self, found: re.Match[str]) -> str:
        return found[0] if found[0].replace("-", "") in self._worlds.ids() else "<new id>"

    def _time(self, found: re.Match[str]) -> str:
        stamp = datetime.fromisoformat(found[0].replace("Z", "+00:00"))
        stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
        return "<now>" if stamp > self._worlds.begun else found[0]


def _sorted_lists(text: str, names: set[str]) -> str:
    """An answer with those of its lists in order that Airflow, or PostgreSQL for it, puts into any order."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return text
    waiting = [whole]
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        for name in names & part.keys() if isinstance(part, dict) else ():
            if isinstance(part[name], list):
                part[name].sort(key=json.dumps)
    return json.dumps(whole)


def difference(person: str, call: Call, without: Answer, with_: Answer) -> Difference | None:
    """Where two answers to a request differ first."""
    if without == with_:
        return None
    where, *values = _first_difference(without, with_)
    return Difference(person, call, (without.status, with_.status), where, *map(str, values))


def _first_difference(without: Answer, with_: Answer) -> tuple[str, Any, Any]:
    if without.status != with_.status:
        return f"status {without.status}/{with_.status}", without.text, with_.text
    if without.headers != with_.headers:
        return "headers", without.headers, with_.headers
    try:
        bodies = json.loads(without.text), json.loads(with_.text)
    except json.JSONDecodeError:
        at = next((i for i, (a, b) in enumerate(zip(without.text, with_.text, strict=False)) if a != b), 0)
        return f"byte {at}", without.text[at : at + 200], with_.text[at : at + 200]
    return _inside("", *bodies)


def _inside(where: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if a.get(key, _inside) != b.get(key, _inside):
                if key in a and key in b:
                    # A count only follows from what is shown.
                    if key == "total_entries" and len([name for name in a if a[name] != b.get(name)]) > 1:
                        continue
                    return _inside(f"{where}.{key}", a[key], b[key])
                return f"{where}.{key}", a.get(key, "(absent)"), b.get(key, "(absent)")
    if isinstance(a, list) and isinstance(b, list):
        extra = [row for row in b if row not in a] or [row for row in a if row not in b]
        if len(a) != len(b):
            return f"{where}[{len(a)}/{len(b)} rows]", "", json.dumps(extra[:1])
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            if left != right:
                return _inside(f"{where}[{index}]", left, right)
    return where, a, b


def by_route(differences: Sequence[Difference]) -> dict[str, list[Difference]]:
    """Grouped by the route."""
    grouped: dict[str, list[Difference]] = {}
    for difference in differences:
        grouped.setdefault(str(difference.call.route), []).append(difference)
    return grouped
