"""Tests that need a CUDA device; without one they are skipped and say so."""

from pathlib import Path

import pytest
import torch

from tests.training_runs import Workplace
from worker import trainer

# Before any test module imports peft by itself, which would pull bitsandbytes in.
trainer.preload()


@pytest.fixture(autouse=True)
def _device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: torch.cuda.is_available() is False here")


@pytest.fixture
def smollm2_place(tmp_path: Path, smollm2: Path) -> Workplace:
    """A place to run SmolLM2 in."""
    return Workplace(tmp_path, smollm2)
