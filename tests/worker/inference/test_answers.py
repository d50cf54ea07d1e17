"""What is told of one answer: all of its text, its tokens, and how many there were."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from app.domain.inference import Event, Finished, Piece, Sampling
from worker.training.inference.answers import Answer
from worker.training.inference.prompts import Encoded


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Any) -> Any:
    from worker.training import model

    return model.load_tokenizer(tiny_llama)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def told(
    tokenizer: Any, tokens: Sequence[int], *, ends: Sequence[int] = (), **sampling: Any
) -> tuple[str, list[str], Finished]:
    """Give an answer its tokens; returns the text, the tokens with logprobs, and the end."""
    answer = Answer(
        "inf-1",
        0,
        Sampling(**{"max_tokens": len(tokens), "top_logprobs": 0, **sampling}),
        Encoded((1,), frozenset(ends)),
        tokenizer,
        room=100,
        device=torch.device("cpu"),
    )
    events: list[Event] = []
    for token in tokens:
        assert not answer.is_over
        events += answer.push(token, torch.zeros(len(tokenizer)))
    *pieces, finished = events
    assert isinstance(finished, Finished)
    told_pieces = [each for each in pieces if isinstance(each, Piece)]
    names = [token.token for piece in told_pieces for token in piece.logprobs]
    return "".join(piece.text for piece in told_pieces), names, finished


def test_text_that_could_have_become_a_stop_is_told_at_the_end(tokenizer: Any):
    ids = ids_of(tokenizer, "All is well E")

    text, names, finished = told(tokenizer, ids, stop=("END",))

    assert text == "".join(names) == "All is well E"
    assert (finished.reason, finished.num_tokens) == ("length", len(ids))


def test_half_a_character_at_the_end_is_told_as_broken(tokenizer: Any):
    ids = ids_of(tokenizer, "An apple: \U0001f34f")[:-1]

    text, names, finished = told(tokenizer, ids)

    assert text.rstrip("\ufffd") == "An apple: "
    assert text.endswith("\ufffd")
    assert len(names) == finished.num_tokens == len(ids)


def test_of_a_stop_text_not_even_the_tokens_are_told(tokenizer: Any):
    ids = ids_of(tokenizer, "one two three")

    text, names, finished = told(tokenizer, ids, stop=(" two three",))

    assert text == "".join(names) == "one"
    assert (finished.reason, finished.num_tokens) == ("stop", len(ids))


def test_the_end_of_turn_is_counted_and_not_told(tokenizer: Any):
    (end,) = ids_of(tokenizer, "<|im_end|>")
    ids = ids_of(tokenizer, "one two")

    text, names, finished = told(tokenizer, [*ids, end], ends=[end], max_tokens=50)

    assert text == "".join(names) == "one two"
    assert (finished.reason, finished.num_tokens) == ("stop", len(ids) + 1)
