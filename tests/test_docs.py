"""The docs say what is so: links lead somewhere, tables are the code's, every code is explained."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer

from app.api.errors import STATUSES
from app.cli import main as command_line
from app.cli.exits import ExitCode
from app.domain import aliases
from app.domain.events import TrainerEvent
from app.domain.spec import GROUPS, JobSpec
from app.settings import Settings
from docs import pages as generated
from docs import reference
from tests import error_codes
from tests.markdown import DOCS, ROOT, Page, pages, rows

ALL = pages("README.md", "CONTRIBUTING.md")
# A line that begins with a command, as it is typed, run in a container, or drawn into a box.
_COMMAND = re.compile(r"^(?:\$ |docker compose run .* |[│ ]*│ ?|)lorad ([a-z].*)")
# Its transcripts are made by running the commands; they have a test of their own.
HAND_WRITTEN = [page for page in ALL if page.name != "docs/cli.md"]
by_name = pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
# Code names of pages that no error of ours has: statuses without one of their own.
HTTP_CODES = {"method_not_allowed", "bad_request"}
KINDS = {
    "error": (
        *("Requests", "Jobs", "Runs that failed", "Workers and the service"),
        *("Answers of models", "Files, uploads, exports"),
    ),
    "row": ("Rows",),
    "notice": ("Notices of a run",),
    "warning": ("Warnings of a plan",),
}
TROUBLE = Page(DOCS / "troubleshooting.md")


# Links


@by_name
def test_every_link_and_anchor_leads_somewhere(page: Page):
    anchors = {other.path: other.anchors for other in ALL}

    for link in page.links:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors[target], link


@by_name
def test_every_file_that_a_page_names_is_there(page: Page):
    folders = ("app", "bench", "docs", "examples", "migrations", "tests", "worker")

    for span in page.spans:
        named = re.fullmatch(rf"(?:{'|'.join(folders)})/[\w./*-]+", span)
        if named and not re.search(r"<|\*", span):
            assert (ROOT / span).exists(), span
        elif named:
            assert list(ROOT.glob(span)), span


def test_every_page_is_found_from_the_first_one():
    linked = {link.partition("#")[0] for link in Page(DOCS / "index.md").links}

    assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} <= linked


# What is generated


def test_the_generated_parts_are_current():
    for path, contents in reference.parts().items():
        for name, content in contents.items():
            written = generated.part(path.read_text("utf-8"), name)
            assert written == content.strip(), f"{path.name}: run python docs/reference.py ({name})"


def test_an_old_page_is_told_and_brought_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- generated: x -->\nold\n<!-- end of x -->\nb\n")

    before = generated.write({page: {"x": "new"}}, is_check=True), page.read_text()
    written = generated.write({page: {"x": "new"}}, is_check=False)
    after = generated.write({page: {"x": "new"}}, is_check=True)

    assert (before[0], written, after) == (1, 0, 0)
    assert "old" in before[1]
    assert page.read_text() == "a\n<!-- generated: x -->\nnew\n<!-- end of x -->\nb\n"
    assert capsys.readouterr().out == "page.md is not current\npage.md is written\n"


def test_marks_that_are_not_there_once_are_a_fault():
    with pytest.raises(ValueError, match="0 times"):
        generated.part("text", "x")


# Codes


@cache
def all_codes() -> error_codes.Codes:
    return error_codes.found()


@pytest.mark.parametrize("kind", KINDS)
def test_the_codes_of_the_sources_are_those_of_the_page(kind: str):
    codes = all_codes()
    known, patterns = codes.exact[kind], codes.patterns.get(kind, set())
    text = "".join(TROUBLE.section(f"## {heading}") for heading in KINDS[kind])
    told = [row[0].strip("`") for row in rows(text)]

    made = {code for code in told if any(re.fullmatch(each, code) for each in patterns)}
    assert known - set(told) == set(), "add them to docs/troubleshooting.md"
    assert set(told) - known - made == (HTTP_CODES if kind == "error" else set())
    assert len(told) == len(set(told))
    assert not patterns or made


def test_codes_are_found_wherever_they_are_written():
    codes = all_codes().exact

    # A class default, a keyword, a custom error of pydantic, a constant, and one of two.
    assert {"not_found", "crash_loop", "unknown_key", "model_not_found"} <= codes["error"]
    assert {"too_long", "bad_json"} <= codes["row"]
    assert {"healed", "beyond_context"} <= codes["notice"]


def test_the_exit_codes_are_those_of_the_command_line():
    told = [int(row[0]) for row in rows(TROUBLE.section("## Exit codes"))]

    assert told == sorted(map(int, ExitCode))


def test_the_statuses_of_errors_are_explained():
    told = {int(row[0]) for row in rows(Page(DOCS / "http-api.md").section("## Errors"))}

    assert told == {status for _, status in STATUSES} | {405, 500}


def test_every_event_of_the_stream_is_explained():
    told = [row[0] for row in rows(Page(DOCS / "http-api.md").section("## The stream"))]
    union = get_args(get_args(TrainerEvent)[0])
    kinds = {each.model_fields["kind"].default for each in union} | {"state", "complete"}

    assert {name for cell in told for name in re.findall(r"`(\w+)`", cell)} == kinds


# Variables and commands


@by_name
def test_every_variable_that_a_page_names_is_read_somewhere(page: Page):
    sources = [*(ROOT / "app").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    read = set(re.findall(r"LORAD_[A-Z_]+[A-Z]", "".join(path.read_text() for path in sources)))
    read |= {f"LORAD_{name.upper()}" for name in Settings.model_fields}

    assert set(re.findall(r"LORAD_[A-Z_]+[A-Z]", page.text)) <= read


def commands(page: Page) -> Iterator[list[str]]:
    """Yield the words of every command of ours that a page names, without comments."""
    code = [*page.blocks(), *page.spans]
    for line in (line for text in code for line in text.splitlines()):
        found = _COMMAND.match(line)
        if found:
            yield re.split(r" #| \| |[;,│]", found.group(1))[0].split()


def command(words: list[str]) -> click.Command | None:
    """Find the command that words begin with."""
    found: Any = typer.main.get_command(command_line.app)
    for word in words:
        if not hasattr(found, "commands"):
            break
        found = found.commands.get(word)
        if found is None:
            return None
    return found


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists_with_its_options(page: Page):
    for words in commands(page):
        found = command(words)
        assert found is not None, words
        known = {option for each in found.params for option in (*each.opts, *each.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= known | {"--help"}, words


def test_commands_are_found_in_pages():
    found = [words[0] for page in HAND_WRITTEN for words in commands(page)]

    assert {"up", "submit", "resume", "keys", "migrate", "convert"} <= set(found)
    assert command(["keys", "create"]) is not command(["keys"])
    assert command(["nonsense"]) is None


# Keys


def test_names_of_other_trainers_lead_to_keys_that_exist():
    known = {*JobSpec.model_fields, "dataset.path"}
    known |= {f"{group}.{key}" for group, model in GROUPS.items() for key in model.model_fields}
    table = [row for row in rows(Page(DOCS / "moving.md").text) if len(row) == 3]

    assert len(table) > 80
    for _, ours, _ in table:
        assert ours == "" or ours.strip("`") in known


def test_names_that_are_taken_as_they_are_lead_to_the_key_of_the_table():
    text = Page(DOCS / "moving.md").text
    table = [row for row in rows(text) if len(row) == 3 and row[1]]
    named = [
        (name, ours.strip("`"))
        for theirs, ours, _ in table
        for name in re.findall(r"`(\w+)`", theirs)
    ]
    taken = {(name, ours) for name, ours in named if name in aliases.ALIASES}

    assert len(taken) > 20
    assert {(name, aliases.ALIASES[name]) for name, _ in taken} == taken
