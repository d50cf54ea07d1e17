"""Fixtures of the tests of exports: small models, and what was trained on them once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.checkpoints import MANIFEST_NAME, hash_file
from app.domain.runs import FINAL_FOLDER, RunFile
from app.domain.tools import ExportRequest
from tests.services.place import (
    database,
    driver,
    home,
    outside,
    postgres_url,
    settings,
    shelf,
    tmp_path,
)
from tests.training_runs import Workplace
from worker import trainer

__all__ = ["database", "driver", "home", "outside", "postgres_url", "settings", "shelf", "tmp_path"]

# Before any test module imports peft by itself, which would pull bitsandbytes in.
trainer.preload()

LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
TRAINING = {"max_steps": 6, "learning_rate": 2e-2, "per_device_train_batch_size": 2}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small models by name."""
    from tests.exports import models as small

    parent = tmp_path_factory.mktemp("models")
    return {
        "llama": small.llama(parent / "small-llama"),
        "other": small.llama(parent / "other-llama", seed=1),
        "untied": small.llama(parent / "untied-llama", tied=False),
        "qwen2": small.qwen2(parent / "small-qwen2"),
    }


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]
) -> Callable[..., RunFile]:
    """Return a function that trains a small model, once for each set of options."""
    done: dict[str, RunFile] = {}

    def train(model: str = "llama", **groups: Any) -> RunFile:
        key = repr((model, groups))
        if key not in done:
            place = Workplace(tmp_path_factory.mktemp("run"), models[model])
            lora = {**LORA, **groups.pop("lora", {})}
            attempt = place.train(**{"training": TRAINING, **groups, "lora": lora})
            assert attempt.exit_code == 0, attempt.events[-1]
            run_json = (attempt.folder / "run.json").read_bytes()
            done[key] = RunFile.model_validate_json(run_json)
        return done[key]

    return train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to export into."""
    made = tmp_path / "export"
    made.mkdir()
    return made


def request_for(run: RunFile, **choices: Any) -> ExportRequest:
    """Return the request for an export of a run's final adapter."""
    final = run.attempt_folder / FINAL_FOLDER
    is_quantized = run.spec.quantization.load_in_4bit
    return ExportRequest.model_validate(
        {
            "export_id": "exp-0199c2f4a1b3e07d5c2f9a81",
            "name": "tuned",
            "format": "merged",
            "dtype": "auto",
            "base": "dequantized" if is_quantized else "original",
            "spec": run.spec,
            "trained_on": "cpu",
            "model_folder": run.model_folder,
            "adapter_folder": final,
            "adapter_manifest_sha256": hash_file(final / MANIFEST_NAME),
            "cache_folder": run.cache_folder,
            "num_threads": 1,
            **choices,
        }
    )
