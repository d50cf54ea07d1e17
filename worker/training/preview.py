"""Previews: rows of a data set as text and tokens, made as a training run makes them."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from app.domain.options import DatasetSpec
from app.domain.previews import PreviewRow, PreviewToken
from app.domain.tools import PreviewRequest, PreviewResult
from worker.training import model, reading
from worker.training.encode import EncodedRow
from worker.training.reading import Line, Source

_BROKEN = "\ufffd"
_MOST_TOKENS_OF_A_CHARACTER = 4


def preview(request: PreviewRequest) -> PreviewResult:
    """Show some rows of a data set.

    Raises:
        InvalidModel: The tokenizer does not load.
        UnusableData: The file as a whole cannot be used, or not with this tokenizer.
    """
    tokenizer = model.load_tokenizer(request.model_folder)
    wanted = request.num_rows + 1  # one more tells whether there are more
    source = Source(request.dataset, request.options)
    lines = reading.examine(source, tokenizer, offset=request.offset, at_once=wanted)
    chosen = list(islice(lines, wanted))
    shown = chosen[: request.num_rows]
    return PreviewResult(
        rows=tuple(_shown(line, request.options, tokenizer) for line in shown),
        has_more=len(chosen) > len(shown),
    )


def _shown(line: Line, options: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> PreviewRow:
    fate = reading.fate_of(line, options)
    row, problem = fate.row, fate.problem
    num_cut = 0 if problem is None else problem.num_tokens_cut
    return PreviewRow(
        line=line.number,
        text=_text(line, tokenizer),
        tokens=() if row is None else _tokens(row, tokenizer),
        num_tokens=0 if row is None else len(row.ids),
        num_targets=0 if row is None else row.num_targets,
        num_tokens_cut=num_cut,
        is_truncated=num_cut > 0,
        ends_turn=line.num_turns_without_end == 0 if line.num_turns else None,
        problem=problem,
    )


def _text(line: Line, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if line.rendered is None:
        return None
    if line.rendered.tokens is None:
        return line.rendered.text
    text = tokenizer.decode(list(line.rendered.tokens.input_ids), skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def _tokens(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> tuple[PreviewToken, ...]:
    ids = row.ids.tolist()
    # The first token of a row has no token before it that could predict it.
    is_target = row.is_target & (np.arange(len(ids)) > 0)
    texts = _texts(ids, tokenizer)
    return tuple(
        PreviewToken(id=number, text=text, is_target=target)
        for number, text, target in zip(ids, texts, is_target.tolist(), strict=True)
    )


def _texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Decode each token; a character made of several tokens is the text of the last of them."""
    anchor = tokenizer("a", add_special_tokens=False).input_ids[-1:]

    def decoded(runs: list[list[int]]) -> list[str]:
        # Behind an "a", because some tokenizers drop a space at the beginning.
        texts = tokenizer.batch_decode(
            [[*anchor, *run] for run in ([], *runs)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return [str(text)[len(texts[0]) :] for text in texts[1:]]

    distinct = sorted(set(ids))
    alone = dict(zip(distinct, decoded([[number] for number in distinct]), strict=True))
    texts: list[str] = []
    run: list[int] = []
    for number in ids:
        run.append(number)
        text = alone[number] if len(run) == 1 else decoded([run])[0]
        is_whole = _BROKEN not in text or len(run) == _MOST_TOKENS_OF_A_CHARACTER
        texts.append(text if is_whole else "")
        run = [] if is_whole else run
    if run:  # cut within a character
        texts[-1] = decoded([run])[0]
    return texts
