"""The API fails in the middle of requests and streams; its clients try again and notice nothing.

`bench/chaos.py` does the same for hours.
"""

import pytest

from tests.chaos.harness import oracle
from tests.chaos.harness.failing import in_api
from tests.chaos.harness.stack import Shape
from tests.chaos.judged import executed, planned

pytestmark = pytest.mark.services


def test_a_request_during_which_the_api_fails_is_done_once_when_it_is_sent_again():
    verdict = executed(
        in_api(seeds=1), "sqlite", seed=21, shape=Shape(), checks=(oracle.several_starts,)
    )

    assert len(verdict.evidence.jobs) == verdict.run.figures["requests"] - 1 >= 12
    assert verdict.run.load.answers[500] >= 4


def test_streams_go_on_without_a_gap_across_deaths_of_the_api():
    verdict = planned("streams", 3, "sqlite", seed=22)

    figures = verdict.run.figures
    assert verdict.run.num_counted >= 3
    assert figures["connections"] >= figures["clients"] + 3
