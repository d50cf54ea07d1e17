"""The corners of the resume matrix, on the real SmolLM2-135M-Instruct."""

from pathlib import Path
from typing import Any

import pytest

from tests.worker.training.interrupted import ROWS, Runs, require_same_end

CORNERS = (
    ("lora", 1, 0.0, False, False, "epoch edge"),
    ("lora", 4, 0.1, True, True, "mid-epoch"),
    ("qlora", 1, 0.1, False, True, "mid-epoch"),
    ("qlora", 4, 0.0, True, False, "epoch edge"),
)


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("corners"), smollm2, ROWS[:9])


@pytest.mark.model
@pytest.mark.parametrize("options", CORNERS, ids=lambda options: "-".join(map(str, options)))
def test_a_continued_run_of_smollm2_ends_where_the_uninterrupted_one_does(
    real_runs: Runs, options: tuple[Any, ...]
):
    require_same_end(real_runs, *options)
