"""The package's front: public names, the version, and nothing else."""

import tomllib
from pathlib import Path

import pytest

import poisontrace


@pytest.mark.parametrize("name", poisontrace.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Importing it works and help() has something to say."""
    public = getattr(poisontrace, name)

    assert public.__name__ == name
    assert public.__doc__


def test_public_names_are_in_order() -> None:
    """Each once, sorted."""
    assert sorted(set(poisontrace.__all__)) == list(poisontrace.__all__)


def test_dir_lists_the_public_names() -> None:
    """Also those that are imported on first use."""
    assert set(poisontrace.__all__) <= set(dir(poisontrace))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="module 'poisontrace' has no attribute 'tracce'"):
        _ = poisontrace.tracce


def test_the_version_is_the_projects() -> None:
    """pyproject.toml and the package say the same."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

    assert poisontrace.__version__ == project["version"]
