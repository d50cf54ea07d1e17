"""Runs of the real SmolLM2-135M-Instruct: against a reference, against itself, and its adapter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training_runs import CHAT_ROWS, Attempt, Workplace
from tests.worker.training.reference import Reference
from worker.training.sampler import Sampler

pytestmark = pytest.mark.model

_LOAD_WITH_PLAIN_PEFT = """
import json, sys
sys.modules["app"] = sys.modules["worker"] = None  # importing lorad would fail
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = torch.tensor([[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47]])
with torch.no_grad():
    tuned = model(ids).logits
    with model.disable_adapter():
        plain = model(ids).logits
names = [name for name, _ in model.named_parameters() if "lora_" in name]
print(json.dumps({"change": (tuned - plain).abs().max().item(), "matrices": len(names)}))
"""


def test_ten_steps_equal_a_plain_loop_with_padding_and_full_logits(tmp_path: Path, smollm2: Path):
    run = Workplace(tmp_path, smollm2).train(
        lora={"r": 8, "lora_alpha": 16, "target_modules": "standard"},
        training={"per_device_train_batch_size": 2, "max_steps": 10, "warmup_steps": 2.0},
    )
    sampler = Sampler(num_units=len(CHAT_ROWS), units_per_step=2, seed=7)
    reference = Reference(smollm2, seed=7, total_steps=10, warmup=2)

    expected = [
        reference.step([CHAT_ROWS[row] for row in sampler.units_of(step)]) for step in range(1, 11)
    ]

    measured = [(step.metrics.loss, step.metrics.grad_norm) for step in run.steps]
    assert measured == [pytest.approx(pair, rel=1e-4) for pair in expected]


SHORT_ROWS = CHAT_ROWS[2:8:2] + CHAT_ROWS[0:1]
LONG_RUN: dict[str, Any] = {
    "rows": SHORT_ROWS,
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1},
    "training": {"per_device_train_batch_size": 2, "max_steps": 20, "save_steps": 5},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Attempt:
    return Workplace(tmp_path_factory.mktemp("whole"), smollm2).train(**LONG_RUN)


def test_stopping_and_resuming_changes_nothing(
    uninterrupted: Attempt, tmp_path: Path, smollm2: Path
):
    workplace = Workplace(tmp_path, smollm2)

    stopped = workplace.train_until(10, "pause", **LONG_RUN)
    rest = workplace.train(**LONG_RUN, resume=stopped.checkpoint(10))

    assert stopped.events[-1].kind == "stopped"
    assert stopped.losses | rest.losses == uninterrupted.losses
    assert rest.final_adapter == uninterrupted.final_adapter
    assert not rest.notices


def test_the_adapter_works_in_a_process_that_does_not_have_lorad(
    uninterrupted: Attempt, tmp_path: Path, smollm2: Path
):
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-W",
            "error::UserWarning",  # PEFT warns about missing and unexpected keys
            "-c",
            _LOAD_WITH_PLAIN_PEFT,
            smollm2,
            uninterrupted.folder / "final",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded["matrices"] == 60
    assert loaded["change"] > 1e-3
