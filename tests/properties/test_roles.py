"""A role's name counts in any case of the letters A to Z, and in no other spelling; to both engines alike."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_team_authz.model import Evaluations, Resource, Subject
from tests.conftest import Engines
from tests.properties.conftest import Opened
from tests.properties.words import ROLES, questions, subjects

# All that have case are in Unicode's first two planes. Surrogates are no characters.
CHARACTERS = [chr(code) for code in range(0x20000) if not 0xD800 <= code <= 0xDFFF]
AT_ONCE = 1_000
# What platform admins may do, and nobody else.
PLATFORM_ONLY = [Resource("custom_view", id="x"), Resource("connection", "gamma", "pg"), Resource("pool", None, "p")]


def allowed_with(roles: list[str], engines: Engines) -> list[list[Resource]]:
    question = Evaluations(Subject("user", "eve", (), tuple(roles)), "create", PLATFORM_ONLY)
    return [engine.allowed(question) for engine in engines.both()]


@pytest.mark.parametrize(
    ("form", "admins"),
    [("{}dmin", ["Admin", "admin"]), ("adm{}n", ["admIn", "admin"]), ("admin{}", []), ("{}admin", []), ("{}", [])],
)
def test_no_other_letter_makes_a_role_of_the_platform(form: str, admins: list[str], example: Engines) -> None:
    others = [role for role in map(form.format, CHARACTERS) if role not in admins]
    for start in range(0, len(others), AT_ONCE):
        assert allowed_with(others[start : start + AT_ONCE], example) == [[], []]
    for admin in admins:
        assert allowed_with([admin], example) == [PLATFORM_ONLY, PLATFORM_ONLY]


@given(seed=st.integers(0, 10_000), role=st.sampled_from(ROLES), data=st.data())
def test_a_role_counts_in_any_case_of_a_to_z(opened: Opened, seed: int, role: str, data: st.DataObject) -> None:
    random = Random(seed)  # noqa: S311 - not for secrets
    spelt = "".join(random.choice((letter, letter.upper())) if letter.isascii() else letter for letter in role)
    # The directory may name a login role, by its exact name.
    assume(not {role, spelt} & set(opened.site.directory["roles"]))
    question = data.draw(questions(opened.teams, 10, subjects(opened.teams)))
    answers = []
    for name in (role, spelt):
        subject = msgspec.structs.replace(question.subject, roles=(name,))
        same = msgspec.structs.replace(question, subject=subject)
        answers += [engine.decide(same).decisions for engine in opened.engines.both()]
    assert all(answer == answers[0] for answer in answers)
