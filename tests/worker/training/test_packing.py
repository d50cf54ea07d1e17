"""Packing fills sequences, and nothing but the number of steps can tell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from tests.training_runs import CHAT_ROWS, Attempt, Workplace
from worker.training import data, loss, model, packing
from worker.training.batch import lay_end_to_end
from worker.training.encode import EncodedRow
from worker.training.metrics import batch_sha
from worker.training.sampler import Sampler

CPU = torch.device("cpu")
PACKED = {
    "packing": True,
    "per_device_train_batch_size": 1,
    "num_train_epochs": 3,
    "learning_rate": 1e-2,
    "save_steps": 2,
}
# The rows have 40 to 60 tokens: two or three of them fill a pack.
DATASET = {"max_length": 128}


def fill_fraction(lengths: np.ndarray, packs: Sequence[tuple[int, ...]], capacity: int) -> float:
    return float(lengths.sum()) / (len(packs) * capacity)


def test_lognormal_lengths_are_packed_almost_without_a_gap():
    lengths = np.clip(np.random.default_rng(3).lognormal(5.3, 0.8, 20_000), 1, 2048).astype(int)

    packs = packing.pack(lengths, capacity=2048)

    assert fill_fraction(lengths, packs, 2048) >= 0.99
    assert list(packs) == list(packing.pack(lengths, capacity=2048))


@given(
    lengths=st.lists(st.integers(1, 5000), max_size=60),
    capacity=st.sampled_from([5000, 5001, 262_144]),
)
def test_every_row_is_in_one_pack_where_best_fit_puts_it(lengths: list[int], capacity: int):
    packs = packing.pack(np.array(lengths, dtype=np.int64), capacity=capacity)

    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= capacity for pack in packs)
    assert len(packs) == len(_by_looking_at_every_pack(lengths, capacity))


def _by_looking_at_every_pack(lengths: list[int], capacity: int) -> list[int]:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return rooms


def test_a_sample_has_the_same_logits_alone_and_packed(tiny_llama: Path):
    tiny = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)
    draw = np.random.default_rng(5).integers
    rows = [
        EncodedRow(n, draw(0, 49152, length, dtype=np.int32), np.ones(length, bool))
        for n, length in enumerate((9, 31, 17))
    ]

    def logits(*chosen: EncodedRow) -> torch.Tensor:
        with torch.no_grad():
            return tiny(**loss._inputs(lay_end_to_end(chosen, device=CPU))).logits[0]

    together = logits(*rows).split([len(row.ids) for row in rows])

    for row, ours in zip(rows, together, strict=True):
        torch.testing.assert_close(ours, logits(row), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    """Three epochs over packs, one pack a step, without interruption."""
    return train(Workplace(tmp_path_factory.mktemp("packed"), tiny_llama))


def train(workplace: Workplace, **changes: Any) -> Attempt:
    training = {**PACKED, **changes.pop("training", {})}
    arguments = {"training": training, "lora": LORA, "dataset": DATASET, **changes}
    attempt = workplace.train(**arguments)
    assert attempt.exit_code == 0
    return attempt


LORA = {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def test_steps_and_epochs_count_packs_and_every_line_is_told_of(packed: Attempt):
    num_packs = packed.ready.num_units
    assert num_packs is not None
    assert num_packs < len(CHAT_ROWS)
    assert packed.ready.total_steps == len(packed.steps) == 3 * num_packs
    assert packed.steps[num_packs - 1].metrics.epoch == 1.0
    per_epoch = sum(e.metrics.num_tokens for e in packed.steps[:num_packs])
    assert per_epoch == sum(e.metrics.num_tokens for e in packed.steps[num_packs : 2 * num_packs])
    assert max(e.metrics.num_tokens for e in packed.steps) <= DATASET["max_length"]


def test_a_packed_step_has_the_token_weighted_loss_of_its_rows_and_names_their_lines(
    workplace: Workplace, tokenizer: PreTrainedTokenizerBase
):
    steps = {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 9}
    plain = {"r": 4, "target_modules": ["q_proj"]}

    together = train(workplace, training=steps, lora=plain)
    apart = train(workplace, training={**steps, "packing": False}, lora=plain)

    ours, theirs = together.steps[0].metrics, apart.steps[0].metrics
    assert ours.num_tokens == theirs.num_tokens
    assert ours.num_target_tokens == theirs.num_target_tokens
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    loaded = data.load(workplace.run_file(training=PACKED, dataset=DATASET), tokenizer)
    order = Sampler(num_units=len(loaded.units), units_per_step=9, seed=7).units_of(1)
    rows = [row for unit in order for row in loaded.units[unit]]
    assert ours.batch_sha == batch_sha(loaded.rows[row].line for row in rows)
    assert len(rows) == len(CHAT_ROWS)


def test_a_run_stopped_within_an_epoch_of_packs_continues_exactly(
    workplace: Workplace, packed: Attempt
):
    num_packs = packed.ready.num_units
    assert num_packs is not None
    assert num_packs > 2, "or stopping at 2 is no stop within an epoch"
    arguments = {"training": PACKED, "lora": LORA, "dataset": DATASET}
    first = workplace.train_until(2, "pause", **arguments)

    second = workplace.train(**arguments, resume=first.checkpoint(2))

    assert second.exit_code == 0
    assert second.final_adapter == packed.final_adapter
    assert {**first.losses, **second.losses} == packed.losses
    weights = load_file(second.folder / "final" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
