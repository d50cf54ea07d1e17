"""Short tasks: answers of a model with and without an adapter."""

import os
from pathlib import Path
from typing import Any

import pytest

from app.domain.rows import Message
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_RESULT,
    GenerateRequest,
    GenerateResult,
    ToolFailure,
)
from tests.training_runs import Workplace
from worker import tool_process

FRANCE = (Message("user", "What is the capital of France?"),)
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Beetroot!"},
        ]
    }
]


def ask(folder: Path, model_folder: Path, **facts: Any) -> GenerateResult | ToolFailure:
    request = GenerateRequest(
        model_folder=model_folder, **{"prompts": (FRANCE,), "max_new_tokens": 8, **facts}
    )
    folder.mkdir(exist_ok=True)
    (folder / REQUEST_FILE).write_text(request.model_dump_json())
    reader, writer = os.pipe()
    _KEPT_OPEN.append(writer)  # its end would end this process
    exit_code = tool_process.main(folder, reader)
    result = TOOL_RESULT.validate_json((folder / RESULT_FILE).read_bytes())
    assert exit_code == (1 if isinstance(result, ToolFailure) else 0)
    return result


_KEPT_OPEN: list[int] = []


@pytest.mark.model
def test_the_real_model_knows_the_capital_of_france(tmp_path: Path, smollm2: Path):
    result = ask(tmp_path / "task", smollm2)

    assert isinstance(result, GenerateResult)
    assert result.answers == ("The capital of France is Paris.",)
    assert result.seconds > 0


@pytest.mark.model
def test_an_adapter_changes_the_answer_to_what_it_was_taught(tmp_path: Path, smollm2: Path):
    run = Workplace(tmp_path, smollm2).train(
        rows=ROWS,
        lora={"r": 8, "target_modules": "standard"},
        training={"max_steps": 8, "learning_rate": 5e-3, "lr_scheduler_type": "constant"},
    )

    result = ask(tmp_path / "task", smollm2, adapter_folder=run.folder / "final")

    assert isinstance(result, GenerateResult)
    assert result.answers == ("Beetroot!",)


def test_every_prompt_gets_its_own_answer(tmp_path: Path, tiny_llama: Path):
    other = (Message("system", "Be brief."), Message("user", "Say hello."))

    both = ask(tmp_path / "both", tiny_llama, prompts=(FRANCE, other))
    one = ask(tmp_path / "one", tiny_llama, prompts=(other,))

    assert isinstance(both, GenerateResult)
    assert isinstance(one, GenerateResult)
    assert len(both.answers) == 2
    assert both.answers[1] == one.answers[0]


def test_a_missing_model_is_a_failure_with_a_message(tmp_path: Path):
    result = ask(tmp_path / "task", tmp_path / "nowhere")

    assert isinstance(result, ToolFailure)
    assert result.code == "invalid_model"
    assert "nowhere" in result.message


def test_a_conversation_beyond_the_context_is_refused_by_its_number(
    tmp_path: Path, tiny_llama: Path
):
    long = (Message("user", "What is the capital of France? " * 500),)

    result = ask(tmp_path, tiny_llama, prompts=(FRANCE, long))

    assert isinstance(result, ToolFailure)
    assert (result.code, result.param) == ("context_length_exceeded", "messages.1")
    assert result.is_input_at_fault
    assert "2048" in result.message


def test_an_adapter_that_does_not_fit_is_a_failure(tmp_path: Path, tiny_llama: Path):
    result = ask(tmp_path / "task", tiny_llama, adapter_folder=tmp_path / "nothing")

    assert isinstance(result, ToolFailure)
    assert result.code == "invalid_model"


def test_a_request_that_is_none_is_a_failure(tmp_path: Path):
    (tmp_path / REQUEST_FILE).write_text("{}")
    reader, writer = os.pipe()
    _KEPT_OPEN.append(writer)

    assert tool_process.main(tmp_path, reader) == 1

    assert TOOL_RESULT.validate_json((tmp_path / RESULT_FILE).read_bytes()).kind == "failed"
