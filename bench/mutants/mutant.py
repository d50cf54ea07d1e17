"""A mutant: one fault put into the product on purpose, and the tests that have to see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A cluster costs seconds, and what these faults break is broken on both databases.
_SELECT = "not postgresql"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One place that a mutant changes."""

    file: str
    """Path inside the project."""
    old: str
    """Text that occurs once in the file."""
    new: str
    """What it becomes."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A deliberate fault."""

    name: str
    violates: str
    """The invariant (I1 to I10) or the promise that no longer holds."""
    breaks: str
    """What goes wrong, as one sentence."""
    edits: Sequence[Edit]
    """One for most; more where the product holds the promise in two places."""
    tests: Sequence[str]
    """Node ids of the tests that should see it, the quickest first."""
    select: str = _SELECT
    """Expression of pytest's `-k` that is applied to these tests."""
    seconds: float = 120.0
    """Time after which a run of the tests counts as a hang."""


class Stale(Exception):
    """A text that a mutant changes is not there once; the message names file and count."""


def edit(file: str, old: str, new: str) -> Edit:
    return Edit(file=file, old=old, new=new)


def mutated(root: Path, mutant: Mutant) -> dict[Path, str]:
    """Return the files that a mutant changes, with their new content.

    Raises:
        Stale: A text is not in its file, or more than once.
    """
    contents: dict[Path, str] = {}
    for each in mutant.edits:
        path = root / each.file
        if path not in contents:
            contents[path] = path.read_text("utf-8") if path.is_file() else ""
        count = contents[path].count(each.old)
        if count != 1:
            raise Stale(f"{each.file}: the text to change occurs {count} times instead of once")
        contents[path] = contents[path].replace(each.old, each.new)
    return contents
