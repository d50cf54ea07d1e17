"""The fate of every line: what is trained on, what is held out, and what is said of the rest."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import DataFile
from app.domain.errors import UnusableData
from app.domain.events import NoticeEvent, ReceiptEvent
from app.domain.receipts import MAX_PROBLEMS, LineFate
from app.domain.runs import FATES_FILE, RunFile
from tests.training_runs import Attempt, Workplace
from worker.training import data, holdout
from worker.training.data import TrainingData

SHORT = {"prompt": "a", "completion": " b"}  # 3 tokens with the end token
LONG_COMPLETION = {"prompt": "a", "completion": " b" * 20}  # 22 tokens
LONG_PROMPT = {"prompt": " a" * 20, "completion": " b"}
BAD = {"prompt": "c"}
NO_TEMPLATE_NEEDED = "prompt-completion"
KINDS = {"short": SHORT, "long": LONG_COMPLETION, "cut": LONG_PROMPT, "bad": BAD, "json": "{]"}


class Loader:
    """Loads rows as a run does; `max_length` is 8 unless the test says otherwise."""

    def __init__(self, workplace: Workplace, tokenizer: PreTrainedTokenizerBase) -> None:
        self._workplace = workplace
        self._tokenizer = tokenizer
        self.run: RunFile

    def __call__(self, *records: Any, **options: Any) -> TrainingData:
        self.run = self.run_file(*records, **options)
        return data.load(self.run, self._tokenizer)

    def run_file(
        self, *records: Any, training: dict[str, Any] | None = None, seed: int = 7, **options: Any
    ) -> RunFile:
        run = self._workplace.run_file(
            rows=[record for record in records if isinstance(record, dict)],
            row_format=NO_TEMPLATE_NEEDED,
            seed=seed,
            training=training or {},
            dataset={"max_length": 8, "max_dropped_fraction": 1.0, **options},
        )
        if any(isinstance(record, str) for record in records):
            content = "".join(r if isinstance(r, str) else json.dumps(r) for r in _lines(records))
            run = run.model_copy(update={"dataset": self.data_file(content)})
        return run

    def data_file(self, content: str) -> DataFile:
        raw = content.encode()
        sha256 = hashlib.sha256(raw).hexdigest()
        path = self._workplace.folder / f"{sha256}.jsonl"
        path.write_bytes(raw)
        return DataFile(path=path, sha256=sha256, format=NO_TEMPLATE_NEEDED)

    def fates(self) -> list[LineFate]:
        written = (self.run.attempt_folder / FATES_FILE).read_text().splitlines()
        return [LineFate.model_validate_json(line) for line in written]


def _lines(records: Any) -> list[Any]:
    return [part for record in records for part in (record, "\n")]


@pytest.fixture
def load(workplace: Workplace, tokenizer: PreTrainedTokenizerBase) -> Loader:
    return Loader(workplace, tokenizer)


def fail_message(loaded: TrainingData) -> str:
    with pytest.raises(UnusableData) as failed:
        data.require_usable(loaded)
    return failed.value.message


def test_a_long_row_is_cut_at_its_end_and_the_receipt_says_by_how_much(load: Loader):
    loaded = load(SHORT, LONG_COMPLETION)

    assert [len(row.ids) for row in loaded.rows] == [3, 8]
    receipt = loaded.receipt
    assert (receipt.num_lines, receipt.num_kept, receipt.num_truncated) == (2, 1, 1)
    assert (receipt.num_tokens, receipt.num_tokens_cut, receipt.longest_tokens) == (11, 14, 8)
    assert receipt.num_target_tokens == sum(row.num_targets for row in loaded.rows) == 2 + 7
    [problem] = receipt.problems
    assert (problem.line, problem.fate, problem.num_tokens, problem.num_tokens_cut) == (
        2,
        "truncated",
        22,
        14,
    )


@pytest.mark.parametrize(
    ("record", "options", "reason"),
    [
        (LONG_PROMPT, {}, "no_targets_within_max_length"),
        (LONG_COMPLETION, {"on_too_long": "drop"}, "too_long"),
        (BAD, {}, "missing_key"),
        ("{]", {}, "bad_json"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_for_its_reason_with_its_line(
    load: Loader, record: Any, options: dict[str, Any], reason: str
):
    loaded = load(SHORT, record, SHORT, **options)

    assert [row.line for row in loaded.rows] == [1, 3]
    assert loaded.receipt.dropped_reasons == {reason: 1}
    [problem] = loaded.receipt.problems
    assert (problem.line, problem.fate, problem.reason) == (2, "dropped", reason)
    assert problem.detail
    data.require_usable(loaded)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=130),
    max_length=st.sampled_from([8, 21, 22]),
    on_too_long=st.sampled_from(["truncate", "drop", "fail"]),
    val_size=st.sampled_from([None, 0.3, 2.0]),
)
def test_the_fates_of_any_mixture_add_up_and_every_line_has_one(
    load: Loader, kinds: list[str], max_length: int, on_too_long: str, val_size: float | None
):
    records = [KINDS[kind] for kind in kinds]

    loaded = load(*records, max_length=max_length, on_too_long=on_too_long, val_size=val_size)

    receipt, fates = loaded.receipt, load.fates()
    assert receipt.num_lines == len(kinds)
    assert receipt.num_kept + receipt.num_truncated + receipt.num_dropped == len(kinds)
    assert sum(receipt.dropped_reasons.values()) == receipt.num_dropped
    assert receipt.num_train_rows + receipt.num_eval_rows == len(kinds) - receipt.num_dropped
    assert [fate.line for fate in fates] == list(range(1, len(kinds) + 1))
    assert _counts(fates) == (receipt.num_kept, receipt.num_truncated, receipt.num_dropped)
    expected = [_expected(kind, max_length, on_too_long) for kind in kinds]
    assert [fate.fate for fate in fates] == expected
    troubled = [fate.line for fate in fates if fate.fate != "kept"]
    assert [problem.line for problem in receipt.problems] == troubled[:MAX_PROBLEMS]
    trained = {row.line for row in loaded.rows}
    evaluated = {row.line for row in loaded.eval_rows}
    assert trained == {f.line for f in fates if f.fate != "dropped" and not f.held_out}
    assert evaluated == {f.line for f in fates if f.held_out}


def _counts(fates: list[LineFate]) -> tuple[int, ...]:
    names = [fate.fate for fate in fates]
    return tuple(names.count(name) for name in ("kept", "truncated", "dropped"))


def _expected(kind: str, max_length: int, on_too_long: str) -> str:
    if kind == "short" or (kind in ("long", "cut") and max_length >= 22):
        return "kept"
    if kind == "long" or (kind == "cut" and max_length == 21):
        return "truncated" if on_too_long == "truncate" else "dropped"
    return "dropped"


def test_a_row_too_long_fails_the_job_when_asked_to_and_names_the_line(load: Loader):
    loaded = load(SHORT, LONG_COMPLETION, on_too_long="fail")

    message = fail_message(loaded)

    assert "1 of 2 rows have more than max_length 8 tokens" in message
    assert "line 2: 22 tokens" in message


def test_too_many_dropped_rows_fail_with_counts_and_first_lines(load: Loader):
    rows = [SHORT, LONG_COMPLETION, LONG_PROMPT, BAD]

    data.require_usable(load(*rows, max_dropped_fraction=0.5))
    message = fail_message(load(*rows, max_dropped_fraction=0.49))

    assert "2 of 4 rows would be left out" in message
    assert "1 missing_key, 1 no_targets_within_max_length" in message
    assert "line 3: the first 8 of its 22 tokens" in message
    assert "line 4: completion is missing" in message


def test_rows_without_any_target_fail_even_when_all_may_be_dropped(load: Loader):
    assert "none of the 1 rows has a token to train on" in fail_message(load(LONG_PROMPT))


def test_a_failed_run_has_written_its_receipt_before_it_failed(workplace: Workplace):
    attempt = workplace.train(
        rows=[SHORT, LONG_PROMPT],
        row_format=NO_TEMPLATE_NEEDED,
        dataset={"max_length": 8, "max_dropped_fraction": 0.1},
    )

    assert attempt.exit_code == 1
    assert [event.kind for event in attempt.events] == ["receipt", "failed"]
    [event] = [each for each in attempt.events if isinstance(each, ReceiptEvent)]
    assert event.receipt.dropped_reasons == {"no_targets_within_max_length": 1}
    assert (attempt.folder / FATES_FILE).read_text().count("\n") == 2
    assert attempt.failed.code == "unusable_data"


def test_a_file_that_changed_since_the_upload_is_refused(
    load: Loader, tokenizer: PreTrainedTokenizerBase
):
    run = load.run_file(SHORT)
    run.dataset.path.write_text(json.dumps(BAD))

    with pytest.raises(UnusableData, match="not the one that was uploaded"):
        data.load(run, tokenizer)


@pytest.mark.parametrize(("val_size", "num_held_out"), [(0.25, 5), (3.0, 3), (0.001, 1)])
def test_rows_held_out_are_never_trained_on(load: Loader, val_size: float, num_held_out: int):
    loaded = load(*[SHORT] * 20, val_size=val_size)

    trained = [row.line for row in loaded.rows]
    evaluated = [row.line for row in loaded.eval_rows]
    assert len(evaluated) == num_held_out == loaded.receipt.num_eval_rows
    assert sorted(trained + evaluated) == list(range(1, 21))
    assert loaded.receipt.num_train_rows == len(loaded.units) == 20 - num_held_out


def test_what_is_held_out_depends_on_the_seed_and_the_rows_alone(load: Loader):
    def held_out(**options: Any) -> list[int]:
        return [row.line for row in load(*[SHORT] * 40, val_size=8.0, **options).eval_rows]

    assert held_out() == held_out(training={"max_steps": 3, "packing": True})
    assert held_out() != held_out(seed=8)
    # A dropped row changes nothing for the others: it leaves the choice to the next one at most.
    usable = np.arange(1, 41)
    _, chosen = holdout.split(usable, val_size=8, seed=7)
    without_first = np.delete(usable, 0)
    _, again = holdout.split(without_first, val_size=8, seed=7)
    assert len(set(usable[chosen]) & set(without_first[again])) >= 7


def test_a_holdout_that_leaves_nothing_to_train_on_fails(load: Loader):
    message = fail_message(load(SHORT, SHORT, val_size=2.0))

    assert "val_size 2 holds out all of the 2 usable rows" in message


def test_an_evaluation_on_the_rows_that_are_trained_on_is_told_of(
    load: Loader, tokenizer: PreTrainedTokenizerBase
):
    run = load.run_file(SHORT, SHORT)

    found = data.load(run.model_copy(update={"eval_dataset": run.dataset}), tokenizer)

    assert "eval_is_trained_on" in [each.code for each in found.notices]


def test_another_data_set_is_evaluated_on_under_the_same_options(
    load: Loader, tokenizer: PreTrainedTokenizerBase
):
    other = load.data_file("".join(json.dumps(r) + "\n" for r in (LONG_COMPLETION, SHORT, BAD)))

    def loaded(**options: Any) -> TrainingData:
        run = load.run_file(SHORT, SHORT, **options).model_copy(update={"eval_dataset": other})
        return data.load(run, tokenizer)

    usable, refused = loaded(), loaded(max_dropped_fraction=0.3)

    assert [len(row.ids) for row in usable.eval_rows] == [8, 3]
    assert (usable.receipt.num_lines, usable.receipt.num_eval_rows) == (2, 0)
    data.require_usable(usable)
    assert "eval_is_trained_on" not in [each.code for each in usable.notices]
    [notice] = [each for each in usable.notices if each.code == "eval_data"]
    assert (notice.data["num_dropped"], notice.data["num_truncated"]) == (1, 1)
    assert notice.data["first_problems"][1]["line"] == 3
    assert "1 of 3 evaluation rows would be left out" in fail_message(refused)
    assert usable.fingerprint() != load(SHORT, SHORT).fingerprint()


def test_equal_tokens_masks_and_units_have_equal_fingerprints(load: Loader):
    def fingerprint(*records: Any, **options: Any) -> str:
        return load(*records, **options).fingerprint()

    one = fingerprint(SHORT, LONG_COMPLETION)

    assert one == fingerprint(SHORT, LONG_COMPLETION)
    others = [
        fingerprint(SHORT, LONG_COMPLETION, train_on_inputs=True),
        fingerprint(LONG_COMPLETION, SHORT),
        fingerprint(SHORT, LONG_COMPLETION, training={"packing": True}),
        fingerprint(SHORT, LONG_COMPLETION, val_size=1.0),
        fingerprint(SHORT, LONG_COMPLETION, val_size=1.0, seed=8),
    ]
    assert len({one, *others}) == 1 + len(others) - _is_same_row_held_out(load)


def _is_same_row_held_out(load: Loader) -> bool:
    chosen = [load(SHORT, LONG_COMPLETION, val_size=1.0, seed=s).eval_rows[0].line for s in (7, 8)]
    return chosen[0] == chosen[1]


def test_rows_beyond_the_context_of_the_model_are_told_of(load: Loader):
    beyond = {"prompt": "a", "completion": " b" * 2048}

    found = load(SHORT, beyond, max_length=4096)
    cut = load(SHORT, beyond, max_length=2048)

    [notice] = found.notices
    assert notice.code == "beyond_context"
    assert notice.data == {"num_rows": 1, "context_length": 2048}
    assert not cut.notices


def test_a_template_that_never_ends_a_turn_is_told_of(workplace: Workplace):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"

    attempt: Attempt = workplace.train(
        dataset={"chat_template": template}, training={"max_steps": 1}
    )

    [event] = [e for e in attempt.events if isinstance(e, NoticeEvent)]
    assert event.code == "no_end_of_turn"
    [receipt] = [e.receipt for e in attempt.events if isinstance(e, ReceiptEvent)]
    assert receipt.num_turns_without_end == event.data["num_turns"] == 9
