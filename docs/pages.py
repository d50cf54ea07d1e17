"""Generated parts of a page: each stands between two comments and is made anew as a whole."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

Parts = Mapping[Path, Mapping[str, str]]


def part(text: str, name: str) -> str:
    """Return what stands between the marks of a generated part.

    Raises:
        ValueError: The page does not have these marks exactly once.
    """
    found = _pattern(name).findall(text)
    if len(found) != 1:
        raise ValueError(f"the marks of the generated part {name} are there {len(found)} times")
    return found[0]


def replaced(text: str, name: str, content: str) -> str:
    """Return a page with new content in one generated part."""
    part(text, name)
    block = f"{_begin(name)}\n{content.strip()}\n{_end(name)}"
    return _pattern(name).sub(lambda _: block, text)


def write(parts: Parts, *, is_check: bool) -> int:
    """Bring pages up to date, or only say which are not; returns an exit status."""
    stale: list[str] = []
    for path, contents in parts.items():
        before = text = path.read_text("utf-8")
        for name, content in contents.items():
            text = replaced(text, name, content)
        if text != before:
            stale.append(path.name)
            if not is_check:
                path.write_text(text, "utf-8")
    if stale:
        said = "is not current" if is_check else "is written"
        sys.stdout.writelines(f"{name} {said}\n" for name in stale)
    return int(is_check and bool(stale))


def _begin(name: str) -> str:
    return f"<!-- generated: {name} -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"


def _pattern(name: str) -> re.Pattern[str]:
    begin, end = map(re.escape, (_begin(name), _end(name)))
    return re.compile(rf"{begin}\n(.*?)\n?{end}", flags=re.DOTALL)
