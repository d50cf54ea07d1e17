"""An independent trainer to compare with: transformers and PEFT, padded batches, full logits."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

IGNORED = -100


class Reference:
    """A textbook loop; its labels are made from token ids, not from offsets in the text."""

    def __init__(self, model_folder: Path, *, seed: int, total_steps: int, warmup: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        torch.manual_seed(seed)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses an old name of transformers
            self._model = get_peft_model(base, config)
        self._weights = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=2e-4, weight_decay=0.0)
        self._scheduler = get_scheduler(
            "cosine", self._optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
        )

    def step(self, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
        """Train on one batch; return the mean loss and the gradient norm before clipping."""
        loss = self._model(**self._padded([self._labelled(row) for row in rows])).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return loss.item(), norm.item()

    def _labelled(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        question, answer = row["messages"]
        prompt = self._ids([question], add_generation_prompt=True)
        whole = self._ids([question, answer])
        assert whole[: len(prompt)] == prompt
        # The template ends a turn with the end token and a newline; the newline is not trained.
        return whole, [IGNORED] * len(prompt) + whole[len(prompt) : -1] + [IGNORED]

    def _ids(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        return self._tokenizer.apply_chat_template(messages, return_dict=True, **options)[
            "input_ids"
        ]

    def _padded(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        padded = [
            (ids + [0] * (width - len(ids)), labels + [IGNORED] * (width - len(ids)), len(ids))
            for ids, labels in rows
        ]
        return {
            "input_ids": torch.tensor([ids for ids, _, _ in padded]),
            "labels": torch.tensor([labels for _, labels, _ in padded]),
            "attention_mask": torch.tensor(
                [[int(i < n) for i in range(width)] for *_, n in padded]
            ),
        }
