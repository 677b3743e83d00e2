"""The decision log: what was decided about whom, when, why and by which policy.

``DecisionLog`` is told by the decision point, decides what is recorded, and hands that on. ``writer`` keeps it until a
sink has it; ``record`` is its form.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from airflow_team_authz.decision_log import origin
from airflow_team_authz.decision_log.bursts import Bursts
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.record import (
    MOST_RESOURCES,
    Entry,
    Form,
    new_id,
    refused_first,
    refused_of,
    without_secrets,
)
from airflow_team_authz.decision_log.writer import Sink, Writer
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import Decision, EngineError, Evaluations, Resource

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = logger(__name__)

SINKS = ("database", "file", "log")
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


class DecisionLog:
    """Told of each question and its answer, by the thread that asked: so it neither waits nor raises."""

    def __init__(self, sinks: Sequence[Sink], levels: Levels, form: Form, tells_lines: bool = True) -> None:
        """``tells_lines``: a line in the log for each refusal, for where no sink is that log."""
        self._levels = levels
        self._bursts = Bursts()
        self._tells_lines = tells_lines
        self.writers = [Writer(sink, form, self._end_bursts) for sink in sinks]

    def decided(self, question: Evaluations, decisions: Sequence[Decision], revision: str, nanoseconds: int) -> str:
        """The id of the record of these decisions; nothing if there is none."""
        allowed = 0
        for decision in decisions:
            allowed += decision.allow is True
        resources = question.resources
        if not resources:
            return ""
        recorded = self._levels.of(resources[0].type, question.action)
        try:
            if allowed == len(resources):
                return self._keep(question, decisions, revision, nanoseconds, allowed) if recorded.allowed else ""
            return self._refused(question, decisions, revision, nanoseconds, allowed, recorded.denied)
        except Exception:
            log.exception("a decision could not be recorded")
            return ""

    def listed(self, question: Evaluations, allowed: Sequence[Resource], revision: str, nanoseconds: int) -> None:
        """Note what a list holds."""
        resources = question.resources
        if not resources or not self._levels.of(resources[0].type, question.action).lists:
            return
        try:
            refused = refused_of(resources, allowed)
            asked, entry = len(resources), self._entry(question, revision, nanoseconds)
            self._offer(entry._replace(asked=asked, allowed=len(allowed), resources=refused))
        except Exception:
            log.exception("a decision could not be recorded")

    def failed(self, question: Evaluations, error: EngineError, nanoseconds: int) -> str:
        """The id of the record that no decision could be had; nothing if there is none."""
        resources = question.resources
        if not resources or not self._levels.of(resources[0].type, question.action).denied:
            return ""
        try:
            entry = self._entry(question, "", nanoseconds)
            return self._once(
                (type(error), *_about(question)),
                entry._replace(asked=len(resources), resources=resources[:MOST_RESOURCES], error=error),
            )
        except Exception:
            log.exception("a decision could not be recorded")
            return ""

    def _refused(
        self,
        question: Evaluations,
        decisions: Sequence[Decision],
        revision: str,
        nanoseconds: int,
        allowed: int,
        is_recorded: bool,
    ) -> str:
        id_, is_new = "", True
        if is_recorded and self.writers:
            resources, kept = refused_first(question.resources, decisions)
            entry = self._entry(question, revision, nanoseconds)._replace(
                asked=len(question.resources), allowed=allowed, resources=resources, decisions=kept
            )
            id_ = self._once(_about(question), entry)
            is_new = id_ == entry.id
        if self._tells_lines and is_new:
            for decision in decisions:
                if decision.allow is not True:
                    _tell(decision, revision, id_)
        return id_

    def _keep(
        self, question: Evaluations, decisions: Sequence[Decision], revision: str, nanoseconds: int, allowed: int
    ) -> str:
        resources, kept = refused_first(question.resources, decisions)
        entry = self._entry(question, revision, nanoseconds)
        self._offer(entry._replace(asked=len(question.resources), allowed=allowed, resources=resources, decisions=kept))
        return entry.id if self.writers else ""

    def _entry(self, question: Evaluations, revision: str, nanoseconds: int) -> Entry:
        return Entry(new_id(), time.time_ns(), nanoseconds, origin.current(), question, revision, 0, 0, ())

    def _once(self, about: Hashable, entry: Entry) -> str:
        """The id of its record, or of the one before that is about the same."""
        if not self.writers:
            return ""
        if before := self._bursts.begin(about, entry):
            return before
        self._offer(entry)
        return entry.id

    def _offer(self, entry: Entry) -> None:
        for writer in self.writers:
            writer.offer(entry)

    def _end_bursts(self, at_once: bool = False) -> None:
        for entry, repeated in self._bursts.over(at_once):
            self._offer(entry._replace(id=new_id(), at=int(repeated.until * 1e9), repeated=repeated))

    def close(self) -> None:
        """Write what waits, as far as that takes no more than a moment."""
        self._end_bursts(at_once=True)
        for writer in self.writers:
            writer.close()


def _about(question: Evaluations) -> tuple[Hashable, ...]:
    """What makes two refusals the same. Not whose a resource is: an id in an answer would tell that it has changed."""
    named = tuple((resource.type, resource.id, resource.entity) for resource in question.resources[:MOST_RESOURCES])
    subject = question.subject
    return origin.door(), subject.type, subject.id, question.action, len(question.resources), named


def _tell(decision: Decision, revision: str, id_: str) -> None:
    policy = f"policy revision {revision or 'unnamed'}" + (f", decision {id_}" if id_ else "")
    log.info("denied (%s, %s): %s", decision.layer, policy, without_secrets("; ".join(decision.reasons)))


def sink_names(text: str) -> tuple[str, ...]:
    """The sinks in a setting; ``ValueError`` says which is none."""
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    if names == (NO_SINK,):
        return ()
    for name in names:
        if name not in SINKS:
            raise ValueError(f"{name!r} is no sink: name some of {', '.join(SINKS)}, or none")
    return tuple(dict.fromkeys(names))


def open_log(settings: LogSettings, engine: Callable[[], Engine], schema: str | None, state: Path) -> DecisionLog:
    """The decision log of the settings. ``engine`` gives Airflow's; nothing is opened before it is used."""
    from airflow_team_authz.decision_log.sinks import File, StandardLog

    names = sink_names(settings.decision_log)
    sinks: list[Sink] = []
    for name in names:
        if name == "database":
            from airflow_team_authz.decision_log.database import Database

            sinks.append(
                Database(engine, schema, settings.decision_log_days, None if "log" in names else StandardLog())
            )
        else:
            sinks.append(StandardLog() if name == "log" else File(log_file(settings, state)))
    return DecisionLog(
        sinks, Levels(settings.decision_log_levels), Form(settings.decision_log_masks), tells_lines="log" not in names
    )


def log_file(settings: LogSettings, state: Path) -> Path:
    """The file of the sink ``file``."""
    return settings.decision_log_file or state / "decisions.ndjson"
