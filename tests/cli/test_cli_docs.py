"""docs/cli.md describes the commands that there are, with the options that they have."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")


@pytest.fixture(scope="module")
def transcripts():
    spec = importlib.util.spec_from_file_location("transcripts", ROOT / "docs" / "transcripts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told_commands() -> list[str]:
    """Return what the page tells to type, from the first `lorad` of a line on."""
    lines = re.findall(r"^\$ .*?(lorad .*)$", PAGE, flags=re.MULTILINE)
    inline = re.findall(r"`(lorad [a-z][^`]*)`", PAGE.partition("## Every command")[0])
    return lines + inline


def test_the_reference_is_that_of_the_commands(transcripts):
    assert transcripts.with_reference(PAGE) == PAGE, "run: python docs/transcripts.py --reference"


def test_every_command_is_in_the_reference_with_a_line_that_says_what_it_does(transcripts):
    for path, command in transcripts.commands():
        section = PAGE.partition(f"\n### {path}\n")[2].partition("\n### ")[0]
        assert " ".join((command.help or "absent").split()) in section, path


def test_everything_that_the_page_tells_to_type_exists(transcripts):
    known = {path.removeprefix("lorad "): command for path, command in transcripts.commands()}
    told = told_commands()

    assert len(told) > 20
    for line in told:
        words = shlex.split(line.partition("|")[0])[1:]
        command = known.get(" ".join(words[:2])) or known.get(words[0])
        if command is None:
            assert words[0] == "wathc" or words[0].startswith("--"), line
            continue
        names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        asked = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert set(asked) <= names, line


def test_every_transcript_was_made():
    blocks = re.findall(r"<!-- run: (.+?) -->\n(.*?)<!-- end -->", PAGE, flags=re.DOTALL)

    assert len(blocks) > 20
    for command, made in blocks:
        assert made.startswith("```console\n$ "), command
        assert "Traceback" not in made


def test_the_page_names_every_exit_code():
    from app.cli.exits import ExitCode

    table = PAGE.partition("| exit code | meaning |")[2].partition("\n\n")[0]
    told = [int(line.split("|")[1]) for line in table.splitlines()[2:]]
    assert told == sorted(ExitCode)


def test_the_page_holds_nothing_of_the_machine_that_made_it():
    assert not re.search(r"/tmp/|lorad-docs-", PAGE)
