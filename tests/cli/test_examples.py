"""The job files among the examples."""

import json
from pathlib import Path

import pytest

from app.domain.presets import PRESETS

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted((EXAMPLES / "configs").glob("*.yaml"))
STEPS = {"quick": 10, "convergence": 100, "memory": 50, "extended": 500, "seven-b": 1000}


@pytest.mark.parametrize("path", [*FILES, EXAMPLES / "quickstart.yaml"], ids=lambda path: path.stem)
def test_an_example_is_a_valid_job_file(lorad, path: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAD_HOME", str(tmp_path))

    done = lorad("submit", str(path), "--dry-run")

    assert done.code == 0, done.stderr
    spec = json.loads(done.stdout)
    assert f"no base model {spec['base_model']}" in done.stderr
    assert spec["training"]["max_steps"] == STEPS.get(path.stem, spec["training"]["max_steps"])
    assert path.read_text().startswith("# ")


def test_a_dry_run_says_nothing_of_a_model_that_is_there(lorad, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAD_HOME", str(tmp_path))
    model = tmp_path / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")

    done = lorad("submit", str(EXAMPLES / "configs" / "quick.yaml"), "--dry-run")

    assert done.code == 0
    assert "warning" not in done.stderr


def test_there_is_an_example_of_every_length_target_set_and_adapter():
    targets = {f"targets-{preset}" for preset in PRESETS if preset != "all-linear"}

    assert {path.stem for path in FILES} == {*STEPS, *targets, "qlora"}
