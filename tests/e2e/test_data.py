"""Data through the API: previews beside training, receipts of jobs that succeed and that fail."""

import json
from typing import Any

import pytest

from tests.e2e.rows import ROWS, spec, submitted
from tests.fixtures.stack import Stack

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("shared_stack", ["sqlite"], indirect=True),
]


def with_data(stack: Stack, dataset: str, options: dict[str, Any], **training: Any) -> str:
    body = spec(stack, dataset, **{"max_steps": 3, "save_steps": None, **training})
    body["dataset"] |= options
    return stack.submit(body)


def test_a_preview_is_answered_while_a_job_trains_on_the_only_slot(stack: Stack):
    (model,) = (stack.home / "models").iterdir()
    job_id = submitted(stack, max_steps=10_000, save_steps=None)
    stack.wait_for_step(job_id, 1)
    dataset = stack.job(job_id)["spec"]["dataset"]["id"]

    answer = stack.http.get(f"/datasets/{dataset}/preview?base_model={model.name}&rows=2")

    assert answer.status_code == 200, answer.text
    assert stack.job(job_id)["state"] == "running"
    stack.post(job_id, "cancel")
    stack.wait_for_state(job_id, "cancelled")
    first, second = answer.json()["rows"]
    assert (first["line"], second["line"], answer.json()["has_more"]) == (1, 2, True)
    learned = "".join(t["text"] for t in first["tokens"] if t["is_target"])
    assert learned == "It is 1<|im_end|>"
    assert first["ends_turn"]
    assert first["num_targets"] == sum(t["is_target"] for t in first["tokens"])


def test_the_receipt_of_a_job_accounts_for_every_line_whether_it_succeeds_or_fails(stack: Stack):
    dataset = stack.upload(ROWS)

    good = with_data(stack, dataset, {"max_length": 48, "val_size": 4}, packing=True)
    strict = with_data(stack, dataset, {"max_length": 44, "on_too_long": "fail"})
    stack.wait_for_state(good, "succeeded")
    failed = stack.wait_for_state(strict, "failed")

    receipt = stack.http.get(f"/jobs/{good}/receipt").json()
    fates = stack.http.get(f"/jobs/{good}/receipt/lines").text.splitlines()
    assert receipt["num_lines"] == len(ROWS) == len(fates)
    assert receipt["num_kept"] + receipt["num_truncated"] + receipt["num_dropped"] == len(ROWS)
    assert (
        receipt["num_eval_rows"] == 4 == sum(json.loads(each).get("held_out", 0) for each in fates)
    )
    assert receipt["num_train_rows"] + 4 + receipt["num_dropped"] == len(ROWS)
    refused = stack.http.get(f"/jobs/{strict}/receipt").json()
    assert refused["dropped_reasons"]["too_long"] > 0
    assert failed["error"]["code"] == "unusable_data"
    assert f"{refused['dropped_reasons']['too_long']} of 24 rows" in failed["error"]["message"]
