"""The engine against transformers' own generate, alone and with many requests at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.errors import OutOfMemory
from app.domain.inference import Adapter, Began, Failed, HostKey
from app.domain.options import QuantizationSpec
from tests.worker.inference.conftest import LONG, SHORT, Bench, adapted, ask, damaged
from worker.training.inference import engine, prompts, room

TEXTS = (SHORT, LONG, "Hi")


@pytest.fixture(scope="module")
def reference(talker: Path) -> Callable[..., str]:
    """Return a function that answers with transformers' generate alone."""
    from worker.training import model as models

    tokenizer: Any = models.load_tokenizer(talker)

    def answer(text: str, adapter: Adapter | None = None, num_tokens: int = 12) -> str:
        loaded = adapted(talker, adapter)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        output = loaded.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)

    return answer


@pytest.mark.parametrize("steps_between", [0, 1, 5])
def test_greedy_answers_are_those_of_generate_alone_and_together(
    bench: Bench, reference: Callable[..., str], steps_between: int
):
    expected = [reference(text) for text in TEXTS]
    assert len(set(expected)) == len(TEXTS)

    together = bench.run(
        *(ask(str(n), text) for n, text in enumerate(TEXTS)), steps_between=steps_between
    )

    assert [together.text(str(n)) for n in range(len(TEXTS))] == expected
    assert together.finished("0").reason == "length"
    assert together.finished("0").num_tokens == 12


def test_answers_of_different_lengths_leave_without_touching_the_others(
    bench: Bench, reference: Callable[..., str]
):
    lengths = (3, 90, 7)

    told = bench.run(
        *(
            ask(str(n), text, max_tokens=length)
            for n, (text, length) in enumerate(zip(TEXTS, lengths, strict=True))
        )
    )

    for n, (text, length) in enumerate(zip(TEXTS, lengths, strict=True)):
        assert told.text(str(n)) == reference(text, num_tokens=length)


def test_each_adapter_answers_as_it_does_alone_while_others_answer(
    bench: Bench, reference: Callable[..., str], red: Adapter, blue: Adapter
):
    expected = {name: reference(LONG, a) for name, a in (("red", red), ("blue", blue), ("-", None))}
    assert len(set(expected.values())) == 3

    told = bench.run(
        ask("red", LONG, adapter=red),
        ask("-", LONG),
        ask("blue", LONG, adapter=blue),
        ask("red again", SHORT, adapter=red),
        steps_between=1,
    )

    assert {name: told.text(name) for name in expected} == expected
    assert told.text("red again") == reference(SHORT, red)


def test_adapters_take_turns_so_that_none_waits_for_the_end_of_another(
    bench: Bench, red: Adapter, blue: Adapter
):
    told = bench.run(
        ask("red", adapter=red, max_tokens=60), ask("blue", adapter=blue, max_tokens=60)
    )

    half = told.order[: len(told.order) // 2]
    assert half.count("red") == pytest.approx(half.count("blue"), abs=10)


def test_a_newcomer_has_its_first_token_before_long_answers_end(bench: Bench):
    bench.engine.submit(ask("old", LONG, max_tokens=100))
    for _ in range(5):
        bench.engine.step()
    bench.engine.submit(ask("new"))
    bench.engine.step()

    assert bench.answers.pieces("new")
    bench.run()
    assert bench.answers.finished("old").num_tokens == 100


def test_the_prompt_is_counted_and_told_before_its_answer(bench: Bench):
    told = bench.run(ask("a"))

    began = told.events["a"][0]
    assert isinstance(began, Began)
    tokenizer = bench.engine.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": SHORT}], add_generation_prompt=True, tokenize=False
    )
    assert began.num_prompt_tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_stop_text_ends_an_answer_and_nothing_of_it_is_shown(bench: Bench):
    whole = bench.run(ask("whole", max_tokens=20)).text("whole")
    # Across the border of two tokens, so that its first half could have been shown.
    first, second = (piece.text for piece in bench.answers.pieces("whole")[6:8])
    stop = first[-1:] + second[:2]
    assert len(stop) >= 2

    told = bench.run(ask("cut", max_tokens=20, stop=(stop, "never"), top_logprobs=0))

    assert told.text("cut") == whole[: whole.index(stop)]
    assert told.finished("cut").reason == "stop"
    tokens = [each.token for piece in told.pieces("cut") for each in piece.logprobs]
    assert not any(stop in token for token in tokens)


def test_the_end_of_turn_ends_an_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    tokenizer: Any = bench.engine.tokenizer
    ids = tokenizer(bench.run(ask("a")).text("a"), add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(bench.engine, "_ends", frozenset(ids[3:4]))

    told = bench.run(ask("b"))

    assert told.finished("b").reason == "stop"
    assert told.finished("b").num_tokens <= 4


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(bench: Bench):
    hot = {"temperature": 1.3, "top_p": 0.9}

    told = bench.run(ask("a", seed=5, **hot))
    bench.run(ask("b", seed=5, **hot))
    bench.run(ask("c", seed=6, **hot))
    bench.run(ask("d", **hot))
    bench.run(ask("e", **hot))

    assert told.text("a") == told.text("b")
    assert len({told.text(name) for name in "acde"}) == 4


def test_n_answers_differ_and_the_first_is_that_of_one(bench: Bench):
    told = bench.run(ask("many", n=3, seed=5, temperature=1.3))
    bench.run(ask("one", seed=5, temperature=1.3))

    assert told.text("many", 0) == told.text("one")
    assert len({told.text("many", index) for index in range(3)}) == 3
    assert [told.finished("many", index).num_tokens for index in range(3)] == [12] * 3


def test_top_p_leaves_only_the_most_likely(bench: Bench):
    told = bench.run(ask("greedy"), ask("narrow", temperature=2, top_p=1e-6, seed=1))

    assert told.text("narrow") == told.text("greedy")


def test_logprobs_are_those_of_a_full_forward_pass(bench: Bench, red: Adapter, talker: Path):
    told = bench.run(
        ask("longer", LONG, adapter=red, max_tokens=30),
        ask("a", adapter=red, temperature=0.7, seed=3, top_logprobs=4),
    )
    tokenizer: Any = bench.engine.tokenizer
    model = adapted(talker, red)
    found = [each for piece in told.pieces("a") for each in piece.logprobs]
    encoded = prompts.encode(ask("a").prompt, tokenizer, frozenset())
    ids = list(encoded.ids)

    assert "".join(each.token for each in found) == told.text("a")
    for each in found:
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        # Several tokens may have the same text, but not the same logprob.
        token = int((logprobs - each.logprob).abs().argmin())
        assert tokenizer.decode([token]) == each.token
        assert logprobs[token].item() == pytest.approx(each.logprob, abs=1e-3)
        values, best = logprobs.topk(4)
        assert [pair[0] for pair in each.top] == [tokenizer.decode([n]) for n in best]
        assert [pair[1] for pair in each.top] == pytest.approx(values.tolist(), abs=1e-3)
        # The bytes of a part of a character are no text.
        assert bytes(each.token_bytes).decode(errors="replace") == each.token
        ids.append(token)


def test_padding_takes_no_attention(tiny_llama: Path):
    # Its weights are small, so that every token attends to all places alike.
    bench = Bench(tiny_llama)
    told = bench.run(ask("alone", top_logprobs=0))
    bench.run(ask("longer", LONG, max_tokens=30), ask("beside", top_logprobs=0))

    alone, beside = (
        [each.logprob for piece in told.pieces(name) for each in piece.logprobs]
        for name in ("alone", "beside")
    )
    assert beside == pytest.approx(alone, abs=1e-4)


def test_a_cancelled_request_gets_no_more_tokens_and_the_others_go_on(
    bench: Bench, reference: Callable[..., str]
):
    for name in ("a", "b"):
        bench.engine.submit(ask(name, max_tokens=40))
    for _ in range(6):
        bench.engine.step()
    before = len(bench.answers.pieces("a"))

    bench.engine.cancel("a")
    bench.engine.cancel("unknown")
    bench.run()

    assert bench.answers.failed("a").code == "cancelled"
    assert 0 < before == len(bench.answers.pieces("a"))
    assert bench.answers.text("b") == reference(SHORT, num_tokens=40)
    assert "unknown" not in bench.answers.events


def test_a_cancelled_request_gives_its_memory_to_the_next(bench: Bench, monkeypatch: Any):
    # Room for one of them at a time.
    monkeypatch.setattr(bench.engine, "_cache_bytes", bench.engine._token_bytes * 60)
    bench.engine.submit(ask("a"))
    bench.engine.step()

    bench.engine.cancel("a")
    bench.engine.submit(ask("b"))
    for _ in range(20):
        bench.engine.step()

    assert bench.answers.finished("b").num_tokens == 12


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(bench: Bench):
    told = bench.run(ask("long", "fish " * 600), ask("fits"))

    failed = told.failed("long")
    assert (failed.code, failed.param) == ("context_length_exceeded", "messages")
    assert failed.is_input_at_fault
    assert "512" in failed.message
    encoded = prompts.encode(ask("x", "fish " * 600).prompt, bench.engine.tokenizer, frozenset())
    assert str(len(encoded.ids)) in failed.message
    assert told.finished("fits").num_tokens == 12


def test_an_answer_ends_where_the_context_does(bench: Bench):
    told = bench.run(ask("a", "fish " * 440, max_tokens=None))

    began = told.events["a"][0]
    assert isinstance(began, Began)
    finished = told.finished("a")
    assert finished.reason == "length"
    assert began.num_prompt_tokens + finished.num_tokens == 512


def test_a_long_prompt_is_read_in_pieces_while_others_get_tokens(
    bench: Bench, reference: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "_PIECE_TOKENS", 64)

    told = bench.run(ask("short", max_tokens=30), ask("long", "fish " * 440))

    first_of_long = told.order.index("long")
    assert told.order[:first_of_long].count("short") >= 440 // 64
    assert told.text("long") == reference("fish " * 440)


def test_a_damaged_or_missing_adapter_fails_its_own_request_only(
    bench: Bench, red: Adapter, tmp_path: Path, reference: Callable[..., str]
):
    broken = damaged(red, tmp_path / "damaged")
    gone = Adapter(name="gone", folder=tmp_path / "gone")

    told = bench.run(
        ask("red", adapter=red),
        ask("broken", adapter=broken),
        ask("gone", adapter=gone),
        ask("base"),
        steps_between=1,
    )

    for name in ("broken", "gone"):
        assert told.failed(name).code == "invalid_model"
        assert told.failed(name).is_input_at_fault
    assert told.text("red") == reference(SHORT, red)
    assert told.text("base") == reference(SHORT)


def test_as_many_adapters_as_wanted_are_kept_and_all_that_are_asked_answer(
    talker: Path, make_adapter: Callable[..., Adapter], reference: Callable[..., str]
):
    bench = Bench(talker, most_adapters=2)
    adapters = [make_adapter(f"many-{n}", seed=n) for n in range(4)]

    told = bench.run(*(ask(each.name, adapter=each) for each in adapters))

    assert [told.text(each.name) for each in adapters] == [reference(SHORT, a) for a in adapters]
    assert len(bench.engine.shelf.names) == 2


def test_plain_text_goes_on_with_the_space_before_its_next_word(bench: Bench):
    told = bench.run(ask("a", "The capital of France", is_text=True))

    tokenizer: Any = bench.engine.tokenizer
    ids = tokenizer("The capital of France")["input_ids"]
    output = bench.engine.base.generate(  # pyright: ignore[reportCallIssue]
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    assert told.text("a") == tokenizer.decode(output[0, len(ids) :])


def test_memory_is_bounded_and_requests_wait_for_it(bench: Bench, monkeypatch: Any):
    token_bytes = bench.engine._token_bytes
    monkeypatch.setattr(bench.engine, "_cache_bytes", token_bytes * 100)

    told = bench.run(ask("a"), ask("b"), ask("c"), ask("huge", "fish " * 200))

    assert told.failed("huge").code == "no_memory"
    assert not told.failed("huge").is_input_at_fault
    # Two fit at a time; the third began when one of them had ended.
    ends = [n for n, name in enumerate(told.order) if name == "a"]
    assert told.order.index("c") > ends[-1]
    assert told.finished("c").num_tokens == 12


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(talker: Path):
    key, cpu = HostKey(model_folder=talker), torch.device("cpu")
    needed = room.needed_bytes(key, cpu)
    stored = sum(file.stat().st_size for file in talker.glob("*.safetensors"))
    packed = key.model_copy(update={"quantization": QuantizationSpec(load_in_4bit=True)})

    with pytest.raises(OutOfMemory, match=f"{needed} bytes.* 1000 bytes") as refused:
        room.require(key, cpu, free_bytes=1000)

    assert refused.value.code == "no_memory"
    assert stored < needed < stored * 1.2
    assert room.needed_bytes(packed, cpu) < needed
    assert room.free_bytes(cpu) > 0


def test_an_error_in_one_step_is_told_and_the_engine_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setenv("LORAD_FAILPOINTS", "")
        patch.setattr(bench.engine.base, "forward", _broken)
        told = bench.run(ask("a"))

    assert isinstance(told.events["a"][-1], Failed)
    assert told.failed("a").code == "no_memory"
    assert bench.run(ask("b")).finished("b").num_tokens == 12


def _broken(**_: Any) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
