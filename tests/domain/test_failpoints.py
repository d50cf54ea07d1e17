"""Failpoints: off by default, and exact about what fails and when."""

import errno
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import failpoints
from app.domain.failpoints import VARIABLE, hit, parse

NAMES = st.from_regex(r"[a-z_.]{1,20}", fullmatch=True)
ACTIONS = st.sampled_from(["kill", "stop", "sleep:0.5", "raise:ENOSPC", "raise:EIO@3", "kill@2"])
_HITS_TWICE = """
from app.domain.failpoints import hit
hit("save.rename")
print("once", flush=True)
hit("save.rename")
print("twice", flush=True)
"""


@pytest.fixture(autouse=True)
def no_earlier_visits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.delenv(VARIABLE, raising=False)


def test_nothing_happens_unless_asked(monkeypatch: pytest.MonkeyPatch):
    hit("save.rename")
    monkeypatch.setenv(VARIABLE, "other=raise:EIO")
    hit("save.rename")


def test_a_named_error_is_raised_as_the_system_would(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "save.rename=raise:ENOSPC")

    with pytest.raises(OSError, match=r"No space left on device \(failpoint save.rename\)") as full:
        hit("save.rename")

    assert full.value.errno == errno.ENOSPC


def test_one_visit_of_many_can_be_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "a=raise:EIO@3;b=raise:EIO@1")

    hit("a")
    hit("a")
    with pytest.raises(OSError, match="failpoint a"):
        hit("a")
    hit("a")


def test_a_pause_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv(VARIABLE, "a=sleep:1.5")

    hit("a")

    assert slept == [1.5]


@pytest.mark.parametrize("action", ["explode", "", "raise:ENOSUCHERROR", "sleep:soon"])
def test_an_action_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch, action: str):
    monkeypatch.setenv(VARIABLE, f"a={action}")

    with pytest.raises((ValueError, AttributeError)):
        hit("a")


@pytest.mark.parametrize(("action", "printed"), [("kill", ""), ("kill@2", "once\n")])
def test_a_kill_is_a_sigkill_of_this_process(action: str, printed: str):
    done = subprocess.run(
        [sys.executable, "-c", _HITS_TWICE],
        env={VARIABLE: f"save.rename={action}", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, printed)


@given(st.dictionaries(NAMES, ACTIONS))
def test_what_is_configured_is_what_is_parsed(points: dict[str, str]):
    configured = " ; ".join(f"{name} = {action}" for name, action in points.items())

    assert parse(configured) == points
