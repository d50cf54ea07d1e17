"""Every field of OpenAI's is either offered and works, or is refused by its name."""

import inspect
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions

from tests.chat.conftest import Place

pytestmark = pytest.mark.services

OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
TOOL: Any = {"type": "function", "function": {"name": "f"}}
MESSAGES: Any = [{"role": "user", "content": "Why?"}]

OFFERED = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "n": 2,
    "stop": ["a"],
    "seed": 1,
    "stream": False,
    "stream_options": None,
    "user": "me",
}
# Values that change nothing, and one that would.
NEITHER: dict[str, tuple[list[Any], Any]] = {
    "frequency_penalty": ([0, 0.0, None], 0.5),
    "presence_penalty": ([0, None], -1),
    "logit_bias": ([{}, None], {"5": 1}),
}
CHAT_OFFERED = OFFERED | {
    "messages": MESSAGES,
    "model": "tiny",
    "max_completion_tokens": 5,
    "tools": [TOOL],
    "tool_choice": "none",
    "logprobs": True,
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "safety_identifier": "me",
}
CHAT_REFUSED: dict[str, tuple[list[Any], Any]] = NEITHER | {
    "tool_choice": (["auto", "none"], "required"),
    "store": ([False, None], True),
    "response_format": ([{"type": "text"}], {"type": "json_object"}),
    "parallel_tool_calls": ([True], False),
    "functions": ([[]], [{"name": "f"}]),
    "function_call": (["none"], {"name": "f"}),
    "service_tier": (["auto", "default"], "flex"),
    "modalities": ([["text"]], ["text", "audio"]),
    "audio": ([None], {"voice": "alloy", "format": "wav"}),
    "prediction": ([None], {"type": "content", "content": "a"}),
    "moderation": ([None], {"model": "m"}),
    "reasoning_effort": ([None], "low"),
    "verbosity": ([None], "low"),
    "web_search_options": ([None], {}),
    "prompt_cache_key": ([None], "a"),
    "prompt_cache_options": ([None], {"a": 1}),
    "prompt_cache_retention": ([None], "24h"),
}
TEXT_OFFERED = OFFERED | {"model": "tiny", "prompt": "Why?", "logprobs": 1}
TEXT_REFUSED: dict[str, tuple[list[Any], Any]] = NEITHER | {
    "best_of": ([1, None], 2),
    "echo": ([False, None], True),
    "suffix": ([None, ""], "end"),
}


def fields(create: Any) -> set[str]:
    return set(inspect.signature(create).parameters) - OF_THE_CLIENT


def chat(client: OpenAI, **body: Any) -> Any:
    """Send a body as it is, nulls included."""
    whole = {"model": "tiny", "messages": MESSAGES, **body}
    return client.post("/chat/completions", body=whole, cast_to=object)


def complete(client: OpenAI, **body: Any) -> Any:
    return client.post(
        "/completions", body={"model": "tiny", "prompt": "Why?", **body}, cast_to=object
    )


def refused(ask: Any, client: OpenAI, **body: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **body)
    return caught.value


def test_every_field_of_the_clients_create_is_offered_or_refused_here():
    assert fields(ChatCompletions.create) == {*CHAT_OFFERED, *CHAT_REFUSED}
    assert fields(Completions.create) == {*TEXT_OFFERED, *TEXT_REFUSED}


def test_every_offered_field_is_taken(client: OpenAI):
    chat(client, **CHAT_OFFERED)
    complete(client, **TEXT_OFFERED)


def test_values_that_change_nothing_are_taken(client: OpenAI):
    for name, (values, _) in CHAT_REFUSED.items():
        for value in values:
            chat(client, **{name: value})
    for name, (values, _) in TEXT_REFUSED.items():
        for value in values:
            complete(client, **{name: value})


@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_what_chats_do_not_offer_is_refused_by_name(client: OpenAI, place: Place, name: str):
    error = refused(chat, client, **{name: CHAT_REFUSED[name][1]})

    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert name in error.message
    assert place.host.requests == []


@pytest.mark.parametrize("name", TEXT_REFUSED)
def test_what_completions_do_not_offer_is_refused_by_name(client: OpenAI, name: str):
    error = refused(complete, client, **{name: TEXT_REFUSED[name][1]})

    assert (error.code, error.param) == ("unsupported_parameter", name)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"top_k": 5}, "top_k", "unknown key top_k"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "warm"}, "temperature", "number"),
        ({"top_p": -1}, "top_p", "greater than or equal to 0"),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"n": True}, "n", "integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "give one of them"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "for streams only"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown key"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"role": "bard", "content": "a"}]}, "messages.0", "unknown|bard"),
        ({"messages": [*MESSAGES, {"role": "user"}]}, "messages.1", "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0",
            "image_url",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0}]},
            "messages.0.weight",
            "for training",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "tools[0]"),
        ({"model": ""}, "model", "at least 1"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_field(
    client: OpenAI, place: Place, body: dict[str, Any], param: str, words: str
):
    error = refused(chat, client, **body)

    assert error.param == param
    assert any(each in error.message for each in words.split("|")), error.message
    assert place.host.requests == []


@pytest.mark.parametrize(
    "prompt", ["", [], [1, 2], [[1, 2]], None, ["a"] * 17], ids=lambda value: repr(value)[:12]
)
def test_prompts_that_are_no_texts_are_refused(client: OpenAI, prompt: Any):
    assert (refused(complete, client, prompt=prompt).param or "").startswith("prompt")


def test_a_model_without_chat_template_is_refused_and_told_what_to_do(client: OpenAI):
    error = refused(chat, client, model="bare")

    assert (error.code, error.param) == ("no_chat_template", "model")
    assert "/v1/completions" in error.message


@pytest.mark.parametrize(
    "name", ["none", "../jobs", "a/b/c", "ft:tiny:lorad::0", "job-1", "\u2603", "tiny:latest"]
)
def test_an_unknown_model_is_404(client: OpenAI, name: str):
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model=name)

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
