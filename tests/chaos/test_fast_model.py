"""The model of the fast trainer: a resume changes nothing, losing a part of its state does."""

from pathlib import Path

import pytest

from tests.chaos.harness import fast_model
from tests.chaos.harness.fast_model import FastModel, Golden

_SEED, _STEPS, _HALF = 3, 10, 6


def finished(model: FastModel) -> bytes:
    while model.step < _STEPS:
        model.do_step()
    return model.adapter_contents()["adapter_model.safetensors"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = FastModel.fresh(_SEED)
    for _ in range(_HALF):
        model.do_step()
    for name, content in model.contents().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_resumed_model_ends_as_the_uninterrupted_one(checkpoint: Path):
    resumed = fast_model.load(checkpoint)

    assert resumed.step == _HALF
    assert finished(resumed) == finished(FastModel.fresh(_SEED))


@pytest.mark.parametrize("part", ["weights", "momentum", "python", "numpy", "step"])
def test_a_part_of_the_state_that_is_not_restored_shows_in_the_weights(checkpoint: Path, part: str):
    resumed = fast_model.load(checkpoint)
    setattr(resumed, part, getattr(FastModel.fresh(_SEED), part))

    assert finished(resumed) != finished(FastModel.fresh(_SEED))


def test_each_seed_has_a_golden_run_of_its_own():
    one, same, other = (fast_model.golden(seed, _STEPS) for seed in (_SEED, _SEED, _SEED + 1))

    assert isinstance(one, Golden)
    assert one == same
    assert len(set(one.losses)) == _STEPS
    assert other.adapter_sha256 != one.adapter_sha256
