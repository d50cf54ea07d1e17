"""Tables fit where they are shown, lose nothing there, and have colours only where they may."""

import json
import re

import pytest
from rich.cells import cell_len

from app.cli import output, tables
from app.cli.tables import Piece
from app.domain.jobs import JobState
from tests.cli.conftest import JOB_ID, listing, make_job

NAME = "a long name of a job \u6c34\u6c34\u6c34 that goes on and on"


@pytest.fixture
def terminal(monkeypatch):
    """Make standard output a terminal of so many columns."""

    def make(columns: int) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm-256color")

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return make


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("columns", [40, 80, 120, 300])
def test_a_list_fits_the_terminal_and_keeps_every_character(api, lorad, terminal, columns):
    api.on("GET /jobs", listing(make_job(name=NAME), make_job(JobState.FAILED, name="b")))
    terminal(columns)

    shown = plain(lorad("ls").stdout)

    assert max(map(cell_len, shown.splitlines())) <= columns
    assert shown.count(JOB_ID) == 2
    letters = [char for char in NAME if not char.isspace()]
    column = shown if columns == 300 else "".join(shown.split())
    assert columns < 300 or NAME in shown
    assert all(char in column for char in letters)
    assert "failed" in shown


def test_what_does_not_fit_side_by_side_goes_below_each_other():
    table = tables.Table(
        titles=["ID", "NOTE"],
        rows=[[[Piece("x" * 30)], [Piece("one two three")]]],
        folds=[False, True],
    )

    assert tables.draw(table, width=36, colour=False) == [
        "id    " + "x" * 30,
        "note  one two three",
    ]
    folded = tables.draw(table, width=41, colour=False)
    assert [line[30:].split() for line in folded] == [["NOTE"], ["one", "two"], ["three"]]


def test_a_column_that_may_be_left_out_is_left_out_first():
    table = tables.Table(
        titles=["STEP", "ID"],
        rows=[[[Piece("1")], [Piece("x" * 30)]]],
        folds=[False, False],
        optional=[False, True],
    )

    assert tables.draw(table, width=20, colour=False) == ["STEP", "   1"]
    assert "x" * 30 in tables.draw(table, width=40, colour=False)[1]


def test_colours_are_for_terminals_and_no_color_wins(api, lorad, terminal, monkeypatch):
    api.on("GET /jobs", listing(make_job()))

    piped = lorad("ls").stdout
    terminal(120)
    coloured = lorad("ls").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    refused = lorad("ls").stdout

    assert "\x1b" not in piped
    assert "\x1b[36mrunning\x1b[0m" in coloured
    assert "\x1b" not in refused
    assert plain(coloured) == refused


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.2 s"), (59, "59 s"), (61, "1 min 01 s"), (3661, "1 h 01 min"), (2e5, "2 d 7 h")],
)
def test_times_are_written_in_their_two_largest_units(seconds, words):
    assert output.duration(seconds) == words


def test_json_has_a_short_name_on_every_command_that_prints_data(api, lorad):
    api.on("GET /jobs", listing(make_job()))

    assert json.loads(lorad("ls", "--json").stdout) == json.loads(lorad("ls", "-o", "json").stdout)
    refused = lorad("ls", "--json", "-o", "id")
    assert (refused.code, refused.stdout) == (2, "")
    assert "--json excludes --output id" in refused.stderr
