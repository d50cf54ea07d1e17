"""The peer LLaMA-Factory: what `llamafactory-cli train` calls, on tokenized rows.

Usage: llamafactory_sft.py JOB.json
"""

# pyright: basic, reportMissingImports=false
# Checked loosely: what it imports is in the peer's environment only.

import importlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset


def main() -> None:
    _without_sound()
    from llamafactory.train.tuner import run_exp
    from recorder import Recorder, arguments_of, read_job, read_rows

    job = read_job(sys.argv[1])
    is_packed = job["variant"] == "packed"
    rows = read_rows(job["rows"])
    rows = _packs(rows, job["batch_size"]) if is_packed else [_masked(row) for row in rows]
    tokenized = Path(job["out_folder"]) / "tokenized"
    Dataset.from_list(rows).save_to_disk(tokenized)
    arguments = arguments_of(job)
    if is_packed:
        arguments["per_device_train_batch_size"] = 1
    run_exp(
        {**arguments, **_own(job, tokenized, is_packed=is_packed)}, [Recorder(Path(job["steps"]))]
    )


def _own(job: dict[str, Any], tokenized: Path, *, is_packed: bool) -> dict[str, Any]:
    """Return the settings that only LLaMA-Factory knows."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model"],
        "adapter_name_or_path": job["adapter"],
        "finetuning_type": "lora",
        "template": "smollm2",
        "dataset": "tokenized",  # has to be named, and is not read
        "tokenized_path": str(tokenized),
        "cutoff_len": job["max_length"],
        "neat_packing": is_packed,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        "plot_loss": False,
    }


def _masked(row: dict[str, list[int]]) -> dict[str, list[int]]:
    return {**row, "attention_mask": [1] * len(row["input_ids"])}


def _packs(rows: list[dict[str, list[int]]], batch_size: int) -> list[dict[str, list[int]]]:
    """Join the rows of each batch into one packed row, as `neat_packing` does: batches stay equal.

    Source:
        PackedSupervisedDatasetProcessor: the mask numbers the rows from 1, positions restart.
    """
    packs: list[dict[str, list[int]]] = []
    for start in range(0, len(rows), batch_size):
        pack: dict[str, list[int]] = {
            name: [] for name in ("input_ids", "labels", "attention_mask", "position_ids")
        }
        for number, row in enumerate(rows[start : start + batch_size], start=1):
            length = len(row["input_ids"])
            pack["input_ids"] += row["input_ids"]
            pack["labels"] += row["labels"]
            pack["attention_mask"] += [number] * length
            pack["position_ids"] += range(length)
        # The collator pads to eights, but not the positions.
        padding = -len(pack["input_ids"]) % 8
        for name, value in (("input_ids", 0), ("labels", -100)):
            pack[name] += [value] * padding
        pack["attention_mask"] += [0] * padding
        pack["position_ids"] += [0] * padding
        packs.append(pack)
    return packs


def _without_sound() -> None:
    """Let a module without content stand for torchaudio where that cannot be loaded.

    LLaMA-Factory imports it for sound in data sets. There is no build of it for torch's CPU wheel.
    """
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):
        stand_in = ModuleType("torchaudio")
        stand_in.__spec__ = ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = stand_in


if __name__ == "__main__":
    main()
