"""Answers of the real SmolLM2, alone and with adapters that training made."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.inference import Adapter, HostKey
from app.domain.options import QuantizationSpec
from tests.training_runs import Workplace
from tests.worker.inference.conftest import SHORT, Answers, ask
from worker.training import quantize
from worker.training.inference.engine import Engine

ROWS = [
    {
        "messages": [
            {"role": "user", "content": SHORT},
            {"role": "assistant", "content": "Beetroot!"},
        ]
    }
]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def answers_of(key: HostKey, *requests: Any) -> tuple[Engine, Answers]:
    answers = Answers()
    engine = Engine(key, device=torch.device("cpu"), most_adapters=1, emit=answers.take)
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        engine.step()
    return engine, answers


@pytest.mark.model
def test_an_adapter_changes_the_answer_to_what_it_was_taught_and_the_base_stays(
    tmp_path: Path, smollm2: Path
):
    run = Workplace(tmp_path, smollm2).train(
        rows=ROWS,
        lora={"r": 8, "target_modules": "standard"},
        training={"max_steps": 8, "learning_rate": 5e-3, "lr_scheduler_type": "constant"},
    )
    taught = Adapter(name="taught", folder=run.folder / "final")

    _, answers = answers_of(
        HostKey(model_folder=smollm2), ask("taught", adapter=taught), ask("base"), ask("again")
    )

    assert answers.text("taught") == "Beetroot!"
    assert answers.text("base") == answers.text("again") == "The capital of France is Paris."
    assert answers.finished("base").reason == "stop"


def test_answers_of_a_qlora_job_come_from_the_base_that_was_trained_on(
    tmp_path: Path, tiny_llama: Path
):
    run = Workplace(tmp_path, tiny_llama).train(
        rows=ROWS, adapter="qlora", quantization=NF4, training={"max_steps": 2, "save_steps": 2}
    )
    state = json.loads((run.checkpoint(2).folder / "training_state.json").read_text())
    key = HostKey(model_folder=tiny_llama, quantization=QuantizationSpec.model_validate(NF4))
    final = Adapter(name="final", folder=run.folder / "final")

    engine, answers = answers_of(key, ask("a", adapter=final), ask("b"))

    assert quantize.digest(engine.base) == state["identity"]["base_quantized_sha256"]
    assert answers.finished("a").num_tokens <= 12
    assert answers.finished("b").num_tokens <= 12
