"""Stop texts and growing text: nothing is shown that would have to be taken back."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from worker.training.inference.stops import Stops
from worker.training.inference.texts import GrowingText, token_text

SENTENCE = "Zoë ate 3 🍏🍎 apples, 東京 is far; naïve café — ok.\n\n  Two  spaces."


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Any) -> PreTrainedTokenizerBase:
    from worker.training import model

    return model.load_tokenizer(tiny_llama)


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
)
def test_what_is_shown_is_the_text_before_the_first_stop_however_it_comes(
    text: str, cuts: list[int], stops: list[str]
):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    watch = Stops(stops)
    shown = ""
    for start, end in pairwise(places):
        shown += watch.push(text[start:end])
        # What was shown stays true whatever comes.
        assert not any(stop in shown for stop in stops)
    shown += "" if watch.is_found else watch.flush()

    found = [text.index(stop) for stop in stops if stop in text]
    # Of stops that overlap, the one that is complete first ends the text.
    assert watch.is_found == bool(found)
    if not found:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_the_earliest_of_several_stops_counts():
    watch = Stops(["later", "on"])

    assert watch.push("now on and later") == "now "
    assert watch.is_found
    assert watch.push("more") == ""


def test_text_is_shown_at_once_when_it_cannot_become_a_stop():
    watch = Stops(["END"])

    assert watch.push("hello E") == "hello "
    assert watch.push("xit") == "Exit"


def test_only_complete_characters_are_shown_and_nothing_is_lost(tokenizer: Any):
    ids = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    growing = GrowingText(tokenizer)

    pieces = [growing.push(token) for token in ids]

    assert "�" not in "".join(pieces)
    assert "" in pieces  # some tokens are parts of characters
    assert "".join(pieces) + growing.flush() == SENTENCE


def test_half_a_character_at_the_end_is_shown_as_broken(tokenizer: Any):
    ids = tokenizer("🍏", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    growing = GrowingText(tokenizer)

    shown = [growing.push(token) for token in ids[:-1]]

    assert "".join(shown) == ""
    assert set(growing.flush()) == {"�"}


def test_special_tokens_have_no_text(tokenizer: Any):
    growing = GrowingText(tokenizer)
    (end,) = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    (word,) = tokenizer("hello", add_special_tokens=False)["input_ids"]

    assert [growing.push(token) for token in (word, end, word)] == ["hello", "", "hello"]


def test_the_bytes_of_tokens_are_those_of_the_text_also_inside_characters(tokenizer: Any):
    ids = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]

    found = b"".join(bytes(token_text(tokenizer, token)[1]) for token in ids)

    assert found.decode() == SENTENCE
