"""Bounds of the dependencies against the versions tested together (`tool.uv.constraint-dependencies`)."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOT_TESTED = {"tensorrt"}
"""Installed from NVIDIA's index, on machines with a GPU."""


def disagreements(document: dict[str, Any]) -> list[str]:
    """Return a line for each dependency without a tested version, or with one that its bounds exclude."""
    project = document["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
        *(line for group in document["dependency-groups"].values() for line in group),
    ]
    tested = versions(document["tool"]["uv"]["constraint-dependencies"])
    found = []
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name == project["name"] or name in NOT_TESTED:
            continue
        if name not in tested:
            found.append(f"{requirement}: no tested version")
        elif not requirement.specifier.contains(tested[name]):
            found.append(f"{requirement}: the tested version is {tested[name]}")
    return found


def versions(constraints: Iterable[str]) -> dict[str, str]:
    """Return the version of each package; every constraint is NAME==VERSION."""
    found: dict[str, str] = {}
    for constraint in map(Requirement, constraints):
        (pin,) = constraint.specifier
        assert pin.operator == "==" and "*" not in pin.version and constraint.url is None, constraint
        assert constraint.name not in found, f"{constraint.name} twice"
        found[canonicalize_name(constraint.name)] = pin.version
    return found


def test_the_tested_versions_satisfy_every_bound() -> None:
    assert disagreements(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("tested", "expected"),
    [
        (["a==1.5", "b==2.0", "c==3"], []),
        (["a==1.5", "b==1.9", "c==3"], ["b[x]>=2.0: the tested version is 1.9"]),
        (["a==1.5", "b==2.0"], ["c<4: no tested version"]),
    ],
)
def test_a_bound_above_its_tested_version_and_a_missing_version_are_named(
    tested: list[str], expected: list[str]
) -> None:
    document = {
        "project": {"name": "p", "dependencies": ["a>=1"], "optional-dependencies": {"e": ["b[x]>=2.0"]}},
        "dependency-groups": {"dev": ["p[e]", "c<4"]},
        "tool": {"uv": {"constraint-dependencies": tested}},
    }
    assert disagreements(document) == expected


def test_a_constraint_that_is_no_exact_version_is_refused() -> None:
    with pytest.raises(AssertionError):
        versions(["a>=1"])
