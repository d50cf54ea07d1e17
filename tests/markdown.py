"""Reading Markdown pages: headings, links, fenced blocks, code spans and tables."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(.*?)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^(#+) +(.*)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One page; its name is its path from the root of the repository."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def anchors(self) -> set[str]:
        """What links to a place in the page may name, as GitHub makes it of the headings."""
        seen: Counter[str] = Counter()
        found: set[str] = set()
        for _, heading in _HEADING.findall(self.prose):
            slug = _slug(heading)
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        return found

    @property
    def links(self) -> list[str]:
        return _LINK.findall(_SPAN.sub("", self.prose)) + _LINK.findall(self.prose)

    @property
    def spans(self) -> list[str]:
        """Texts in backticks."""
        return _SPAN.findall(self.prose)

    def blocks(self, kind: str | None = None) -> list[str]:
        """Return the fenced blocks, of one kind or of all."""
        return [text for info, text in _FENCE.findall(self.text) if kind in (None, info)]

    def section(self, heading: str) -> str:
        """Return the text below a heading, up to the next one of its level or above."""
        level, _, title = heading.partition(" ")
        _, found, rest = self.text.partition(f"\n{level} {title}\n")
        assert found, f"{self.name} has no heading {heading}"
        end = re.search(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)
        return rest[: end.start()] if end else rest


def pages(*more: str) -> list[Page]:
    """Return every page of the docs, and others by their paths."""
    return [Page(path) for path in (*sorted(DOCS.glob("*.md")), *(ROOT / name for name in more))]


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table, heads left out."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and re.fullmatch(r"\|[-| :]+\|", lines[number + 1])
        if line.startswith("|") and not is_head and not re.fullmatch(r"\|[-| :]+\|", line):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def _slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
