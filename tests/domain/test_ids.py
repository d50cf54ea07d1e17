"""Ids: unique, sortable by time, and safe as a part of a path."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import ids

GOOD = "job-0199c2f4a1b3e07d5c2f9a81"


def test_a_new_id_is_an_id_of_its_kind_only():
    made = ids.new("ds")

    assert ids.is_id(made, "ds")
    assert not ids.is_id(made, "job")
    assert not ids.is_id(made, "d")


def test_ids_are_unique():
    assert len({ids.new("job") for _ in range(10_000)}) == 10_000


def test_ids_sort_by_the_time_of_their_making(monkeypatch: pytest.MonkeyPatch):
    moments = [1, 10**6, 10**12, 1_763_800_000 * 10**9, 1_763_800_001 * 10**9, 2**47 * 10**6]

    made = []
    for moment in moments:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
        made.append(ids.new("job"))

    assert made == sorted(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job-",
        GOOD.upper(),
        GOOD + "\n",
        "\n" + GOOD,
        GOOD + "0",
        GOOD[:-1],
        "job-0199c2f4a1b3e07d5c2f9a8g",
        "job-٠١٢٣٤٥٦٧٨٩٠١٢٣٤٥٦٧٨٩٠١٢٣",
        "job-../../../../etc/passwd/",
        "job/0199c2f4a1b3e07d5c2f9a81",
    ],
)
def test_what_is_no_id_is_refused(text: str):
    assert not ids.is_id(text, "job")


@given(st.text())
def test_only_harmless_characters_are_ever_accepted(text: str):
    accepted = ids.is_id(f"job-{text}", "job")

    assert accepted == (len(text) == 24 and set(text) <= set("0123456789abcdef"))
