"""Fixtures shared by all tests; the incident on digits is trained once a run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tasks import DIGITS_PLAN, write_case

from poisontrace import incidents
from poisontrace.incidents import Incident, Plan


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the victims of the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POISONTRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits_incident() -> Incident:
    """BadNets on digits: a victim that the attack moved, made in about a second."""
    return incidents.make(DIGITS_PLAN)


@pytest.fixture(scope="session")
def two_campaigns() -> Incident:
    """Two patches on digits, one target: each event carries one of them."""
    return incidents.make(Plan(attack="badnets", dataset="digits", rate=0.1, options={"campaigns": 2, "size": 3}))


@pytest.fixture(scope="session")
def digits_folder(digits_incident: Incident, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``digits_incident`` was saved to."""
    folder = tmp_path_factory.mktemp("incidents") / "digits"
    incidents.save(digits_incident, folder)
    return folder


@pytest.fixture(scope="session")
def _cases(digits_incident: Incident, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the case that accuses the poison, all of it and nothing else; truth is out of its reach."""
    folder = tmp_path_factory.mktemp("cases")
    evidence = shutil.copytree(digits_folder, folder / "evidence", ignore=shutil.ignore_patterns("truth*", "attempts*"))
    return write_case(folder / "digits", digits_incident, evidence, np.flatnonzero(digits_incident.is_poison))


@pytest.fixture
def digits_case(_cases: Path, tmp_path: Path) -> Path:
    """A copy of that case, for one test."""
    return Path(shutil.copytree(_cases, tmp_path / "case"))
