"""The order of the data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.training.sampler import Sampler

samplers = st.builds(
    Sampler,
    num_units=st.integers(1, 60),
    units_per_step=st.integers(1, 21),
    seed=st.integers(0, 2**31 - 1),
)


def make_sampler(**changes: int) -> Sampler:
    facts = {"num_units": 10, "units_per_step": 4, "seed": 1}
    return Sampler(**{**facts, **changes})


def epoch_of(sampler: Sampler, epoch: int) -> list[int]:
    first = epoch * sampler.steps_per_epoch + 1
    steps = range(first, first + sampler.steps_per_epoch)
    return [unit for step in steps for unit in sampler.units_of(step)]


@given(samplers, st.integers(0, 3))
def test_every_epoch_visits_every_unit_once(sampler: Sampler, epoch: int):
    assert sorted(epoch_of(sampler, epoch)) == list(range(sampler.num_units))


def test_the_order_differs_between_epochs_and_between_seeds():
    sampler = make_sampler(num_units=50)

    assert epoch_of(sampler, 0) != epoch_of(sampler, 1)
    assert epoch_of(sampler, 0) != epoch_of(make_sampler(num_units=50, seed=2), 0)


def test_the_order_does_not_depend_on_how_it_is_cut():
    assert epoch_of(make_sampler(), 1) == epoch_of(make_sampler(units_per_step=5), 1)


def test_the_order_is_the_one_that_earlier_releases_drew():
    # Written down once: a change here makes every stored checkpoint continue with other rows.
    assert epoch_of(make_sampler(), 0) == [6, 7, 1, 2, 9, 0, 5, 8, 3, 4]


def test_a_seed_shuffles_without_favourites():
    # Over many seeds each unit comes first about equally often: 1,000 draws, 100 expected each.
    firsts = [make_sampler(seed=seed).units_of(1)[0] for seed in range(1000)]

    assert all(60 < firsts.count(unit) < 140 for unit in range(10))


def test_the_last_step_of_an_epoch_keeps_the_units_that_are_left():
    sampler = make_sampler()

    assert [len(sampler.units_of(step)) for step in (1, 2, 3, 4)] == [4, 4, 2, 4]


@pytest.mark.parametrize(
    ("max_steps", "epochs", "expected"),
    [(None, 1.0, 3), (None, 2.5, 8), (None, 0.01, 1), (5, 9, 5)],
)
def test_total_steps_come_from_max_steps_or_else_from_epochs(
    max_steps: int | None, epochs: float, expected: int
):
    assert make_sampler().total_steps(max_steps=max_steps, num_train_epochs=epochs) == expected


def test_the_epoch_counts_units_seen():
    sampler = make_sampler()

    assert [sampler.epoch_after(step) for step in (1, 2, 3, 4)] == [0.4, 0.8, 1.0, 1.4]
