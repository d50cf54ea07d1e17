"""A plugin of pytest: the product under test is the one beside it, and each outcome is written."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

PACKAGES = "MUTANTS_PACKAGES"
OUTCOMES = "MUTANTS_OUTCOMES"
_MOST_CHARACTERS = 300


def pytest_configure(config: pytest.Config) -> None:
    root = config.rootpath.resolve()
    for name in os.environ[PACKAGES].split():
        found = importlib.util.find_spec(name)
        origin = None if found is None else found.origin
        if origin is None or root not in Path(origin).resolve().parents:
            raise pytest.UsageError(f"{name} comes from {origin} and not from the copy in {root}")


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(nodeid, "started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or report.skipped:
        _write(report.nodeid, report.outcome, _first_line(report))
    elif report.when == "call":
        _write(report.nodeid, "passed")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid, "failed", _first_line(report))


def _first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test failed, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else crash.message
    return next(iter(text.strip().splitlines()), "")[:_MOST_CHARACTERS]


def _write(nodeid: str, outcome: str, why: str = "") -> None:
    line = {"id": nodeid, "outcome": outcome, "why": why}
    with Path(os.environ[OUTCOMES]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
