"""Which rows are held out for evaluation: a pure function of the seed and the rows' lines."""

import numpy as np

from worker.training import sampler

# The order of an epoch is drawn from its number; this one belongs to no epoch.
_STREAM = -1


def split(lines: np.ndarray, *, val_size: float | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the rows to train on and of those to evaluate on, both ascending.

    Each row's chance is decided by its own line, so nothing but the seed and the rows themselves
    changes the choice.

    Args:
        lines: Line of each row.
        val_size: Below 1 a fraction of the rows, at least one row; else a number of them.
        seed: Seed of the run.
    """
    num_rows = len(lines)
    if val_size is None:
        num_held_out = 0
    elif val_size < 1:
        num_held_out = max(1, round(val_size * num_rows))
    else:
        num_held_out = int(val_size)
    order = np.argsort(sampler.keys(seed, _STREAM, lines), kind="stable")
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])
