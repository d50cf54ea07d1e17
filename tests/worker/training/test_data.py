"""The fate of every line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from app.domain.errors import UnusableData
from app.domain.options import DatasetSpec
from tests.training_runs import DATASET_ID
from worker.training import data
from worker.training.data import TrainingData

SHORT = {"prompt": "a", "completion": " b"}  # 3 tokens with the end token
LONG_COMPLETION = {"prompt": "a", "completion": " b" * 20}  # 22 tokens
LONG_PROMPT = {"prompt": " a" * 20, "completion": " b"}


def load(
    path: Path, tokenizer: PreTrainedTokenizerBase, *records: dict[str, Any], **spec: Any
) -> TrainingData:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(content)
    return data.load(
        path,
        tokenizer,
        DatasetSpec(id=DATASET_ID, max_length=8, **{"max_dropped_fraction": 1.0, **spec}),
        row_format="prompt-completion",
        sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_a_long_row_is_cut_at_its_end(path: Path, tokenizer: PreTrainedTokenizerBase):
    loaded = load(path, tokenizer, SHORT, LONG_COMPLETION)

    assert [len(row.ids) for row in loaded.rows] == [3, 8]
    assert (loaded.num_rows, loaded.num_truncated, loaded.num_dropped) == (2, 1, 0)


def test_a_row_that_loses_all_its_targets_is_dropped_for_that_reason(
    path: Path, tokenizer: PreTrainedTokenizerBase
):
    loaded = load(path, tokenizer, SHORT, LONG_PROMPT)

    assert [row.line for row in loaded.rows] == [1]
    assert loaded.dropped == {data.NO_TARGETS_LEFT: 1}


def test_a_long_row_can_be_dropped_instead(path: Path, tokenizer: PreTrainedTokenizerBase):
    loaded = load(path, tokenizer, LONG_COMPLETION, SHORT, on_too_long="drop")

    assert [row.line for row in loaded.rows] == [2]
    assert loaded.dropped == {data.TOO_LONG: 1}


def test_a_long_row_can_fail_the_job_naming_the_line(
    path: Path, tokenizer: PreTrainedTokenizerBase
):
    with pytest.raises(UnusableData, match="line 2 has 22 tokens, more than max_length 8"):
        load(path, tokenizer, SHORT, LONG_COMPLETION, on_too_long="fail")


def test_too_many_dropped_rows_fail_the_job(path: Path, tokenizer: PreTrainedTokenizerBase):
    rows = [SHORT, SHORT, LONG_PROMPT]

    assert load(path, tokenizer, *rows, max_dropped_fraction=0.34).num_dropped == 1
    with pytest.raises(UnusableData, match="1 of 3 rows would be left out"):
        load(path, tokenizer, *rows, max_dropped_fraction=0.33)


def test_rows_without_any_target_fail_the_job(path: Path, tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(UnusableData, match="none of the 1 rows has a token to train on"):
        load(path, tokenizer, LONG_PROMPT)


def test_a_file_that_changed_since_the_upload_is_refused(
    path: Path, tokenizer: PreTrainedTokenizerBase
):
    path.write_text(json.dumps(SHORT))

    with pytest.raises(UnusableData, match="not the one that was uploaded"):
        data.load(
            path,
            tokenizer,
            DatasetSpec(id=DATASET_ID),
            row_format="prompt-completion",
            sha256="0" * 64,
        )


def test_a_row_of_another_format_is_refused_with_its_line(
    path: Path, tokenizer: PreTrainedTokenizerBase
):
    with pytest.raises(UnusableData, match="line 2 is a text row among prompt-completion rows"):
        load(path, tokenizer, SHORT, {"text": "c"})


def test_a_bad_row_is_refused_with_its_line(path: Path, tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(UnusableData, match="line 2: completion is missing"):
        load(path, tokenizer, SHORT, {"prompt": "c"})


def test_equal_tokens_and_masks_have_equal_fingerprints(
    path: Path, tokenizer: PreTrainedTokenizerBase
):
    one = load(path, tokenizer, SHORT, LONG_COMPLETION)
    same = load(path, tokenizer, SHORT, LONG_COMPLETION)
    other_masks = load(path, tokenizer, SHORT, LONG_COMPLETION, train_on_inputs=True)

    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != other_masks.fingerprint()
