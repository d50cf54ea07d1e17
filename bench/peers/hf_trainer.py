"""The peer that most people start from: transformers' Trainer with PEFT.

Usage: hf_trainer.py JOB.json
"""

# pyright: basic, reportMissingImports=false
# Checked loosely: what it imports is in the peer's environment only.

import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from recorder import Recorder, arguments_of, read_job, read_rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)


class Rows(torch.utils.data.Dataset):
    """Rows with the attention mask that a tokenizer would have made."""

    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index]
        return {**row, "attention_mask": [1] * len(row["input_ids"])}


def main() -> None:
    job = read_job(sys.argv[1])
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    arguments = TrainingArguments(
        **arguments_of(job), train_sampling_strategy="sequential", remove_unused_columns=False
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(read_rows(job["rows"])),
        data_collator=_collator(job),
        callbacks=[Recorder(Path(job["steps"]))],
    )
    trainer.train()


def _collator(job: dict[str, Any]) -> Any:
    if job["variant"] == "flattened":
        return DataCollatorWithFlattening()
    return DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job["model"]))


if __name__ == "__main__":
    main()
