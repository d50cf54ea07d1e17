"""What an uninterrupted run of the shared rows gives; every interrupted one must give the same."""

from dataclasses import dataclass

import pytest

from tests.e2e.rows import submitted
from tests.fixtures.stack import Stack


@dataclass(frozen=True)
class Outcome:
    """All that a run leaves behind."""

    losses: list[float]
    adapter: bytes


_GOLDEN: list[Outcome] = []


def outcome(stack: Stack, job_id: str) -> Outcome:
    """Wait for a job of 20 steps and return what it left, one metric row per step."""
    stack.wait_for_state(job_id, "succeeded", seconds=120)
    metrics = stack.metrics(job_id)
    assert [each["step"] for each in metrics] == list(range(1, 21)), stack.story(job_id)
    return Outcome([each["loss"] for each in metrics], stack.adapter(job_id))


@pytest.fixture
def golden(stack: Stack) -> Outcome:
    """The uninterrupted run; it does not depend on the database, so one serves all tests."""
    if not _GOLDEN:
        _GOLDEN.append(outcome(stack, submitted(stack)))
    return _GOLDEN[0]
