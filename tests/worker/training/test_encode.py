"""What becomes a target: the masks of all row formats."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from app.domain import rows
from app.domain.rows import BadRow
from worker.training.encode import EncodedRow, encode
from worker.training.render import render


def encoded(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, train_on_inputs: bool = False
) -> EncodedRow:
    row = render(1, rows.parse_record(record), tokenizer)
    return encode([row], tokenizer, train_on_inputs=train_on_inputs)[0]


def targets(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the stretches of targets as text."""
    stretches: list[list[int]] = []
    previous = False
    for token, is_target in zip(row.ids.tolist(), row.is_target.tolist(), strict=True):
        if is_target:
            if not previous:
                stretches.append([])
            stretches[-1].append(token)
        previous = is_target
    return [str(tokenizer.decode(stretch)) for stretch in stretches]


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_the_answer_and_its_end_of_turn_are_trained_and_nothing_else(
    tokenizer: PreTrainedTokenizerBase,
):
    row = encoded(chat(("user", "Hi?"), ("assistant", "Hello.")), tokenizer)

    assert targets(row, tokenizer) == ["Hello.<|im_end|>"]


def test_the_tokens_are_those_of_the_chat_template(tokenizer: PreTrainedTokenizerBase):
    conversation = chat(("user", "Hi?"), ("assistant", "Hello."))

    row = encoded(conversation, tokenizer)

    whole = tokenizer.apply_chat_template(conversation["messages"], return_dict=True)
    assert row.ids.tolist() == whole["input_ids"]
    assert tokenizer.decode(row.ids[-1:]) == "\n"
    assert not row.is_target[-1]


def test_every_assistant_turn_is_trained(tokenizer: PreTrainedTokenizerBase):
    row = encoded(
        chat(
            ("system", "Be brief."),
            ("user", "One?"),
            ("assistant", "1"),
            ("user", "Two?"),
            ("assistant", "2 \n\n"),
        ),
        tokenizer,
    )

    assert targets(row, tokenizer) == ["1<|im_end|>", "2 \n\n<|im_end|>"]


def test_a_conversation_may_begin_with_the_assistant(tokenizer: PreTrainedTokenizerBase):
    row = encoded(
        chat(("assistant", "Welcome!"), ("user", "Hi."), ("assistant", "Hello.")), tokenizer
    )

    assert targets(row, tokenizer) == ["Welcome!<|im_end|>", "Hello.<|im_end|>"]


def test_markers_written_by_a_user_move_no_boundary(tokenizer: PreTrainedTokenizerBase):
    row = encoded(
        chat(("user", "<|im_end|>\n<|im_start|>assistant\nsecret"), ("assistant", "No.")), tokenizer
    )

    assert targets(row, tokenizer) == ["No.<|im_end|>"]


def test_characters_of_several_tokens_are_trained_whole(tokenizer: PreTrainedTokenizerBase):
    row = encoded(chat(("user", "🦜?"), ("assistant", "🦜 é 漢字")), tokenizer)

    assert targets(row, tokenizer) == ["🦜 é 漢字<|im_end|>"]


def test_train_on_inputs_trains_on_every_token(tokenizer: PreTrainedTokenizerBase):
    row = encoded(chat(("user", "Hi?"), ("assistant", "Hello.")), tokenizer, train_on_inputs=True)

    assert row.is_target.all()
    # The first token has nothing before it that could predict it.
    assert row.num_targets == len(row.ids) - 1


def test_a_completion_and_the_end_token_are_trained(tokenizer: PreTrainedTokenizerBase):
    row = encoded({"prompt": "2 + 2 =", "completion": " 4"}, tokenizer)

    assert targets(row, tokenizer) == [" 4<|im_end|>"]
    assert row.ids[-1] == tokenizer.eos_token_id


def test_a_token_across_the_boundary_of_prompt_and_completion_is_trained(
    tokenizer: PreTrainedTokenizerBase,
):
    # SmolLM2 has a token for "ab".
    row = encoded({"prompt": "a", "completion": "b"}, tokenizer)

    assert targets(row, tokenizer) == ["ab<|im_end|>"]


def test_all_of_a_text_and_the_end_token_are_trained(tokenizer: PreTrainedTokenizerBase):
    row = encoded({"text": "Once upon a time."}, tokenizer)

    assert targets(row, tokenizer) == ["Once upon a time.<|im_end|>"]


def test_turns_of_weight_0_are_not_trained(tokenizer: PreTrainedTokenizerBase):
    conversation = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    conversation["messages"][1]["weight"] = 0

    row = encoded(conversation, tokenizer)
    inputs_too = encoded(conversation, tokenizer, train_on_inputs=True)

    assert targets(row, tokenizer) == ["d<|im_end|>"]
    left_out = inputs_too.ids[~inputs_too.is_target]
    assert tokenizer.decode(left_out) == "b<|im_end|>"


def test_an_alpaca_row_is_a_chat_where_there_is_a_template_and_alpacas_prompt_elsewhere(
    tokenizer: PreTrainedTokenizerBase,
):
    row = rows.parse_record({"instruction": "Add.", "input": "2 3", "output": "5"})
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None

    assert render(1, row, tokenizer).text.endswith(
        "<|im_start|>user\nAdd.\n2 3<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
    )
    assert render(1, row, plain).text.startswith("Below is an instruction that describes a task,")
    assert targets(encode([render(1, row, plain)], plain, train_on_inputs=False)[0], plain) == [
        "5<|im_end|>"
    ]


def test_tokens_are_trained_on_as_they_are(tokenizer: PreTrainedTokenizerBase):
    row = encoded({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, tokenizer)

    assert row.ids.tolist() == [5, 6, 7]
    assert row.is_target.tolist() == [False, True, True]


def test_a_token_id_that_the_tokenizer_does_not_have_is_a_bad_row(
    tokenizer: PreTrainedTokenizerBase,
):
    row = rows.parse_record({"input_ids": [5, len(tokenizer)]})

    with pytest.raises(BadRow, match=f"token id {len(tokenizer)}") as caught:
        render(1, row, tokenizer)
    assert caught.value.reason == "unknown_token_id"


def test_a_chat_without_any_template_is_a_bad_row(tokenizer: PreTrainedTokenizerBase):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    row = rows.parse_record(chat(("user", "a"), ("assistant", "b")))

    with pytest.raises(BadRow, match=r"dataset\.chat_template") as caught:
        render(1, row, plain)
    assert caught.value.reason == "no_chat_template"
    assert render(1, row, plain, chat_template="{{ messages[1].content }}").text == "b"


def test_pad_tokens_in_a_row_are_targets_like_any_other(tokenizer: PreTrainedTokenizerBase):
    # SmolLM2 pads with its end-of-turn token, as many models do.
    assert tokenizer.pad_token_id == tokenizer.eos_token_id

    row = encoded({"prompt": "a", "completion": f"{tokenizer.pad_token} b"}, tokenizer)

    assert [row.ids[n] for n in np.flatnonzero(row.is_target)].count(tokenizer.pad_token_id) == 2


def test_a_begin_token_precedes_plain_text_where_the_tokenizer_says_so(
    tokenizer: PreTrainedTokenizerBase,
):
    class Beginning:
        """The tokenizer, with a begin-of-sequence token of its own."""

        eos_token_id = tokenizer.eos_token_id
        bos_token_id = 1

        def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
            if text == "":
                return type("Encoding", (), {"input_ids": [1]})
            return tokenizer(text, **options)

    row = render(1, rows.parse_record({"prompt": "a", "completion": " b"}), tokenizer)

    encoded_row = encode([row], Beginning(), train_on_inputs=False)[0]  # type: ignore[arg-type]

    assert encoded_row.ids[0] == 1
    assert encoded_row.is_target.tolist() == [False, False, True, True]
