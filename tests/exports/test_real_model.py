"""SmolLM2 with an adapter, merged: plain transformers says what the live adapter says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain.exports import FILES_FOLDER
from app.domain.runs import RUN_FILE, RunFile
from app.domain.tools import ExportRequest
from tests.exports.conftest import request_for
from tests.training_runs import Workplace
from worker.training.export import live, produce

pytestmark = pytest.mark.model

QUANTIZED = {"adapter": "qlora", "quantization": {"load_in_4bit": True}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> RunFile:
    """A short run on the real model."""
    attempt = Workplace(tmp_path_factory.mktemp("real"), smollm2).train(
        num_threads=2,
        lora={"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        training={"max_steps": 2, "learning_rate": 2e-3, "warmup_steps": 0},
    )
    assert attempt.exit_code == 0
    return RunFile.model_validate_json((attempt.folder / RUN_FILE).read_bytes())


def request_of(run: RunFile, adapter: str) -> ExportRequest:
    """Return the request for an export of the adapter, on a base in 32 or in 4 bits."""
    if adapter == "qlora":
        spec = {**run.spec.model_dump(mode="json"), **QUANTIZED}
        run = RunFile.model_validate({**run.model_dump(), "spec": spec})
    return request_for(run, num_threads=2)


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_a_merged_model_agrees_with_the_live_adapter(run: RunFile, folder: Path, adapter: str):
    request = request_of(run, adapter)

    result = produce.produce(request, folder)

    assert result.parity.is_proven, result.parity.problems
    assert result.parity.greedy_agreement >= 0.99
    assert result.parity.num_tokens >= 50
    files = folder / FILES_FOLDER
    tokenizer = AutoTokenizer.from_pretrained(files, local_files_only=True)
    merged = AutoModelForCausalLM.from_pretrained(files, local_files_only=True).eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        exported = merged(**ids).logits[0, -1]
        adapted = live.load(request, request.adapter_folder)(**ids).logits[0, -1]
    assert exported.argmax() == adapted.argmax()
    assert (exported - adapted).abs().max() < 1e-2
