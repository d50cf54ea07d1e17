"""Answers as the unmodified client of OpenAI's reads them, whole and streamed."""

import asyncio
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.domain import model_names
from app.domain.inference import ChatPrompt, TextPrompt
from app.domain.jobs import JobState
from tests.chat import host as hosts
from tests.chat.conftest import Place

pytestmark = pytest.mark.services

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}]}
SAID = "".join(hosts.WORDS)


def test_an_answer_has_its_text_its_reason_its_tokens_and_the_name_that_was_asked(
    client: OpenAI, place: Place
):
    done = client.chat.completions.create(**ASK)

    (choice,) = done.choices
    assert done.id.startswith("chatcmpl-")
    assert (done.object, done.model) == ("chat.completion", "tiny")
    assert (choice.message.role, choice.message.content) == ("assistant", SAID)
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert done.usage is not None
    assert done.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": hosts.PROMPT_TOKENS,
        "completion_tokens": len(hosts.WORDS),
        "total_tokens": hosts.PROMPT_TOKENS + len(hosts.WORDS),
    }
    assert (done.system_fingerprint or "").startswith("fp_")


def test_what_is_asked_reaches_the_host_as_it_was_asked(client: OpenAI, place: Place):
    client.chat.completions.create(
        **ASK,
        max_completion_tokens=9,
        temperature=0.25,
        top_p=0.5,
        n=2,
        stop=["a", "b"],
        seed=11,
        logprobs=True,
        top_logprobs=3,
        user="me",
        metadata={"a": "b"},
        store=False,
        response_format={"type": "text"},
        frequency_penalty=0,
        logit_bias={},
    )

    (request,) = place.host.requests
    assert request.sampling.model_dump() == {
        "max_tokens": 9,
        "temperature": 0.25,
        "top_p": 0.5,
        "stop": ("a", "b"),
        "seed": 11,
        "n": 2,
        "top_logprobs": 3,
    }
    assert request.host.model_folder == place.stack.home / "models" / "tiny"
    assert request.adapter is None


def test_turns_tools_and_calls_arrive_in_the_shape_of_training(client: OpenAI, place: Place):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, text("kind")]},
        {"role": "user", "content": "go", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]

    client.chat.completions.create(model="tiny", messages=messages, tools=[tool])
    client.chat.completions.create(
        model="tiny", messages=messages, tools=[tool], tool_choice="none"
    )

    told, untold = (request.prompt for request in place.host.requests)
    assert isinstance(told, ChatPrompt)
    assert isinstance(untold, ChatPrompt)
    parsed = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert told.messages == (
        {"role": "developer", "content": "Be kind"},
        {"role": "user", "content": "go", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    )
    assert told.tools == (tool,)
    assert untold.tools == ()


def test_a_job_is_asked_with_the_template_that_it_was_given(client: OpenAI, place: Place):
    own = "{{ messages[0].content }}"
    driver = place.driver
    job_id = driver.submit(dataset={"id": driver.dataset(), "chat_template": own})
    driver.succeed(driver.started())

    client.chat.completions.create(**{**ASK, "model": f"{job_id}:base"})
    client.chat.completions.create(**ASK)

    templates = [
        request.prompt.chat_template
        for request in place.host.requests
        if isinstance(request.prompt, ChatPrompt)
    ]
    assert templates == [own, None]


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def test_n_answers_come_in_their_order_and_their_tokens_are_added_up(client: OpenAI):
    done = client.chat.completions.create(**ASK, n=3)

    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert [choice.message.content for choice in done.choices] == [
        f"{number}:{SAID}" for number in range(3)
    ]
    assert done.usage is not None
    assert done.usage.completion_tokens == 3 * (len(hosts.WORDS) + 1)


def test_logprobs_are_those_of_every_token(client: OpenAI):
    done = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)

    found = done.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert [each.token for each in found.content] == list(hosts.WORDS)
    first = found.content[0]
    assert (first.logprob, first.bytes) == (-0.5, list(b"The"))
    assert [(top.token, top.bytes) for top in first.top_logprobs] == [
        ("The", list(b"The")),
        ("\ufffd", None),
    ]


def test_a_stream_begins_with_the_role_and_ends_with_reason_and_usage(client: OpenAI):
    chunks = list(
        client.chat.completions.create(
            **ASK, stream=True, stream_options={"include_usage": True}, logprobs=True
        )
    )

    *parts, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in parts]
    reasons = [chunk.choices[0].finish_reason for chunk in parts]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == list(hosts.WORDS)
    assert [delta.role for delta in deltas[1:]] == [None] * (len(deltas) - 1)
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert deltas[-1].to_dict() == {}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.usage for chunk in parts} == {None}
    assert parts[1].choices[0].logprobs is not None
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == hosts.PROMPT_TOKENS + len(hosts.WORDS)


def test_without_the_option_a_stream_has_no_usage_and_ends_with_done(place: Place):
    answer = place.stack.http.post(
        "/v1/chat/completions",
        json={**ASK, "stream": True},
        headers={"Authorization": f"Bearer {place.api_key}"},
    )

    lines = [line for line in answer.text.split("\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"].startswith("req-")
    assert lines[-1] == "data: [DONE]"
    assert "usage" not in answer.text


def test_the_streams_of_n_answers_are_told_apart_by_their_index(client: OpenAI):
    said = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**ASK, n=2, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert said == {0: f"0:{SAID}", 1: f"1:{SAID}"}


def test_the_clients_stream_helper_puts_an_answer_together(client: OpenAI):
    with client.chat.completions.stream(**ASK) as stream:
        completion = stream.get_final_completion()

    assert completion.choices[0].message.content == SAID


def test_the_asynchronous_client_gets_the_same(make_async_client: Any):
    async def ask() -> tuple[str | None, str]:
        async with make_async_client() as client:
            whole = await client.chat.completions.create(**ASK)
            parts = await client.chat.completions.create(**ASK, stream=True)
            streamed = [part.choices[0].delta.content or "" async for part in parts]
            return whole.choices[0].message.content, "".join(streamed)

    assert asyncio.run(ask()) == (SAID, SAID)


def test_several_prompts_are_completed_in_their_order(client: OpenAI, place: Place):
    done = client.completions.create(model="tiny", prompt=["one", "two"], n=2, logprobs=1)

    assert done.id.startswith("cmpl-")
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in done.choices] == [f"0:{SAID}", f"1:{SAID}"] * 2
    assert done.usage is not None
    assert done.usage.prompt_tokens == 2 * hosts.PROMPT_TOKENS
    asked = {request.prompt.text for request in place.host.requests if is_text(request)}
    assert asked == {"one", "two"}
    assert {request.sampling.max_tokens for request in place.host.requests} == {16}
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["0:", *hosts.WORDS]
    assert logprobs.text_offset == [3, 5, 8, 12, 15]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"0:": -0.5}


def is_text(request: Any) -> bool:
    return isinstance(request.prompt, TextPrompt)


def test_completions_are_streamed_prompt_by_prompt(client: OpenAI):
    said = {0: "", 1: ""}
    reasons: list[Any] = []
    tokens = 0
    for chunk in client.completions.create(
        model="tiny",
        prompt=["one", "two"],
        stream=True,
        logprobs=0,
        stream_options={"include_usage": True},
    ):
        for choice in chunk.choices:
            said[choice.index] += choice.text
            reasons += [choice.finish_reason] if choice.finish_reason else []
        tokens += chunk.usage.total_tokens if chunk.usage else 0

    assert said == {0: SAID, 1: SAID}
    assert reasons == ["stop", "stop"]
    assert tokens == 2 * (hosts.PROMPT_TOKENS + len(hosts.WORDS))


def test_completions_need_no_chat_template(client: OpenAI):
    assert client.completions.create(model="bare", prompt="one").choices[0].text == SAID


def test_a_damaged_adapter_is_refused_and_a_whole_one_is_asked(client: OpenAI, place: Place):
    job_id, run = place.driver.in_state(JobState.SUCCEEDED)
    tuned = model_names.tuned("tiny", None, job_id)
    ask = [{"role": "user", "content": "Why?"}]

    done = client.chat.completions.create(model=tuned, messages=ask)  # type: ignore[arg-type]
    (request,) = place.host.requests
    file = place.driver.attempt(run) / "final" / "adapter_model.safetensors"
    file.write_bytes(b"damaged")
    with pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(model=tuned, messages=ask)  # type: ignore[arg-type]

    assert done.model == tuned
    assert (done.system_fingerprint or "").endswith(f"-{job_id}-final-1")
    assert request.adapter is not None
    assert request.adapter.folder == file.parent
    assert (caught.value.code, caught.value.param) == ("checkpoint_unusable", "model")
