"""Fixtures of the training tests."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tests.training_runs import Workplace
from worker import trainer

# Before any test module imports peft by itself, which would pull bitsandbytes in.
trainer.preload()


@pytest.fixture
def workplace(tmp_path: Path, tiny_llama: Path) -> Workplace:
    """A place to run the tiny model in."""
    return Workplace(tmp_path, tiny_llama)


@pytest.fixture(scope="session")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with its chat template."""
    from worker.training import model

    return model.load_tokenizer(tiny_llama)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the real SmolLM2, with the chat template that came with it."""
    from worker.training import model

    return model.load_tokenizer(smollm2)
