"""The results of mutants as a table, as JSON, and as a section of docs/mutations.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bench.comparison import markdown
from bench.mutants.running import Result, Verdict

GOAL = 0.95
_BEGIN, _END = "<!-- mutants -->", "<!-- end of mutants -->"
_MOST_NOTE_CHARACTERS = 300


def share_caught(results: Sequence[Result]) -> float:
    """Return the share of mutants that were caught, of those that their tests could judge."""
    counts = Counter(result.verdict for result in results)
    judged = counts[Verdict.CAUGHT] + counts[Verdict.SURVIVED]
    return counts[Verdict.CAUGHT] / judged if judged else 0.0


def is_good(results: Sequence[Result]) -> bool:
    """Tell whether enough mutants were caught and every one of them could be judged."""
    is_judged = all(each.verdict in (Verdict.CAUGHT, Verdict.SURVIVED) for each in results)
    return is_judged and share_caught(results) >= GOAL


def line(result: Result) -> str:
    """Say in one line what became of a mutant."""
    found = f"{result.verdict:9} {result.mutant.name:45} {result.seconds:6.1f} s"
    return f"{found}  {_explanation(result)}".rstrip()


def summary(results: Sequence[Result]) -> str:
    """Say how many were caught, and name the others."""
    caught = sum(each.verdict is Verdict.CAUGHT for each in results)
    judged = sum(each.verdict in (Verdict.CAUGHT, Verdict.SURVIVED) for each in results)
    lines = [f"{caught} of {judged} mutants caught ({share_caught(results):.1%})"]
    for verdict in Verdict:
        names = [each.mutant.name for each in results if each.verdict is verdict]
        if names and verdict is not Verdict.CAUGHT:
            lines.append(f"{verdict}: {', '.join(names)}")
    return "\n".join(lines)


def to_json(results: Sequence[Result], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what bench/results keeps."""
    return {
        **facts,
        "num_mutants": len(results),
        "num_caught": sum(each.verdict is Verdict.CAUGHT for each in results),
        "share_caught": round(share_caught(results), 4),
        "survivors": [each.mutant.name for each in results if each.verdict is Verdict.SURVIVED],
        "mutants": [
            {
                "name": each.mutant.name,
                "violates": each.mutant.violates,
                "breaks": each.mutant.breaks,
                "files": sorted({edit.file for edit in each.mutant.edits}),
                "verdict": each.verdict,
                "caught_by": each.by,
                "how": each.how,
                "why": each.why,
                "note": each.note[:_MOST_NOTE_CHARACTERS],
                "seconds": round(each.seconds, 1),
            }
            for each in results
        ],
    }


def to_markdown(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """Return the section of the document."""
    rows = [
        f"| {each.mutant.breaks} | {each.mutant.violates} | {_cell(each)} |" for each in results
    ]
    parts = [
        f"{summary(results)}; `make mutants`, {facts['date'][:10]}, {facts['machine']}.",
        "\n".join(["| the fault | breaks | found by |", "|---|---|---|", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def placed(document: str, text: str) -> str:
    """Return the document with the section put in, in place of an older one or at its end.

    Raises:
        ValueError: The section of the document has no end.
    """
    return markdown.with_section(document, text, _BEGIN, _END)


def _cell(result: Result) -> str:
    if result.verdict is not Verdict.CAUGHT:
        return f"**{result.verdict}**"
    file, _, test = (result.by or "").partition("::")
    shown = f"`{file.rpartition('/')[2]}::{test.partition('[')[0]}`"
    return shown if result.how == "failed" else f"{shown} ({result.how})"


def _explanation(result: Result) -> str:
    if result.verdict is Verdict.CAUGHT:
        found = f"by {result.by}" + ("" if result.how == "failed" else f" ({result.how})")
        return f"{found}; {result.note}" if result.note else found
    if result.verdict is Verdict.SURVIVED:
        return "; ".join(
            filter(None, (f"not seen by {', '.join(result.mutant.tests)}", result.note))
        )
    return result.note
