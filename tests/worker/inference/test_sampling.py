"""Tokens are chosen as often as temperature and top_p say."""

from collections import Counter
from typing import Any

import pytest
import torch

from app.domain.inference import Sampling
from worker.training.inference.sampling import Chooser, NonFiniteLogits, choose

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.6, 0.3, 0.1]).log()
NUM_CHOICES = 2000
# Five standard deviations of a share of so many choices.
WITHIN = 0.06


def shares(**sampling: Any) -> list[float]:
    """Return how often each of the three tokens is chosen."""
    chooser = Chooser(Sampling(seed=1, **sampling), 0, CPU)
    found = Counter(chooser.sample(LOGITS) for _ in range(NUM_CHOICES))
    return [found[token] / NUM_CHOICES for token in range(3)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float):
    expected = (LOGITS / temperature).softmax(-1).tolist()

    assert shares(temperature=temperature) == pytest.approx(expected, abs=WITHIN)


def test_top_p_counts_probabilities_after_the_temperature():
    # At temperature 2 the best token has 0.47, so that 0.55 takes two; at 1 it has 0.6 alone.
    first, second, third = shares(temperature=2, top_p=0.55)

    assert (first, second) == pytest.approx((0.586, 0.414), abs=WITHIN)
    assert third == 0
    assert shares(temperature=1, top_p=0.55) == [1, 0, 0]


def test_from_logits_that_are_not_finite_nothing_is_chosen():
    choosers = [Chooser(Sampling(temperature=0), 0, CPU)] * 2

    good, bad = choose(torch.stack([LOGITS, torch.full((3,), torch.nan)]), choosers)

    assert good == 0
    assert isinstance(bad, NonFiniteLogits)
    assert bad.code == "nonfinite_logits"
