"""Plans: exact counts, warnings, and memory that is what a run then takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.errors import NoMatchingLayers
from app.domain.events import MemoryEvent
from app.domain.plans import PlanFacts
from app.domain.runs import RunFile
from app.domain.tools import PlanRequest
from tests.training_runs import CHAT_ROWS, ROOT, Workplace, read_events
from worker import launcher
from worker.training import planning

_ROWS = [{"text": f"{number} " + "word " * 400} for number in range(8)]


@pytest.fixture
def workplace(tmp_path: Path, tiny_llama: Path) -> Workplace:
    return Workplace(tmp_path, tiny_llama)


def facts_of(run: RunFile, scratch: Path) -> PlanFacts:
    return planning.plan(PlanRequest(run=run), scratch).facts


def test_counts_are_those_of_the_run(workplace: Workplace, tmp_path: Path):
    training = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "save_steps": 10}
    run = workplace.run_file(training=training)
    attempt = workplace.train(training=training)

    facts = facts_of(run, tmp_path)

    ready = attempt.ready
    assert facts.work.steps == ready.total_steps == 10
    assert facts.work.steps_per_epoch == 5
    assert facts.work.num_rows == ready.num_trained_rows == len(CHAT_ROWS)
    assert facts.work.num_trainable_parameters == ready.num_trainable_parameters
    per_epoch = sum(e.metrics.num_tokens for e in attempt.steps if e.step <= 5)
    assert facts.work.tokens_per_epoch == per_epoch
    assert facts.work.tokens_per_step == pytest.approx(per_epoch / len(CHAT_ROWS) * 2)
    size = sum(f.stat().st_size for f in (attempt.folder / "checkpoint-10").iterdir())
    assert facts.checkpoint_bytes == pytest.approx(size, abs=100_000)


def test_weights_adapter_and_optimizer_are_exact(workplace: Workplace, tmp_path: Path):
    run = workplace.run_file(lora={"r": 4, "target_modules": ["q_proj"]})

    parts = {part.name: part for part in facts_of(run, tmp_path).memory.parts}

    # Two layers of 64 inputs and 64 outputs, A and B of rank 4, float32.
    assert parts["adapter"].expected_bytes == 2 * (64 + 64) * 4 * 4
    assert parts["gradients"].expected_bytes == parts["adapter"].expected_bytes
    assert parts["optimizer"].expected_bytes == 2 * parts["adapter"].expected_bytes
    weights = (workplace.model_folder / "model.safetensors").stat().st_size
    assert parts["weights"].expected_bytes == pytest.approx(weights, rel=0.01)


def test_more_rows_at_once_need_more_and_recomputing_needs_less(
    workplace: Workplace, tmp_path: Path
):
    def activations(**training: Any) -> int:
        run = workplace.run_file(rows=_ROWS, row_format="text", training=training)
        parts = {part.name: part for part in facts_of(run, tmp_path).memory.parts}
        return parts["activations"].expected_bytes

    one, four = (activations(per_device_train_batch_size=size) for size in (1, 4))
    recomputed = activations(per_device_train_batch_size=4, gradient_checkpointing=True)

    assert four == pytest.approx(4 * one, rel=0.05)
    assert recomputed < four / 2


def test_the_largest_micro_batch_fits_and_the_next_does_not(workplace: Workplace, tmp_path: Path):
    def planned(size: int, limit_gb: float) -> PlanFacts:
        run = workplace.run_file(
            rows=_ROWS * 8,
            row_format="text",
            training={"per_device_train_batch_size": size},
            resources={"max_memory_gb": limit_gb},
        )
        return facts_of(run, tmp_path)

    limit_gb = planned(20, 1000).memory.expected_bytes / 1e9 + 1e-6

    largest = planned(8, limit_gb).largest_micro_batch_size

    assert 19 <= largest <= 20
    assert planned(largest, limit_gb).fits
    assert not planned(22, limit_gb).fits
    assert planned(8, 1000).largest_micro_batch_size == len(_ROWS) * 8


@pytest.mark.parametrize(
    ("code", "groups"),
    [
        ("nothing_learned", {"training": {"max_steps": 1, "warmup_steps": 1}}),
        ("less_than_a_step", {"training": {"num_train_epochs": 0.01}}),
        ("save_steps_beyond_the_end", {"training": {"max_steps": 3, "save_steps": 4}}),
        ("packing_useless", {"training": {"packing": True}, "dataset": {"max_length": 40}}),
        ("rows_cut", {"dataset": {"max_length": 45}}),
        (
            "rows_dropped",
            {
                "dataset": {
                    "max_length": 45,
                    "on_too_long": "drop",
                    "max_dropped_fraction": 1,
                }
            },
        ),
    ],
)
def test_what_is_hardly_meant_is_warned_of(
    workplace: Workplace, tmp_path: Path, code: str, groups: dict[str, Any]
):
    found = facts_of(workplace.run_file(**groups), tmp_path).warnings
    usual = facts_of(workplace.run_file(training={"max_steps": 10}), tmp_path).warnings

    assert code in [each.code for each in found]
    assert usual == ()


def test_adapters_that_fit_no_layer_are_refused(workplace: Workplace, tmp_path: Path):
    run = workplace.run_file(lora={"r": 4, "target_modules": ["c_attn"]})

    with pytest.raises(NoMatchingLayers, match="it has"):
        facts_of(run, tmp_path)


@pytest.mark.parametrize("limited", [False, True])
def test_expected_memory_is_within_15_percent_of_the_peak(
    tmp_path: Path, tiny_llama: Path, limited: bool
):
    # Large enough that activations outweigh what the interpreter and the libraries need.
    run = Workplace(tmp_path, _middle_model(tmp_path, tiny_llama)).run_file(
        rows=[{"prompt": row["text"], "completion": "a"} for row in _ROWS],
        row_format="prompt-completion",
        lora={"r": 8, "target_modules": "all-linear"},
        training={"max_steps": 1, "per_device_train_batch_size": 8, "warmup_steps": 0},
        resources={"max_memory_gb": 1000} if limited else {},
    )

    subprocess.run(
        [sys.executable, "-c", _TRAINER, str(run.attempt_folder)],
        cwd=ROOT,
        env=launcher.environment(),
        check=True,
    )

    measured = [e.memory for e in read_events(run) if isinstance(e, MemoryEvent)][-1]
    expected = facts_of(run, tmp_path).memory
    fixed = {"runtime", "weights"}
    assert sum(p.expected_bytes for p in expected.parts if p.name not in fixed) > 500e6
    assert expected.expected_bytes == pytest.approx(measured.peak_bytes, rel=0.15)
    assert expected.low_bytes < measured.peak_bytes < expected.high_bytes
    assert measured.expected_bytes == (expected.expected_bytes if limited else None)


_TRAINER = """
import os, sys
from pathlib import Path
from worker import trainer
reader, writer = os.pipe()
sys.exit(trainer.main(Path(sys.argv[1]), reader))
"""


def _middle_model(folder: Path, tokenizer: Path) -> Path:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    target = folder / "middle"
    config = LlamaConfig.from_pretrained(
        tokenizer,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).save_pretrained(target)
    return target
