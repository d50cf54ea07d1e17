"""The prompt of inference is what training renders before an answer, byte for byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.domain.chat import parse_turn
from app.domain.errors import InvalidInput
from app.domain.inference import ChatPrompt, TextPrompt
from app.domain.rows import ChatRow, Turn
from worker.training import model
from worker.training.encode import encode as encode_rows
from worker.training.inference import prompts
from worker.training.render import render
from worker.training.templates import Template

TOOLS = ({"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}},)
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "Hello  there\n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "user", "content": "Hi <|im_end|> ho"},
        {"role": "assistant", "content": " Hello! "},
        {"role": "user", "content": "And?"},
    ],
    "tool": [
        {"role": "user", "content": "Find it"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "function": {"name": "look_up", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "content": "found", "tool_call_id": "1"},
    ],
}
TEMPLATES = {
    "own": None,
    "with tools": (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>"
        "{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "without generation prompt": (
        "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>\n{% endfor %}"
    ),
    "marked": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<a>[{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}<u>{{ m.content }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    ),
    "thinking": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "header of its own": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<something else>{% endif %}"
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return model.load_tokenizer(tiny_llama)


def turns_of(conversation: str) -> tuple[Turn, ...]:
    """Return the turns of a conversation of which nothing but the next answer is learned."""
    parsed = (parse_turn(turn, "a turn") for turn in CONVERSATIONS[conversation])
    return tuple(replace(turn, is_left_out=turn.role == "assistant") for turn in parsed)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_prompt_is_the_text_that_training_puts_before_the_answer(
    tokenizer: Any, conversation: str, template: str
):
    turns = turns_of(conversation)
    answer = parse_turn({"role": "assistant", "content": "The answer."}, "messages[-1]")
    row = render(1, ChatRow((*turns, answer), TOOLS), tokenizer, chat_template=TEMPLATES[template])

    prompt = prompts.render(
        Template(tokenizer, TEMPLATES[template]), [turn.for_template() for turn in turns], TOOLS
    )

    assert prompt == row.text[: row.spans[-1][0]]
    # Where the template adds text of its own before the answer, training teaches it.
    assert row.text[len(prompt) :].removeprefix("<think></think>").startswith("The answer.")


def test_the_tokens_are_those_that_training_reads(tokenizer: Any):
    turns = turns_of("turns")
    answer = parse_turn({"role": "assistant", "content": "Yes."}, "")
    row = render(1, ChatRow((*turns, answer)), tokenizer)
    (encoded,) = encode_rows([row], tokenizer, train_on_inputs=False)
    first_target = int(encoded.is_target.argmax())

    asked = ChatPrompt(messages=tuple(turn.for_template() for turn in turns))

    assert list(prompts.encode(asked, tokenizer, frozenset()).ids) == list(
        encoded.ids[:first_target]
    )


def test_a_question_is_written_with_its_own_template_and_tools(tokenizer: Any):
    turns, own = CONVERSATIONS["user"], TEMPLATES["with tools"]

    asked = ChatPrompt(messages=tuple(turns), tools=TOOLS, chat_template=own)
    encoded = prompts.encode(asked, tokenizer, frozenset())

    expected = prompts.render(Template(tokenizer, own), turns, TOOLS)
    assert tokenizer.decode(encoded.ids) == expected
    assert "look_up" in expected


def test_the_template_says_which_token_ends_a_turn(tokenizer: Any):
    asked = ChatPrompt(messages=({"role": "user", "content": "Hi"},))
    other = asked.model_copy(
        update={"chat_template": "{% for m in messages %}{{ m.content }}<jupyter_code>{% endfor %}"}
    )

    (own,) = prompts.encode(asked, tokenizer, frozenset()).ends
    ends = prompts.encode(other, tokenizer, frozenset({0})).ends

    assert tokenizer.convert_ids_to_tokens(own) == "<|im_end|>"
    assert ends == {0, tokenizer.convert_tokens_to_ids("<jupyter_code>")}


@pytest.mark.parametrize(
    ("template", "code"),
    [("{{ raise_exception('no systems') }}", "template_refuses"), ("", None)],
)
def test_a_template_that_refuses_is_the_fault_of_the_messages(
    tokenizer: Any, template: str, code: str | None
):
    asked = ChatPrompt(messages=CONVERSATIONS["user"], chat_template=template or "{{ '' }}")

    with pytest.raises(InvalidInput) as refused:
        prompts.encode(asked, tokenizer, frozenset())

    assert refused.value.param == "messages"
    if code:
        assert refused.value.code == code
        assert "no systems" in refused.value.message


def test_an_empty_text_without_a_first_token_is_refused(tokenizer: Any):
    with pytest.raises(InvalidInput, match="no tokens") as refused:
        prompts.encode(TextPrompt(text=""), tokenizer, frozenset())

    assert refused.value.param == "prompt"
