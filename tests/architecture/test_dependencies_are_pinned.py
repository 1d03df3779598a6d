"""What is installed is what pyproject.toml allows and constraints.txt pins, all the way down."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINES = (
    *PROJECT["dependencies"],
    *(line for extra in ("node", "report", "flower", "privacy") for line in EXTRAS[extra]),
)
RUNTIME = [Requirement(line) for line in LINES if not line.startswith(PROJECT["name"])]


def plain_name(name: str) -> str:
    """As package indices compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(equals for _, equals, _ in pairs), "constraints.txt pins exact versions only"
    return {plain_name(name): version.strip() for name, _, version in pairs}


def installed_below(requirements: list[Requirement]) -> dict[str, str]:
    """Names and versions of all distributions that these need and that are installed."""
    found: dict[str, str] = {}
    left = list(requirements)
    while left:
        wanted = left.pop()
        name = plain_name(wanted.name)
        if name in found or not _applies(wanted):
            continue
        try:
            distribution = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # such as CUDA's libraries, where torch is the CPU's
        found[name] = distribution.version
        for line in distribution.requires or ():
            needed = Requirement(line)
            if _applies(needed, wanted.extras):
                needed.marker = None
                left.append(needed)
    return found


def _applies(requirement: Requirement, extras: set[str] | None = None) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}))


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_what_is_installed_and_what_is_pinned_is_allowed(requirement: Requirement) -> None:
    installed = metadata.version(requirement.name)
    pinned = pins()[plain_name(requirement.name)]
    assert requirement.specifier.contains(pinned), f"constraints.txt pins {pinned}"
    assert requirement.specifier.contains(installed.partition("+")[0]), installed


def test_everything_that_those_need_is_pinned() -> None:
    below = installed_below(RUNTIME)
    assert len(below) > len(RUNTIME)
    assert sorted(set(below) - set(pins())) == []


def test_what_is_not_pinned_would_be_seen() -> None:
    assert "pluggy" in installed_below([Requirement("pytest")])
    assert "httpx" not in installed_below([Requirement("pytest")])
