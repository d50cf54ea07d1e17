"""A QLoRA job with 8-bit moments, through the API."""

import json
from typing import Any

import pytest

from tests.e2e.rows import ROWS, spec
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.services


def events_of(stack: Stack, job_id: str) -> list[dict[str, Any]]:
    """Return what the trainer reported, from the stream of a job that has ended."""
    lines = stack.http.get(f"/jobs/{job_id}/stream").text.splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


@pytest.mark.parametrize("shared_stack", ["sqlite"], indirect=True)
def test_a_qlora_job_trains_pauses_resumes_and_answers_on_its_quantized_base(stack: Stack):
    wanted = spec(stack, stack.upload(ROWS), max_steps=12, save_steps=4, optim="paged_adamw_8bit")
    wanted |= {"adapter": "qlora", "lora": {**wanted["lora"], "target_modules": "all-linear"}}
    job_id = stack.submit(wanted)
    stack.wait_for_step(job_id, 5)
    assert stack.post(job_id, "pause").status_code == 200
    stack.wait_for_state(job_id, "paused")

    other_base = stack.post(job_id, "resume", {"quantization": {"bnb_4bit_quant_type": "fp4"}})
    same_base = stack.post(job_id, "resume", {"checkpoint": 4})
    job = stack.wait_for_state(job_id, "succeeded")
    answer = stack.post(
        job_id,
        "generate",
        {
            "messages": [[{"role": "user", "content": "What is 1 and one?"}]],
            "checkpoint": "final",
            "max_new_tokens": 2,
        },
    )

    assert (other_base.status_code, same_base.status_code) == (422, 200)
    assert "quantization" in other_base.json()["error"]["message"]
    assert (job["step"], job["attempt"], job["spec"]["quantization"]["load_in_4bit"]) == (
        12,
        2,
        True,
    )
    assert answer.status_code == 200, answer.text
    reported = events_of(stack, job_id)
    (first, second) = [each for each in reported if each.get("kind") == "ready"]
    assert (first["step"], second["step"]) == (0, 4)
    assert first["num_quantized_parameters"] == second["num_quantized_parameters"] == 73_728
    assert 73_728 / 2 < first["quantized_bytes"] < 73_728
    assert len(first["target_modules"]) == 14
    assert "no_paging" in {each["type"] for each in stack.events(job_id)}
