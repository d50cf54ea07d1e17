"""A preview shows what a run would train on, and what it would not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import DataFile
from app.domain.options import DatasetSpec
from app.domain.previews import PreviewRow
from app.domain.tools import PreviewRequest, PreviewResult
from tests.training_runs import CHAT_ROWS, DATASET_ID, Workplace
from worker.training import data
from worker.training.preview import preview

JAPANESE = {"prompt": "日本", "completion": "東京 🗼"}


@pytest.fixture
def show(tmp_path: Path, tiny_llama: Path):
    def with_rows(
        *records: dict[str, Any], offset: int = 0, num_rows: int = 5, **options: Any
    ) -> PreviewResult:
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        request = PreviewRequest(
            model_folder=tiny_llama,
            dataset=DataFile(path=path, sha256=sha256, format=None),
            options=DatasetSpec(id=DATASET_ID, **options),
            offset=offset,
            num_rows=num_rows,
        )
        return preview(request)

    return with_rows


def text_of(row: PreviewRow, *, targets_only: bool = False) -> str:
    return "".join(t.text for t in row.tokens if t.is_target or not targets_only)


def test_the_tokens_and_the_mask_are_those_of_a_run(
    show, workplace: Workplace, tokenizer: PreTrainedTokenizerBase
):
    options = {"max_length": 40}
    trained = data.load(workplace.run_file(dataset=options), tokenizer).rows

    shown = show(*CHAT_ROWS, num_rows=9, **options).rows

    assert len(shown) == len(trained) == 9
    for ours, row in zip(shown, trained, strict=True):
        assert [token.id for token in ours.tokens] == row.ids.tolist()
        assert [token.is_target for token in ours.tokens] == row.is_target.tolist()
        assert ours.num_targets == row.num_targets
    assert {row.is_truncated for row in shown} == {True, False}


def test_a_chat_row_is_shown_as_text_with_its_answer_and_the_end_of_turn_as_targets(show):
    [row] = show(CHAT_ROWS[0]).rows

    assert text_of(row) == row.text
    assert text_of(row, targets_only=True) == "Paris.<|im_end|>"
    assert (row.line, row.ends_turn, row.is_truncated, row.problem) == (1, True, False, None)


def test_a_character_of_several_tokens_is_shown_whole(show):
    [row] = show(JAPANESE).rows

    assert text_of(row) == "日本東京 🗼<|im_end|>"
    assert len(row.tokens) > len("日本東京 🗼") + 1
    [cut] = show(JAPANESE, max_length=8).rows
    assert cut.is_truncated


def test_rows_that_cannot_be_used_are_shown_with_their_problem(show):
    long = {"prompt": "a" * 500, "completion": "b"}
    shown = show({"prompt": "x"}, long, {"prompt": "x", "completion": "y"}, max_length=8)

    bad, cut, good = shown.rows
    assert bad.problem is not None
    assert cut.problem is not None
    assert (bad.problem.reason, bad.text, bad.tokens) == ("missing_key", None, ())
    assert cut.problem.reason == "no_targets_within_max_length"
    assert (cut.text, cut.tokens) == ("a" * 500 + "b", ())
    assert (good.problem, good.ends_turn, good.line) == (None, None, 3)


def test_an_offset_passes_rows_over(show):
    page = show(*CHAT_ROWS, offset=7, num_rows=1)
    last = show(*CHAT_ROWS, offset=8)

    assert ([row.line for row in page.rows], page.has_more) == ([8], True)
    assert ([row.line for row in last.rows], last.has_more) == ([9], False)


def test_columns_of_other_names_are_mapped(show):
    [row] = show({"question": "x", "completion": "y"}, field_mapping={"prompt": "question"}).rows

    assert (row.text, row.problem) == ("xy", None)
