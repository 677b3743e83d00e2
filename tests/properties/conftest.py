"""Random sites behind both engines. The same examples on every run, so that a failure is one everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.conftest import Engines
from tests.properties.sites import Site, a_site

# More by hand: `EXAMPLES=1000 pytest tests/properties`. Tests that count rare cases take a hundred at least.
EXAMPLES = int(os.environ.get("EXAMPLES", "50"))
MANY = max(100, EXAMPLES)

# Large questions are wanted, and a busy machine is no failure; no database, because nothing is random.
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
settings.load_profile("repeatable")

# Any other will do as well; of these, every layer of the policy decides something in every test.
SEEDS = (3, 6)


@dataclass(frozen=True)
class Opened:
    """A random site, and both engines over its policy."""

    site: Site
    engines: Engines

    @property
    def teams(self) -> tuple[str, ...]:
        return tuple(self.site.teams)


@pytest.fixture(scope="session")
def open_site(
    open_engines: Callable[[Path], Engines], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Site], Opened]:
    """Compiles a site once, for many questions."""
    return lambda site: Opened(site, open_engines(site.write(tmp_path_factory.mktemp("site") / "policy")))


@pytest.fixture(scope="session", params=[False, True], ids=["shipped roles", "random roles"])
def opened(request: pytest.FixtureRequest, open_site: Callable[[Site], Opened]) -> Opened:
    """A random site with the shipped role table, and one with a random one."""
    return open_site(a_site(SEEDS[request.param], own_roles=request.param))


@pytest.fixture(scope="session")
def looking_at_kinds(open_site: Callable[[Site], Opened]) -> Opened:
    """A random site where few rules look at ids, so that lists ask the others once for a kind of resource."""
    return open_site(a_site(SEEDS[True], own_roles=True).looking_at_kinds())
