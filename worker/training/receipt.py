"""The receipt of a run: counts and first problems of its data, and the fate of every line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from app.domain.receipts import LineFate, LineProblem, Receipt
from worker.training.tokens import TokenRows, Tokens


def receipt_of(tokens: Tokens, trained: TokenRows, *, num_held_out: int, num_units: int) -> Receipt:
    """Return the receipt of a data set of which the rows `trained` are trained on."""
    tally, num_rows = tokens.tally, len(tokens.rows)
    return Receipt(
        num_lines=tally.num_lines,
        num_kept=num_rows - tally.num_truncated,
        num_truncated=tally.num_truncated,
        num_dropped=tally.num_lines - num_rows,
        dropped_reasons=tally.dropped_reasons,
        num_train_rows=len(trained),
        num_eval_rows=num_held_out,
        num_units=num_units,
        num_tokens=int(trained.lengths.sum()),
        num_target_tokens=int(trained.num_targets.sum()),
        num_tokens_cut=tally.num_tokens_cut,
        longest_tokens=int(trained.lengths.max(initial=0)),
        num_turns_without_end=tally.num_turns_without_end,
        problems=tally.problems,
    )


def write_fates(path: Path, tokens: Tokens, held_out: np.ndarray) -> None:
    """Write the fate of every line, one `LineFate` per line of JSON, in the order of the file.

    Args:
        path: The file to write.
        tokens: The data set.
        held_out: Numbers of the rows that are not trained on.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        for fate in _fates(tokens, held_out):
            file.write(fate.model_dump_json(exclude_defaults=True))
            file.write("\n")
    temporary.replace(path)


def _fates(tokens: Tokens, held_out: np.ndarray) -> Iterator[LineFate]:
    """Merge the rows that are used with the lines that had a problem; both are in order."""
    is_held_out = np.zeros(len(tokens.rows), dtype=bool)
    is_held_out[held_out] = True
    problems = tokens.problems()
    problem = next(problems, None)
    rows = tokens.rows
    columns = (rows.lines, rows.lengths, rows.num_targets, rows.num_cut, is_held_out)
    for line, length, targets, cut, is_out in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        while problem is not None and problem.line < line:
            yield _dropped(problem)
            problem = next(problems, None)
        fate = LineFate(
            line=line,
            fate="kept",
            held_out=is_out,
            num_tokens=length,
            num_target_tokens=targets,
            num_tokens_cut=cut,
        )
        if problem is not None and problem.line == line:
            told = {"fate": "truncated", "reason": problem.reason, "detail": problem.detail}
            fate = fate.model_copy(update=told)
            problem = next(problems, None)
        yield fate
    while problem is not None:
        yield _dropped(problem)
        problem = next(problems, None)


def _dropped(problem: LineProblem) -> LineFate:
    return LineFate(
        line=problem.line,
        fate="dropped",
        num_tokens=problem.num_tokens,
        reason=problem.reason,
        detail=problem.detail,
    )
