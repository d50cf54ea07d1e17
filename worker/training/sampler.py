"""What each optimizer step trains on: a pure function of the seed and the step."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Sampler:
    """Visits every unit (a row, or several packed together) once per epoch, in an order drawn anew.

    Nothing is remembered between steps, so a resumed run needs the step number only.
    """

    num_units: int
    units_per_step: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last one may have fewer units."""
        return math.ceil(self.num_units / self.units_per_step)

    def total_steps(self, *, max_steps: int | None, num_train_epochs: float) -> int:
        if max_steps is not None:
            return max_steps
        return max(1, math.ceil(num_train_epochs * self.steps_per_epoch))

    def units_of(self, step: int) -> tuple[int, ...]:
        """Return the units, from 0, of optimizer step `step`, counted from 1."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        start = index * self.units_per_step
        order = _order(self.seed, epoch, self.num_units)
        return tuple(order[start : start + self.units_per_step].tolist())

    def epoch_after(self, step: int) -> float:
        """Return how many passes over the data are complete after a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch + index * self.units_per_step / self.num_units


def keys(seed: int, stream: int, numbers: np.ndarray) -> np.ndarray:
    """Return a hash of (seed, stream, number) for each of `numbers`, to be sorted by.

    The shuffles of numpy and torch may change between releases; arithmetic does not.

    Source:
        SplitMix64: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    start = int(_mix(np.array([(_mix_int(seed) + stream) & _MASK], np.uint64))[0])
    return _mix(np.uint64(start) + numbers.astype(np.uint64) * np.uint64(_GOLDEN_GAMMA))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_units: int) -> np.ndarray:
    order = np.argsort(keys(seed, epoch, np.arange(1, num_units + 1)), kind="stable")
    order.setflags(write=False)
    return order


def _mix_int(value: int) -> int:
    return int(_mix(np.array([(value * _GOLDEN_GAMMA) & _MASK], np.uint64))[0])


def _mix(values: np.ndarray) -> np.ndarray:
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
