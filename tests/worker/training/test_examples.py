"""The shortest example, run as its file says."""

import json
from pathlib import Path

import pytest

from app.cli import specs
from tests.training_runs import Workplace

QUICK = Path(__file__).parents[3] / "examples" / "configs" / "quick.yaml"


@pytest.mark.model
def test_the_quick_example_trains_smollm2_for_ten_steps(tmp_path: Path, smollm2: Path):
    spec = specs.read(str(QUICK))
    data = specs.dataset_path(spec)
    assert data is not None
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    dataset = {key: value for key, value in spec["dataset"].items() if key != "path"}

    attempt = Workplace(tmp_path, smollm2).train(
        rows=rows,
        dataset=dataset,
        **{key: spec[key] for key in ("base_model", "name", "preset", "training")},
        lora={},
    )

    assert attempt.exit_code == 0
    assert len(attempt.losses) == 10
    assert len(attempt.ready.target_modules) == 60
    assert [e.step for e in attempt.events if e.kind == "checkpoint"] == [5, 10]
    first, last = (
        [attempt.losses[step] or 99 for step in steps] for steps in ((1, 2, 3), (8, 9, 10))
    )
    assert sum(last) < sum(first)
