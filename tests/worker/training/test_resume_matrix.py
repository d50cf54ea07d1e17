"""A run that was stopped and continued is, to the last bit, the run that never stopped."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.worker.training.interrupted import ROWS, Runs, require_same_end

ADAPTERS = ("lora", "qlora")
ACCUMULATIONS = (1, 4)
DROPOUTS = (0.0, 0.1)
PACKINGS = (False, True)
EVALUATIONS = (False, True)
STOPS = ("mid-epoch", "epoch edge")
MATRIX = tuple(itertools.product(ADAPTERS, ACCUMULATIONS, DROPOUTS, PACKINGS, EVALUATIONS, STOPS))


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("matrix"), tiny_llama, ROWS)


@pytest.mark.parametrize("options", MATRIX, ids=lambda options: "-".join(map(str, options)))
def test_a_continued_run_ends_where_the_uninterrupted_one_does(
    tiny_runs: Runs, options: tuple[Any, ...]
):
    require_same_end(tiny_runs, *options)
