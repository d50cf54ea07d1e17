"""No interleaving of claim, lease, fence and reap breaks a promise, and the search would see it."""

import pytest

from tests.model.lease import Rules, explore


def test_no_order_of_events_breaks_a_promise_or_loses_the_job():
    found = explore(Rules())

    assert found.violation is None, "\n".join(found.trace)
    assert found.num_states > 10_000


CONTROLS = {
    "without the fence": (Rules(checks_fence=False), "although 2 exists"),
    "claimed by what was read": (Rules(claims_by_comparing=False), "two workers write"),
    "reaped before the lease ends": (Rules(reaps_by_lease=False), "renews whenever it can"),
    "reaped right after an outage": (Rules(reaper_waits=False), "renews whenever it can"),
    "never reaped": (Rules(reaps=False), "the job is lost"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_search_finds_what_happens_without_a_rule(name: str):
    rules, expected = CONTROLS[name]

    found = explore(rules)

    print(f"{name}: {found.violation}", *found.trace, sep="\n  ")  # noqa: T201 (shown by -s)
    assert found.violation is not None
    assert expected in found.violation
    assert found.trace
