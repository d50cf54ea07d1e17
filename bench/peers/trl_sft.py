"""The peer TRL: SFTTrainer on tokenized rows, in float32 and without gradient checkpointing.

Usage: trl_sft.py JOB.json
"""

# pyright: basic, reportMissingImports=false
# Checked loosely: what it imports is in the peer's environment only.

import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from recorder import Recorder, arguments_of, read_job, read_rows
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    job = read_job(sys.argv[1])
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    arguments = SFTConfig(
        **arguments_of(job),
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        max_length=job["max_length"],
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(read_rows(job["rows"])),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[Recorder(Path(job["steps"]))],
    )
    trainer.train()


if __name__ == "__main__":
    main()
