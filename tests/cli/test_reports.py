"""Receipts and previews on the command line."""

import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.cli.conftest import DATASET_ID, JOB_ID, Answer

PROBLEM = {
    "line": 2,
    "fate": "truncated",
    "reason": "too_long",
    "detail": "22 tokens cut\x1b[2J to max_length 8",
    "num_tokens": 22,
    "num_tokens_cut": 14,
}
RECEIPT = {
    "num_lines": 300,
    "num_kept": 100,
    "num_truncated": 150,
    "num_dropped": 50,
    "dropped_reasons": {"bad_json": 20, "no_targets": 30},
    "num_train_rows": 200,
    "num_eval_rows": 50,
    "num_units": 90,
    "num_tokens": 1000,
    "num_target_tokens": 400,
    "num_tokens_cut": 9,
    "longest_tokens": 8,
    "num_turns_without_end": 0,
    "problems": [PROBLEM],
}


def token(number: int, text: str, *, is_target: bool) -> dict[str, Any]:
    return {"id": number, "text": text, "is_target": is_target}


PREVIEW = {
    "dataset_id": DATASET_ID,
    "base_model": "tiny",
    "format": "chat",
    "offset": 4,
    "rows": [
        {
            "line": 5,
            "text": "ask\nanswer",
            "tokens": [
                token(1, "ask\x1b[2J\n", is_target=False),
                token(2, "ans", is_target=True),
                token(3, "wer", is_target=True),
            ],
            "num_tokens": 3,
            "num_targets": 2,
            "num_tokens_cut": 14,
            "is_truncated": True,
            "ends_turn": False,
            "problem": PROBLEM,
        }
    ],
    "has_more": True,
}


def test_a_receipt_is_printed_with_its_problems_and_where_the_others_are(api, lorad):
    api.on(f"GET /jobs/{JOB_ID}/receipt", Answer(RECEIPT))

    done = lorad("receipt", JOB_ID)

    assert done.code == 0
    lines = done.stdout.splitlines()
    assert any(line.split() == ["dropped", "50"] for line in lines)
    assert "20 bad_json, 30 no_targets" in done.stdout
    assert lines[-1].split()[:5] == ["2", "truncated", "too_long", "22", "14"]
    assert "\x1b" not in done.stdout
    assert "the first 1 of 200 lines" in done.stderr
    assert f"lorad receipt {JOB_ID} --lines" in done.stderr


def test_a_receipt_can_be_printed_as_json_or_line_by_line(api, lorad):
    fates = '{"line":1,"fate":"kept"}\n{"line":2,"fate":"dropped"}\n'
    api.on(f"GET /jobs/{JOB_ID}/receipt", Answer(RECEIPT))
    api.on(f"GET /jobs/{JOB_ID}/receipt/lines", Answer(fates, type="application/jsonl"))

    assert json.loads(lorad("receipt", JOB_ID, "-o", "json").stdout) == RECEIPT
    assert lorad("receipt", JOB_ID, "--lines").stdout == fates


def test_a_preview_marks_what_is_learned(api, lorad):
    api.on(f"GET /datasets/{DATASET_ID}/preview", Answer(PREVIEW))

    done = lorad("preview", DATASET_ID, "--base-model", "tiny", "--rows", "1", "--offset", "4")

    assert done.code == 0
    assert done.stdout.splitlines() == [
        "line 5, 3 tokens, 2 to learn, 14 cut, end of turn NOT learned",
        "truncated: 22 tokens cut?[2J to max_length 8",
        "ask?[2J",
        "[[answer]]",
        "",
    ]
    assert "--offset 5" in done.stderr
    assert parse_qs(api.requests[-1].query) == {
        "base_model": ["tiny"],
        "rows": ["1"],
        "offset": ["4"],
    }


def test_a_terminal_gets_colours_and_no_marks(api, lorad, monkeypatch):
    api.on(f"GET /datasets/{DATASET_ID}/preview", Answer(PREVIEW))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")

    done = lorad("preview", DATASET_ID, "--base-model", "tiny")

    assert "[[" not in done.stdout
    assert "answer" in done.stdout


def test_options_of_a_preview_are_sent(api, lorad):
    api.on(f"GET /datasets/{DATASET_ID}/preview", Answer(PREVIEW))
    options = ["--max-length", "64", "--format", "text", "--map", "text=story", "--train-on-inputs"]

    done = lorad("preview", DATASET_ID, "--base-model", "tiny", *options, "-o", "json")

    assert json.loads(done.stdout) == PREVIEW
    query = parse_qs(api.requests[-1].query)
    assert json.loads(query["field_mapping"][0]) == {"text": "story"}
    assert query["format"] == ["text"]
    assert query["max_length"] == ["64"]
    assert query["train_on_inputs"] == ["true"]


@pytest.mark.parametrize("pair", ["prompt", "=x", "x="])
def test_a_mapping_that_is_none_is_refused_before_anything_is_sent(api, lorad, pair):
    done = lorad("preview", DATASET_ID, "--base-model", "tiny", "--map", pair)

    assert done.code == 2
    assert "OURS=THEIRS" in done.stderr
    assert api.requests == []
