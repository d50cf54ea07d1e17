"""Writes down what each step of a transformers Trainer did, for all peers in the same way.

Runs in the environments of the peers: only the standard library and transformers are there.
"""

# pyright: basic, reportMissingImports=false
# Checked loosely: what it imports is in the peer's environment only.

import json
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback


class Recorder(TrainerCallback):
    """Appends one line per step to a file.

    The loss is taken where the Trainer computes it, because what it logs is rounded. A step ends
    when its callback runs; its time is the distance to the end of the step before, so loading the
    batch and logging are in it.
    """

    def __init__(self, out: Path) -> None:
        self._file = out.open("w")
        self._last: dict[str, Any] = {}
        self._watch_losses()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        line = {"step": state.global_step, "at": time.time(), **self._last}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _watch_losses(self) -> None:
        original = Trainer.training_step

        def training_step(trainer: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            labels = inputs["labels"]
            num_targets = int((labels[..., 1:] != -100).sum())
            loss = original(trainer, model, inputs, *rest, **more)
            self._last = {
                "loss": loss.item(),
                "num_targets": num_targets,
                "num_positions": labels.numel(),
            }
            return loss

        Trainer.training_step = training_step  # pyright: ignore[reportAttributeAccessIssue]


def read_job(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def read_rows(path: str) -> list[dict[str, list[int]]]:
    """Return the tokens and labels of every row, in the order in which they are trained on."""
    with Path(path).open() as file:
        return [json.loads(line) for line in file]


def arguments_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return the training arguments that make the work the same everywhere.

    All else stays at the peer's own default; no peer shuffles, and none computes on a GPU.
    """
    return {
        "output_dir": job["out_folder"],
        "max_steps": job["num_steps"],
        "per_device_train_batch_size": job["batch_size"],
        "gradient_accumulation_steps": 1,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
