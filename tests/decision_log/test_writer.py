"""Nobody waits for a sink, and nothing is lost without a word: slow sinks, full disks, forks, the end of a process."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.decision_log import DecisionLog, sinks, writer
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Entry, Form, new_id
from airflow_team_authz.decision_log.sinks import File, StandardLog
from airflow_team_authz.decision_log.writer import Writer
from airflow_team_authz.model import Decision, Evaluations, Provenance, Resource, Subject
from tests.conftest import eventually
from tests.decision_log.conftest import NO, YES, Kept, valid

DB = Resource("connection", "alpha", "db")


def entry(name: str = "db", subject: str = "bob") -> Entry:
    resource = Resource("connection", "alpha", name)
    question = Evaluations(Subject("user", subject), "read", [resource])
    return Entry(new_id(), time.time_ns(), 1, Origin("users"), question, "r", 1, 0, [resource], [NO])


class Held(Kept):
    """A sink that can be stopped, and can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.goes = threading.Event()
        self.goes.set()
        self.is_writing = threading.Event()
        self.errors: list[Exception] = []

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        self.is_writing.set()
        self.goes.wait()
        if self.errors:
            raise self.errors.pop()
        return super().write(records)


def names(records: Sequence[dict[str, Any]]) -> list[str]:
    return [record["input"]["resource"]["id"] for record in records if "input" in record]


def gaps(records: Sequence[dict[str, Any]]) -> list[int]:
    return [record["custom"]["lost"] for record in records if record["custom"]["outcome"] == "gap"]


def test_everything_is_written_in_order() -> None:
    sink = Kept()
    writing = Writer(sink, Form(), lambda: None)
    for number in range(600):
        writing.offer(entry(str(number)))
    writing.close(20)
    assert names(sink.records) == [str(number) for number in range(600)]
    assert (writing.written, writing.lost, writing.waiting()) == (600, 0, 0)


def test_what_a_stopped_sink_cannot_take_is_counted_and_told_to_it(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held()
    sink.goes.clear()
    writing = Writer(sink, Form(), lambda: None, most=100)
    writing.offer(entry("first"))
    sink.is_writing.wait()
    before = time.time()
    for number in range(250):
        writing.offer(entry(str(number)))
    assert writing.lost == 150
    sink.goes.set()
    writing.close()
    assert names(sink.records) == ["first", *map(str, range(100))]
    assert gaps(sink.records) == [150]
    gap = next(record["custom"] for record in sink.records if record["custom"]["outcome"] == "gap")
    assert gap["sink"] == "memory"
    assert time.strftime("%Y-%m-%dT%H:%M", time.gmtime(before)) <= gap["since"][:16] <= gap["until"][:16]
    assert [record.getMessage() for record in caplog.records] == [
        "1 decisions could not be recorded in memory so far, since more come than it takes: gaps in the decision log "
        "have their number"
    ]


def test_what_a_sink_refuses_for_a_while_is_written_later(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held()
    sink.errors = [OSError(28, "No space left on device")] * 3
    with caplog.at_level(logging.WARNING):
        writing = Writer(sink, Form(), lambda: None)
        writing.offer(entry("one"))
        eventually(lambda: len(sink.records) == 1)
        writing.close()
    assert (names(sink.records), gaps(sink.records)) == (["one"], [])
    assert [record.getMessage() for record in caplog.records] == [
        "decisions cannot be recorded in memory (OSError): [Errno 28] No space left on device",
        "decisions can be recorded again in memory",
    ]


def test_bursts_are_looked_for_while_a_sink_has_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_TICK_SECONDS", 0.0)
    monkeypatch.setattr(writer, "_BATCH", 1)
    looked: list[int] = []
    sink = Held()
    writing = Writer(sink, Form(), lambda: looked.append(writing.waiting()))
    sink.goes.clear()
    for number in range(5):
        writing.offer(entry(str(number)))
    sink.goes.set()
    eventually(lambda: writing.written == 5)
    writing.close()
    assert len(set(looked)) > 2


def test_what_can_never_be_written_is_a_gap() -> None:
    class Choosy(Kept):
        def write(self, records: Sequence[dict[str, Any]]) -> int:
            good = [record for record in records if "odd" not in json.dumps(record)]
            super().write(good)
            return len(records) - len(good)

    sink = Choosy()
    writing = Writer(sink, Form(), lambda: None)
    for name in ("even", "odd", "odd"):
        writing.offer(entry(name))
    eventually(lambda: gaps(sink.records) != [])
    writing.close()
    assert (names(sink.records), sum(gaps(sink.records))) == (["even"], 2)


def test_one_sink_does_not_wait_for_another() -> None:
    stopped, other = Held(), Kept()
    stopped.goes.clear()
    both = [Writer(sink, Form(), lambda: None) for sink in (stopped, other)]
    for writing in both:
        writing.offer(entry())
    eventually(lambda: len(other.records) == 1)
    stopped.goes.set()
    for writing in both:
        writing.close()


def test_a_process_that_ends_waits_for_a_stopped_sink_for_a_moment_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Held()
    sink.goes.clear()
    writing = Writer(sink, Form(), lambda: None)
    for _ in range(3):
        writing.offer(entry())
    sink.is_writing.wait()
    writing.close(0.05)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "3 decisions could not be recorded in memory before this process ended"
    sink.goes.set()


def test_a_process_that_ends_tries_again_as_long_as_it_waits() -> None:
    sink = Held()
    sink.goes.clear()
    writing = Writer(sink, Form(), lambda: None)
    writing.offer(entry("late"))
    sink.is_writing.wait()
    sink.errors = [OSError(11, "try again")] * 3
    threading.Timer(0.05, sink.goes.set).start()
    writing.close(20)
    assert names(sink.records) == ["late"]


def test_children_under_load_write_their_own_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.ndjson"
    writing = Writer(File(path), Form(), lambda: None, most=1_000_000)
    stop = threading.Event()

    def ask(who: str) -> int:
        asked = 0
        while not stop.is_set():
            writing.offer(entry(f"{who}-{asked}"))
            asked += 1
            time.sleep(0.0005)
        return asked

    asked: dict[str, int] = {}
    threads = [threading.Thread(target=lambda n=n: asked.update({n: ask(n)})) for n in ("a", "b")]
    for thread in threads:
        thread.start()
    children = []
    for number in range(10):
        if (pid := os.fork()) == 0:
            for each in range(20):
                writing.offer(entry(f"child{number}-{each}"))
            writing.close(20)
            os._exit(0 if writing.waiting() == 0 else 1)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    writing.close(20)
    records = [valid(json.loads(line)) for line in path.read_text().splitlines()]
    expected = {f"{who}-{number}" for who, count in asked.items() for number in range(count)}
    expected |= {f"child{number}-{each}" for number in range(10) for each in range(20)}
    assert sorted(names(records)) == sorted(expected)
    assert len({record["labels"]["id"] for record in records}) == 11


_PROGRAM = """
import sys, time
from pathlib import Path
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Entry, Form, new_id
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.decision_log.writer import Writer
from airflow_team_authz.model import Decision, Evaluations, Resource, Subject

def entry(name):
    resource = Resource("connection", "alpha", name)
    question = Evaluations(Subject("user", "bob"), "read", [resource])
    said = [Decision(False, (), "default")]
    return Entry(new_id(), time.time_ns(), 1, Origin("users"), question, "r", 1, 0, [resource], said)

writing = Writer(File(Path(sys.argv[1])), Form(), lambda: None)
for number in range(int(sys.argv[2])):
    writing.offer(entry(str(number)))
if sys.argv[3] == "end":
    sys.exit()
while writing.waiting():
    time.sleep(0.01)
writing.offer(entry("not yet written"))
print("now", flush=True)
time.sleep(60)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["end", "kill"])
def test_at_the_end_of_a_process_all_is_written_and_a_kill_takes_what_waits(tmp_path: Path, how: str) -> None:
    path = tmp_path / "log.ndjson"
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(path), "300", how], stdout=subprocess.PIPE, text=True
    ) as program:
        if how == "kill":
            assert program.stdout is not None
            program.stdout.readline()
            program.send_signal(signal.SIGKILL)
    records = [valid(json.loads(line)) for line in path.read_text().splitlines()]
    assert names(records)[:300] == [str(number) for number in range(300)]


# The file


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield place
    # Also if a test that has failed holds a file open.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_loses_nothing_that_fits_later(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (60 << 10))
    path = small_disk / "log.ndjson"
    writing = Writer(file := File(path), Form(), lambda: None)
    for number in range(40):
        writing.offer(entry(str(number)))
    eventually(lambda: "cannot be recorded" in caplog.text)
    assert b"\n" not in path.read_bytes()[-1:] or all(map(json.loads, path.read_text().splitlines()))
    ballast.unlink()
    writing.close(10)
    assert names([json.loads(line) for line in path.read_text().splitlines()]) == [str(n) for n in range(40)]
    file.begin_anew()


def test_a_file_that_cannot_be_written_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    writing = Writer(File(Path("/dev/full")), Form(), lambda: None)
    writing.offer(entry())
    eventually(lambda: "cannot be recorded in /dev/full" in caplog.text)
    writing.close(0.1)
    assert caplog.text.count("cannot be recorded") == 1
    assert "1 decisions could not be recorded in /dev/full" in caplog.text


def test_a_file_is_for_its_user_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    record = Form().record(entry())
    path = tmp_path / "new" / "log.ndjson"
    File(path).write([record])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        File(tmp_path / "link").write([record])


def test_a_large_file_is_put_aside_by_whichever_process_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "log.ndjson"
    two = [File(path, most_bytes=5_000), File(path, most_bytes=5_000)]
    for number in range(200):
        two[number % 2].write([Form().record(entry(str(number)))])
    kept = sorted(tmp_path.glob("log.ndjson*"), key=lambda file: int(file.suffix[1:]) if file != path else 0)
    assert len(kept) >= sinks.KEPT
    assert len(kept) <= sinks.KEPT + 1
    numbers = [int(name) for file in reversed(kept) for name in names(list(map(json.loads, file.open())))]
    assert numbers == list(range(numbers[0], 200))


def test_who_takes_the_file_away_gets_a_new_one(tmp_path: Path) -> None:
    file = File(path := tmp_path / "log.ndjson")
    file.write([Form().record(entry("one"))])
    path.rename(tmp_path / "old")
    file.write([Form().record(entry("two"))])
    assert names([json.loads(path.read_text())]) == ["two"]


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.ndjson"
    path.write_text('{"half": ')
    File(path).write([Form().record(entry("one"))])
    half, whole = path.read_text().splitlines()
    assert half == '{"half": '
    assert names([json.loads(whole)]) == ["one"]


# The standard log


def test_a_line_tells_of_each_refusal_also_while_the_sink_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """By a thread of its own: whoever asks waits for no line. Repetitions have none."""
    sink = Held()
    sink.goes.clear()
    log = DecisionLog([sink], Levels("changes, variable=none"), Form())

    def decided(type_: str, *said: Decision) -> str:
        question = Evaluations(
            Subject("user", "bob"), "read", [Resource(type_, "alpha", str(n)) for n in range(len(said))]
        )
        return log.decided(question, said, Provenance("r1", 1))

    with caplog.at_level(logging.INFO):
        ids = [decided("connection", NO) for _ in range(3)]
        decided("variable", NO)
        many = decided("pool", YES, Decision(False, ("at postgresql://a:MARKED@b", "because"), "team"))
        told = [
            f"denied (baseline, policy revision r1, decision {ids[0]}): bob may not",
            "denied (baseline, policy revision r1): bob may not",
            f"denied (team, policy revision r1, decision {many}): at postgresql://***@b; because",
        ]
        eventually(lambda: [record.getMessage() for record in caplog.records] == told)
    assert {record.threadName for record in caplog.records} == {"team-authz-decisions"}
    assert sink.records == []
    sink.goes.set()
    log.close()


def test_the_standard_log_has_the_record_and_nothing_forges_a_line_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Logger:
        def info(self, event: str, **fields: Any) -> None:
            told.append(fields | {"event": event})

        warning = info

    monkeypatch.setattr(sinks.structlog, "get_logger", lambda *_: Logger())
    StandardLog().write([Form().record(entry("a\nforged", subject="postgresql://a:MARKED@b"))])
    (fields,) = told
    assert fields["event"] == "decision"
    assert fields["input"]["resource"]["id"] == "a\\nforged"
    assert fields["input"]["subject"]["id"] == "postgresql://***@b"
    assert fields["decided_at"].endswith("Z")
