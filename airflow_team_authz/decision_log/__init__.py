"""The decision log: what was decided about whom, when, why and by which policy.

``DecisionLog`` is told by the decision point, decides what is recorded, and hands that on. ``writer`` keeps it until a
sink has it; ``record`` is its form.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from airflow_team_authz.decision_log import origin
from airflow_team_authz.decision_log.bursts import Bursts
from airflow_team_authz.decision_log.levels import Levels, is_taken
from airflow_team_authz.decision_log.record import (
    MOST_RESOURCES,
    Entry,
    Form,
    Lost,
    new_id,
    refused_first,
    refused_of,
)
from airflow_team_authz.decision_log.sinks import File, LineForm, Lines, StandardLog
from airflow_team_authz.decision_log.writer import Sink, Writer
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import Decision, EngineError, Evaluations, Provenance, Resource

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = logger(__name__)

SINKS = ("database", "file", "log", "otel", "server")
NO_SINK = "none"


class LogSettings(Protocol):
    """The settings that matter here; ``airflow_team_authz.settings.Settings`` has them."""

    @property
    def decision_log(self) -> str: ...
    @property
    def decision_log_levels(self) -> str: ...
    @property
    def decision_log_masks(self) -> str: ...
    @property
    def decision_log_file(self) -> Path | None: ...
    @property
    def decision_log_days(self) -> int: ...
    @property
    def decision_log_server(self) -> str: ...
    @property
    def decision_log_server_token(self) -> Path | None: ...


class DecisionLog:
    """Told of each question and its answer, by the thread that asked: so it neither waits nor raises."""

    def __init__(self, sinks: Sequence[Sink], levels: Levels, form: Form, tells_lines: bool = True) -> None:
        """``tells_lines``: a line in the log for each refusal, for where no sink is that log."""
        self._levels = levels
        self._bursts = Bursts()
        self.writers = [Writer(sink, form, self._end_bursts) for sink in sinks]
        # Nobody hears the id of what is allowed, so the sink's thread makes it; of several sinks all have the same.
        self._id: Callable[[int], str] = _no_id if len(self.writers) == 1 else new_id
        # Also by a thread of its own: a line takes several times as long as a record.
        self._lines = Writer(Lines(), LineForm(), _nothing) if tells_lines else None

    def decided(self, question: Evaluations, decisions: Sequence[Decision], how: Provenance) -> str:
        """The id of the record of a refusal; nothing if there is none, or if all is allowed, which needs no id."""
        allowed = 0
        for decision in decisions:
            allowed += decision.allow is True
        resources = question.resources
        if not resources:
            return ""
        recorded = self._levels.of(resources[0].type, question.action)
        try:
            if allowed < len(resources):
                return self._refused(question, decisions, how, allowed, recorded.denied)
            if not recorded.allowed or not self.writers or not is_taken(recorded.share):
                return ""
            entry = _entry(question, decisions, how, allowed, self._id)
            self._offer(entry if recorded.share >= 1 else entry._replace(share=recorded.share))
            return ""
        except Exception:
            log.exception("a decision could not be recorded")
            return ""

    def listed(self, question: Evaluations, allowed: Sequence[Resource], how: Provenance) -> None:
        """Note what a list holds."""
        resources = question.resources
        if not resources:
            return
        recorded = self._levels.of(resources[0].type, question.action)
        if not recorded.lists or not is_taken(recorded.share):
            return
        try:
            refused = refused_of(resources, allowed)
            entry = _entry(question, None, how, len(allowed), self._id, refused)
            self._offer(entry if recorded.share >= 1 else entry._replace(share=recorded.share))
        except Exception:
            log.exception("a decision could not be recorded")

    def failed(self, question: Evaluations, error: EngineError, nanoseconds: int) -> str:
        """The id of the record that no decision could be had; nothing if there is none."""
        resources = question.resources
        if not resources or not self._levels.of(resources[0].type, question.action).denied or not self.writers:
            return ""
        try:
            about = (type(error), *_about(question))
            if before := self._bursts.again(about):
                return before
            entry = _entry(question, None, Provenance("", nanoseconds), 0, new_id, resources[:MOST_RESOURCES], error)
            return self._begin(about, entry)
        except Exception:
            log.exception("a decision could not be recorded")
            return ""

    def _refused(
        self,
        question: Evaluations,
        decisions: Sequence[Decision],
        how: Provenance,
        allowed: int,
        is_recorded: bool,
    ) -> str:
        id_ = ""
        if is_recorded and self.writers:
            about = _about(question)
            if before := self._bursts.again(about):
                return before
            entry = _entry(question, decisions, how, allowed, new_id)
            if (id_ := self._begin(about, entry)) != entry.id:
                return id_
        if self._lines is not None:
            if not id_:
                entry = _entry(question, decisions, how, allowed, _no_id)
            self._lines.offer(entry)
        return id_

    def _begin(self, about: Hashable, entry: Entry) -> str:
        """The id of its record, which another thread may have begun meanwhile."""
        if before := self._bursts.begin(about, entry):
            return before
        self._offer(entry)
        return entry.id

    def record(self, entry: Entry | Lost) -> None:
        """Have an entry recorded that somebody else has made, whatever the levels."""
        self._offer(entry)

    def _offer(self, entry: Entry | Lost) -> None:
        for writer in self.writers:
            writer.offer(entry)

    def _end_bursts(self, at_once: bool = False) -> None:
        for entry, repeated in self._bursts.over(at_once):
            self._offer(entry._replace(id=new_id(), at=int(repeated.until * 1e9), repeated=repeated))

    def flush(self) -> None:
        """Write what is there, as far as that takes no more than a moment, and go on."""
        self._end_bursts(at_once=True)
        for writer in self._all_writers():
            writer.flush()

    def close(self) -> None:
        """Write what waits, as far as that takes no more than a moment."""
        self._end_bursts(at_once=True)
        for writer in self._all_writers():
            writer.close()

    def _all_writers(self) -> list[Writer]:
        return [*self.writers, *([] if self._lines is None else [self._lines])]


def _entry(
    question: Evaluations,
    decisions: Sequence[Decision] | None,
    how: Provenance,
    allowed: int,
    id_: Callable[[int], str],
    resources: Sequence[Resource] | None = None,
    error: EngineError | None = None,
) -> Entry:
    """The entry of a decision. Of many resources it keeps a part, which is chosen here unless it is given."""
    asked = len(question.resources)
    if resources is None and asked == 1:
        resources = question.resources
    elif resources is None and decisions is not None:
        resources, decisions = refused_first(question.resources, decisions)
    if asked > MOST_RESOURCES:
        # Otherwise what waits would hold on to all of them.
        question = replace(question, resources=())
    now = time.time_ns()
    # What the class itself does, in a third of the time: whoever asks waits.
    return _new(Entry, (
        id_(now), now, how.nanoseconds, origin.current(), question, how.revision, asked, allowed, resources or (),
        decisions, error, None, how.record_ids, 1.0, None, how.told,
    ))  # fmt: skip


def _about(question: Evaluations) -> tuple[Hashable, ...]:
    """The key of equal refusals. It lacks the owner: otherwise the id in an answer would reveal a new owner."""
    subject, resources = question.subject, question.resources
    if len(resources) == 1:
        one = resources[0]
        return origin.door(), subject.type, subject.id, question.action, one.type, one.id, one.entity
    named = tuple((resource.type, resource.id, resource.entity) for resource in resources)
    # Of very many a number is kept that nobody can foresee, since it differs in each process.
    about: Hashable = named if len(named) <= MOST_RESOURCES else (hash(named), *named[:1])
    return origin.door(), subject.type, subject.id, question.action, len(resources), about


def _nothing() -> None:
    pass


def _no_id(_: int) -> str:
    return ""


_new: Callable[[type[Entry], tuple[Any, ...]], Entry] = tuple.__new__


def sink_names(text: str) -> tuple[str, ...]:
    """The sinks in a setting; ``ValueError`` says which is none."""
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    if names == (NO_SINK,):
        return ()
    for name in names:
        if name not in SINKS:
            raise ValueError(f"{name!r} is not a sink: name some of {', '.join(SINKS)}, or none")
    return tuple(dict.fromkeys(names))


def open_log(settings: LogSettings, engine: Callable[[], Engine], schema: str | None, state: Path) -> DecisionLog:
    """The decision log of the settings. ``engine`` gives Airflow's; nothing is opened before it is used."""
    names = sink_names(settings.decision_log)
    sinks: list[Sink] = []
    for name in names:
        if name == "database":
            from airflow_team_authz.decision_log.database import Database

            sinks.append(
                Database(engine, schema, settings.decision_log_days, None if "log" in names else StandardLog())
            )
        elif name == "server":
            from airflow_team_authz.decision_log.over_http import BundleServer

            sinks.append(BundleServer(settings.decision_log_server, settings.decision_log_server_token))
        elif name == "otel":
            from airflow_team_authz.decision_log.over_http import OpenTelemetry

            sinks.append(OpenTelemetry())
        else:
            sinks.append(StandardLog() if name == "log" else File(log_file(settings, state)))
    return DecisionLog(
        sinks, Levels(settings.decision_log_levels), Form(settings.decision_log_masks), tells_lines="log" not in names
    )


def log_file(settings: LogSettings, state: Path) -> Path:
    """The file of the sink ``file``."""
    return settings.decision_log_file or state / "decisions.ndjson"
