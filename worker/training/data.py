"""The data of a run: the rows to train on and to evaluate on, and the fate of every line."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Container
from app.domain.errors import UnusableData
from app.domain.options import DatasetSpec
from app.domain.receipts import Receipt
from app.domain.records import place
from app.domain.runs import FATES_FILE, RunFile
from worker.training import holdout, model, packing, token_cache
from worker.training.encode import EncodedRow
from worker.training.reading import TOO_LONG, Source
from worker.training.receipt import receipt_of, write_fates
from worker.training.token_cache import Found
from worker.training.tokens import TokenRows, Tokens

_NUM_SHOWN = 5


@dataclass(frozen=True)
class Notice:
    """Something about the data that the user should know and that is no failure."""

    code: str
    message: str
    data: Mapping[str, Any]


_EVAL_IS_TRAINED_ON = Notice(
    "eval_is_trained_on",
    "dataset.eval_id holds the very rows that are trained on, so its loss says nothing about other"
    " rows; give another data set, or dataset.val_size",
    {},
)


@dataclass(frozen=True)
class TrainingData:
    """The rows of a run, read when they are asked for.

    Args:
        rows: Rows to train on.
        units: What the sampler orders: tuples of row numbers, one row each; with packing several.
        receipt: What became of every line of the data set.
        eval_rows: Rows to evaluate on; none of them is in `rows`.
        eval_receipt: What became of every line of `dataset.eval_id`.
        fault: Why a run on it would not be what the user asked for.
    """

    rows: Sequence[EncodedRow]
    units: Sequence[tuple[int, ...]]
    receipt: Receipt
    eval_rows: Sequence[EncodedRow] = ()
    eval_receipt: Receipt | None = None
    notices: Sequence[Notice] = ()
    fault: UnusableData | None = None
    sha256: str = ""

    def fingerprint(self) -> str:
        """Hash of all tokens, masks and units, to train on and to evaluate on."""
        return self.sha256


class Singles(Sequence[tuple[int, ...]]):
    """A unit for each row, without a million tuples."""

    def __init__(self, num_rows: int) -> None:
        self._rows = range(num_rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        found = self._rows[number]
        return [(row,) for row in found] if isinstance(number, slice) else (found,)


def load(run: RunFile, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Read the data of a run and write down the fate of every line beside its events.

    What was found is returned even where it is not enough to train on; `require_usable` says so.

    Raises:
        UnusableData: A file as a whole cannot be used, or is not the one that was uploaded.
    """
    spec, tokenizer_sha256 = run.spec, token_cache.fingerprint_of(tokenizer)
    context = model.context_length(run.model_folder)

    def tokens_of(source: Source) -> Found:
        return token_cache.tokens_of(
            source, tokenizer, cache_folder=run.cache_folder, tokenizer_sha256=tokenizer_sha256
        )

    found = tokens_of(Source(run.dataset, spec.dataset))
    tokens = found.tokens
    val_size = spec.dataset.val_size
    kept, held_out = holdout.split(tokens.rows.lines, val_size=val_size, seed=spec.seed)
    write_fates(run.attempt_folder / FATES_FILE, tokens, held_out)
    rows = tokens.rows.take(kept)
    units = _units(rows, run)
    data = TrainingData(
        rows=rows,
        units=units,
        receipt=receipt_of(tokens, rows, num_held_out=len(held_out), num_units=len(units)),
        eval_rows=tokens.rows.take(held_out),
        notices=_notices(found, context),
        fault=_fault(tokens, spec.dataset, run.dataset.container)
        or _nothing_left(rows, tokens, spec.dataset),
        sha256=_hash(tokens.sha256, kept, held_out, units),
    )
    if run.eval_dataset is None:
        return data
    found = tokens_of(Source(run.eval_dataset, spec.dataset))
    data = _with_eval_set(data, found, spec.dataset, run.eval_dataset.container)
    same = [_EVAL_IS_TRAINED_ON] if run.eval_dataset.sha256 == run.dataset.sha256 else []
    return replace(data, notices=(*data.notices, *same, *_notices(found, context)))


def require_usable(data: TrainingData) -> None:
    """Check that what is left of the data is what the user wants to train on.

    Raises:
        UnusableData: Too little is left; the message names counts, reasons and first lines.
    """
    if data.fault is not None:
        raise data.fault


def _with_eval_set(
    data: TrainingData, found: Found, spec: DatasetSpec, container: Container
) -> TrainingData:
    tokens = found.tokens
    receipt = receipt_of(tokens, tokens.rows, num_held_out=0, num_units=len(tokens.rows))
    return replace(
        data,
        eval_rows=tokens.rows,
        eval_receipt=receipt,
        notices=(*data.notices, _told(receipt)),
        fault=data.fault or _fault(tokens, spec, container, what="evaluation "),
        sha256=hashlib.sha256(f"{data.sha256} {tokens.sha256}".encode()).hexdigest(),
    )


def _units(rows: TokenRows, run: RunFile) -> Sequence[tuple[int, ...]]:
    if not run.spec.training.packing:
        return Singles(len(rows))
    return packing.pack(rows.lengths, capacity=run.spec.dataset.max_length)


def _hash(
    tokens_sha256: str, kept: np.ndarray, held_out: np.ndarray, units: Sequence[tuple[int, ...]]
) -> str:
    digest = hashlib.sha256(tokens_sha256.encode())
    for numbers in (kept, held_out):
        digest.update(len(numbers).to_bytes(8, "little"))
        digest.update(numbers.astype("<i8").tobytes())
    if not isinstance(units, Singles):
        for unit in units:
            digest.update(f"{unit}".encode())
    return digest.hexdigest()


def _notices(found: Found, context: int | None) -> Sequence[Notice]:
    """Return what to tell of a data set for a model whose sequences end at `context` tokens."""
    tally, notices = found.tokens.tally, list[Notice]()
    num_beyond = 0 if context is None else int((found.tokens.rows.lengths > context).sum())
    if num_beyond:
        notices.append(
            Notice(
                "beyond_context",
                f"{num_beyond} rows have more tokens than the {context} that the model was made"
                f" for (max_position_embeddings); set dataset.max_length to {context} or less",
                {"num_rows": num_beyond, "context_length": context},
            )
        )
    if found.was_damaged:
        notices.append(
            Notice(
                "token_cache_rebuilt",
                "the cached tokens of the data were damaged on disk; they were made anew",
                {},
            )
        )
    if tally.num_turns and tally.num_turns_without_end == tally.num_turns:
        notices.append(
            Notice(
                "no_end_of_turn",
                "no assistant turn ends in a special token under the model's chat template, so"
                " the tuned model may not learn to stop",
                {"num_turns": tally.num_turns},
            )
        )
    return notices


def _told(receipt: Receipt) -> Notice:
    """Tell of the data set that is evaluated on; the job's receipt is that of the other one."""
    return Notice(
        "eval_data",
        f"evaluation on {receipt.num_train_rows} of {receipt.num_lines} rows of dataset.eval_id:"
        f" {receipt.num_truncated} cut to max_length, {receipt.num_dropped} left out",
        {
            **receipt.model_dump(mode="json", exclude={"problems", "num_eval_rows", "num_units"}),
            "first_problems": [p.model_dump(mode="json") for p in receipt.problems[:_NUM_SHOWN]],
        },
    )


def _fault(
    tokens: Tokens, spec: DatasetSpec, container: Container, *, what: str = ""
) -> UnusableData | None:
    num_lines, reasons = tokens.tally.num_lines, tokens.tally.dropped_reasons
    num_dropped = num_lines - len(tokens.rows)
    counted = ", ".join(f"{count} {name}" for name, count in reasons.items())
    if spec.on_too_long == "fail" and TOO_LONG in reasons:
        return UnusableData(
            f"{reasons[TOO_LONG]} of {num_lines} {what}rows have more than max_length"
            f" {spec.max_length} tokens; raise max_length, shorten them, or set on_too_long to"
            f" truncate or drop{_first(tokens, container, TOO_LONG)}",
            param="dataset.max_length",
        )
    if num_dropped == num_lines:
        return UnusableData(
            f"none of the {num_lines} {what}rows has a token to train on"
            f" ({counted or 'no rows'}){_first(tokens, container)}"
        )
    if num_dropped / num_lines > spec.max_dropped_fraction:
        return UnusableData(
            f"{num_dropped} of {num_lines} {what}rows would be left out ({counted}), more than"
            f" max_dropped_fraction {spec.max_dropped_fraction:g} allows"
            f"{_first(tokens, container)}",
            param="dataset.max_dropped_fraction",
        )
    return None


def _nothing_left(rows: TokenRows, tokens: Tokens, spec: DatasetSpec) -> UnusableData | None:
    if len(rows) or spec.val_size is None:
        return None
    return UnusableData(
        f"val_size {spec.val_size:g} holds out all of the {len(tokens.rows)} usable rows, which"
        " leaves none to train on; lower dataset.val_size, or add rows",
        param="dataset.val_size",
    )


def _first(tokens: Tokens, container: Container, reason: str | None = None) -> str:
    """Name the first lines that were dropped, as many as a message can hold."""
    dropped = (p for p in tokens.problems() if p.fate == "dropped" and reason in (None, p.reason))
    named = "; ".join(
        f"{place(container, p.line)}: {p.detail.partition('; ')[0]}"
        for p in islice(dropped, _NUM_SHOWN)
    )
    return f"; first: {named}" if named else ""
