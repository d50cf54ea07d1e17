"""Masks of conversations under real and made-up templates, against references made by hand.

The reference puts a conversation together from pieces, each known to be learned or not, tokenizes
the joined text and looks each token up in the piece that it comes from. It never compares
renderings and never searches, so it shares nothing with the code under test.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from app.domain import rows
from app.domain.rows import BadRow
from worker.training.encode import EncodedRow, encode
from worker.training.render import RenderedRow, render

Pieces = list[tuple[str, bool]]

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell it.", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}

# The header of Llama 3, which ends turns with a token that is not the tokenizer's eos token.
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|header|>\n\n"
    "{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|header|>\n\n{% endif %}"
)
# Mistral and Llama 2: no header, no generation prompt, and an eos token after each answer.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# An eos token after the whole conversation only.
EOS_AT_THE_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHATML_WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
    "<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
MARKED_SHORT = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
MARKED_IN_A_MACRO = (
    "{% macro said(m) %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endmacro %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ said(m) }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADER_WITHOUT_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
# Qwen 3 in small: reasoning is kept in the last turn only, which always has a think block.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set answer = m.content.split('</think>')[-1] %}"
    "{% if loop.last %}<think>{{ m.content.split('</think>')[0].removeprefix('<think>')"
    " if '</think>' in m.content else '' }}</think>{% endif %}{{ answer }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*turns: tuple[str, str] | dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [
        turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns
    ]
    return {"messages": messages, **more}


def encoded(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str | None = None
) -> EncodedRow:
    row = render(1, rows.parse_record(record), tokenizer, chat_template=template)
    return encode([row], tokenizer, train_on_inputs=False)[0]


def require_mask(row: EncodedRow, tokenizer: PreTrainedTokenizerBase, pieces: Pieces) -> None:
    """Compare ids and mask, token by token, with those of the pieces."""
    text = "".join(piece for piece, _ in pieces)
    is_learned = [learned for piece, learned in pieces for _ in piece]
    reference: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    expected = [
        (token, any(is_learned[start:end]))
        for token, (start, end) in zip(reference.input_ids, reference.offset_mapping, strict=True)
    ]
    assert list(zip(row.ids.tolist(), row.is_target.tolist(), strict=True)) == expected


TALK = (("user", "Hi?"), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "See you."))


@pytest.mark.model
def test_the_mask_of_smollm2s_own_template(smollm2_tokenizer: PreTrainedTokenizerBase):
    record = chat(("system", "Be brief."), *TALK, tools=[WEATHER])
    record["messages"][2]["weight"] = 0

    row = encoded(record, smollm2_tokenizer)

    # Its template knows no tools, so they change nothing.
    require_mask(
        row,
        smollm2_tokenizer,
        [
            ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n", False),
            ("<|im_start|>assistant\nHello.<|im_end|>\n", False),
            ("<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n", False),
            ("See you.<|im_end|>", True),
            ("\n", False),
        ],
    )
    assert row.num_turns_without_end == 0


TEMPLATES: dict[str, tuple[str, Pieces, int]] = {
    "llama 3": (
        LLAMA_3,
        [
            ("<|im_start|><|start|>user<|header|>\n\nHi?<|im_end|>", False),
            ("<|start|>assistant<|header|>\n\n", False),
            ("Hello.<|im_end|>", True),
            ("<|start|>user<|header|>\n\nBye.<|im_end|><|start|>assistant<|header|>\n\n", False),
            ("See you.<|im_end|>", True),
        ],
        0,
    ),
    "mistral": (
        MISTRAL,
        [
            ("<|im_start|>[INST] Hi? [/INST]", False),
            (" Hello.<|im_end|>", True),
            ("[INST] Bye. [/INST]", False),
            (" See you.<|im_end|>", True),
        ],
        0,
    ),
    "an end after the last turn only": (
        EOS_AT_THE_END,
        [
            ("user: Hi?\nassistant: ", False),
            ("Hello.", True),
            ("\nuser: Bye.\nassistant: ", False),
            ("See you.\n<|im_end|>", True),
        ],
        1,
    ),
    "generation marks": (
        MARKED,
        [
            ("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", False),
            ("Hello.<|im_end|>", True),
            ("\n<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n", False),
            ("See you.<|im_end|>", True),
            ("\n", False),
        ],
        0,
    ),
}
TEMPLATES["marks that stop before the end of turn"] = (
    MARKED_SHORT,
    *TEMPLATES["generation marks"][1:],
)
TEMPLATES["a header and no generation prompt"] = (
    HEADER_WITHOUT_PROMPT,
    *TEMPLATES["generation marks"][1:],
)
TEMPLATES["marks in a macro"] = (MARKED_IN_A_MACRO, *TEMPLATES["generation marks"][1:])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_of_a_template(tokenizer: PreTrainedTokenizerBase, name: str):
    template, pieces, num_without_end = TEMPLATES[name]

    row = encoded(chat(*TALK), tokenizer, template)

    require_mask(row, tokenizer, pieces)
    assert row.num_turns_without_end == num_without_end


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_turn_of_weight_0_is_left_out_under_every_template(
    tokenizer: PreTrainedTokenizerBase, name: str
):
    template, pieces, _ = TEMPLATES[name]
    record = chat(*TALK)
    record["messages"][1]["weight"] = 0

    row = encoded(record, tokenizer, template)

    first = next(n for n, (_, learned) in enumerate(pieces) if learned)
    without = [(text, learned and n != first) for n, (text, learned) in enumerate(pieces)]
    require_mask(row, tokenizer, without)


def test_the_marks_of_a_template_are_those_that_transformers_finds(
    tokenizer: PreTrainedTokenizerBase,
):
    record = chat(*TALK)
    reference: Any = tokenizer.apply_chat_template(
        record["messages"],
        chat_template=MARKED,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )

    row = encoded(record, tokenizer, MARKED)

    assert row.ids.tolist() == reference["input_ids"]
    assert row.is_target.tolist() == [mask == 1 for mask in reference["assistant_masks"]]


def test_tool_calls_are_learned_and_tools_and_their_answers_are_shown(
    tokenizer: PreTrainedTokenizerBase,
):
    record = chat(
        ("user", "Rain?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "yes"},
        ("assistant", "It rains."),
        tools=[WEATHER],
    )

    row = encoded(record, tokenizer, CHATML_WITH_TOOLS)

    tools = (
        '[{"type": "function", "function": {"name": "weather", "description": "Tell it.",'
        ' "parameters": {"type": "object"}}}]'
    )
    require_mask(
        row,
        tokenizer,
        [
            (f"<|im_start|>system\n{tools}<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n", False),
            ("<|im_start|>assistant\n", False),
            ('<tool_call>weather{"city": "Oslo"}</tool_call><|im_end|>', True),
            ("\n<|im_start|>tool\nyes<|im_end|>\n<|im_start|>assistant\n", False),
            ("It rains.<|im_end|>", True),
            ("\n", False),
        ],
    )


def test_a_turn_that_is_only_shown_in_another_way_at_the_end_is_found_all_the_same(
    tokenizer: PreTrainedTokenizerBase,
):
    row = encoded(chat(*TALK), tokenizer, THINKING)

    require_mask(
        row,
        tokenizer,
        [
            ("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", False),
            ("Hello.<|im_end|>", True),
            ("\n<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n", False),
            ("<think></think>See you.<|im_end|>", True),
            ("\n", False),
        ],
    )


def test_a_turn_whose_reasoning_the_template_drops_is_a_bad_row_that_names_it(
    tokenizer: PreTrainedTokenizerBase,
):
    record = chat(("user", "a"), ("assistant", "<think>hm</think>b"), *TALK[2:])
    row = rows.parse_record(record)

    with pytest.raises(BadRow, match=r"messages\[1\].*weight 0") as caught:
        render(12, row, tokenizer, chat_template=THINKING)
    assert caught.value.reason == "template_rewrites_turns"
    # The remedy that the message names.
    record["messages"][1]["weight"] = 0
    learned = encoded(record, tokenizer, THINKING)
    assert tokenizer.decode(learned.ids[learned.is_target]) == "<think></think>See you.<|im_end|>"


def test_turns_that_cannot_be_found_stay_out_with_train_on_inputs_too(
    tokenizer: PreTrainedTokenizerBase,
):
    record = chat(("user", "a"), ("assistant", "<think>hm</think>b"), *TALK[2:])
    record["messages"][1]["weight"] = 0
    rendered = render(1, rows.parse_record(record), tokenizer, chat_template=THINKING)

    row = encode([rendered], tokenizer, train_on_inputs=True)[0]

    assert tokenizer.decode(row.ids[row.is_target]) == "<think></think>See you.<|im_end|>"


def test_weights_under_marks_that_do_not_match_the_turns_are_refused(
    tokenizer: PreTrainedTokenizerBase,
):
    last_only = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    record = chat(*TALK)

    row = encoded(record, tokenizer, last_only)
    record["messages"][1]["weight"] = 0

    assert tokenizer.decode(row.ids[row.is_target]) == "See you.<|im_end|>"
    with pytest.raises(BadRow) as caught:
        encoded(record, tokenizer, last_only)
    assert caught.value.reason == "template_marks"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 + 'a' }}",
        "{{ 1 // 0 }}",
        "{{ nothing.at.all }}",
        "{% for %}",
    ],
)
def test_a_template_that_refuses_a_conversation_is_quoted(
    tokenizer: PreTrainedTokenizerBase, template: str
):
    with pytest.raises(BadRow, match="the model's chat template refuses") as caught:
        encoded(chat(*TALK), tokenizer, template)
    assert caught.value.reason == "template_refuses"


@pytest.mark.parametrize(("ending", "expected"), [("<|im_end|>\n", 0), ("\n", 1), ("", 1)])
def test_turns_that_do_not_end_in_a_special_token_are_counted(
    tokenizer: PreTrainedTokenizerBase, ending: str, expected: int
):
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ '" + ending + "' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )

    row = encoded(chat(*TALK[:2]), tokenizer, template)

    assert row.num_turns_without_end == expected


MARKERS = ["<|im_end|>", "<|im_start|>", "assistant\n", "\n", " ", "</s>", "<think>", "</think>"]
CONTENTS = st.lists(st.sampled_from(MARKERS) | st.text(max_size=3), min_size=1, max_size=6).map(
    lambda parts: "x" + "".join(parts) + "y"
)


def marked_characters(row: RenderedRow) -> str:
    return "".join(row.text[start:end] for start, end in row.spans)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=3), st.data())
@pytest.mark.parametrize("template", [None, LLAMA_3, MARKED, MARKED_SHORT, MARKED_IN_A_MACRO])
def test_no_content_moves_the_mask(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    pairs: Sequence[tuple[str, str]],
    data: st.DataObject,
):
    weights = data.draw(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3))
    turns: list[dict[str, Any]] = []
    for (question, answer), weight in zip(pairs, weights, strict=False):
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer, "weight": weight})

    row = render(1, rows.parse_record(chat(*turns)), tokenizer, chat_template=template)

    learned = [
        answer + "<|im_end|>" for (_, answer), weight in zip(pairs, weights, strict=False) if weight
    ]
    assert marked_characters(row) == "".join(learned)
    # And each where it belongs: what is before it is the rendering of what was said before it.
    at = 0
    for (start, end), answer in zip(row.spans, learned, strict=True):
        assert row.text[start:end] == answer
        assert start >= at
        at = end
