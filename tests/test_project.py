"""The project itself: the wheel is complete, generated docs are current, files stay small."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from xnorc.opset.__main__ import reference

ROOT = Path(__file__).parent.parent
ROOMS = {"xnorc": "compiler", "xnorc.passes": "passes", "xnorc.runtimes": "runtimes"}


def test_every_package_and_data_file_is_in_the_wheel():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["package-dir"] == ROOMS
    found = set()
    for package, folder in ROOMS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert set(setup["packages"]) == found
    for package, folder in (("xnorc.runtimes.c", "runtimes/c"), ("xnorc.report", "compiler/report")):
        patterns = setup["package-data"][package]
        files = [f for f in (ROOT / folder).iterdir() if f.is_file() and f.suffix != ".py"]
        assert all(any(f.match(pattern) for pattern in patterns) for f in files)


def test_operator_reference_is_current():
    assert (ROOT / "docs" / "operators.md").read_text() == reference(), "run: python -m xnorc.opset > docs/operators.md"


@pytest.mark.parametrize("folder", ["compiler", "passes", "runtimes", "tests", "examples"])
def test_files_stay_small_enough_to_hold_in_mind(folder):
    long = [f for f in (ROOT / folder).rglob("*.[pch]*") if f.suffix in (".py", ".c", ".h")]
    assert not [str(f) for f in long if len(f.read_text().splitlines()) > 500]
