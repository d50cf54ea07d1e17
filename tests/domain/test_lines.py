"""Lines and array elements: each is yielded once with its number, in bounded memory."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.containers import BrokenFile
from app.domain.lines import elements, numbered
from app.domain.rows import BadRow

BOM = b"\xef\xbb\xbf"
LINES = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=20)
ENDS = st.sampled_from([b"\n", b"\r\n"])


class MeteredFile(io.BytesIO):
    """A file that remembers the most bytes it was asked for at once."""

    most = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "an unbounded read"
        self.most = max(self.most, size)
        return super().readline(size)

    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("a read that knows nothing of lines")


@given(LINES, ENDS, st.booleans())
def test_no_byte_of_a_line_is_lost(lines: list[bytes], end: bytes, has_last_end: bool):
    content = end.join(lines) + (end if has_last_end else b"")

    found = list(numbered(io.BytesIO(content)))

    written = enumerate(content.removeprefix(BOM).split(b"\n"), start=1)
    assert found == [(number, line.strip()) for number, line in written if line.strip()]


@given(LINES, st.integers(1, 50))
def test_no_more_than_the_cap_is_read_at_once(lines: list[bytes], cap: int):
    file = MeteredFile(b"\n".join(lines))

    found = list(numbered(file, max_line_bytes=cap))

    refused = {number for number, line in found if isinstance(line, BadRow)}
    assert refused == {number for number, line in enumerate(lines, start=1) if len(line) > cap}
    assert all(len(line) <= cap for _, line in found if isinstance(line, bytes))
    assert file.most <= cap + 1


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"[1:]])
def test_a_line_as_long_as_the_cap_is_fine(end: bytes):
    assert list(numbered(io.BytesIO(b"abcd" + end), max_line_bytes=4)) == [(1, b"abcd")]


def test_a_line_over_the_cap_is_told_and_the_lines_after_it_are_read():
    (one, first), (three, bad), (four, last) = numbered(
        io.BytesIO(b"ab\n\nabcdefghijklmnop\nab\n"), max_line_bytes=4
    )

    assert (one, first, three, four, last) == (1, b"ab", 3, 4, b"ab")
    assert isinstance(bad, BadRow)
    assert bad.reason == "line_too_long"
    assert "longer than 4 bytes" in bad.message


def test_blank_lines_keep_their_number():
    assert list(numbered(io.BytesIO(b"\n  \n\t\na\n\nb"))) == [(4, b"a"), (6, b"b")]


def test_only_the_first_byte_order_mark_is_skipped():
    file = io.BytesIO(BOM + b"a\n" + BOM + b"b\n")

    assert list(numbered(file)) == [(1, b"a"), (2, BOM + b"b")]


@pytest.mark.parametrize("content", [b"", BOM, b"\n\n", b" \r\n"])
def test_a_file_without_content_has_no_lines(content: bytes):
    assert list(numbered(io.BytesIO(content))) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class DrippingFile(io.BytesIO):
    """A file that gives a few bytes at a time, whatever it is asked for."""

    num_bytes = 1

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.num_bytes)


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 2]), st.booleans(), st.integers(1, 9))
def test_an_array_is_split_into_its_elements_wherever_the_pieces_end(
    values: list[object], indent: int | None, ascii_only: bool, num_bytes: int
):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    file = DrippingFile(b" " + text.encode("utf-8", "surrogatepass") + b"\n")
    file.num_bytes = num_bytes + 1

    found = list(elements(file))

    assert [number for number, _ in found] == list(range(1, len(values) + 1))
    assert [json.loads(text) for _, text in found if isinstance(text, bytes)] == values


def test_an_element_over_the_cap_is_told_and_the_ones_after_it_are_read():
    found = list(elements(io.BytesIO(b'["ab", "abcdef", 1]'), max_bytes=5))

    assert [text.reason if isinstance(text, BadRow) else text for _, text in found] == [
        b'"ab"',
        "line_too_long",
        b"1",
    ]


def test_an_element_that_is_no_json_spoils_only_itself():
    found = list(elements(io.BytesIO(b'[{"a": 1]}, {oops}, {"b": 2},]')))

    assert [text for _, text in found] == [b'{"a": 1]}', b"{oops}", b'{"b": 2}', b""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"b"', "row 2: the file ends before its array does"),
        (b'[{"a": "]', "row 1: the file ends before its array does"),
        (b'[{"a": 1}] {"b": 2}', "something follows the array, which ends after 1 rows"),
        (b'{"a": 1}', "does not begin with"),
    ],
)
def test_an_array_that_does_not_end_where_the_file_does_is_broken(content: bytes, message: str):
    with pytest.raises(BrokenFile, match=message):
        list(elements(io.BytesIO(content)))


@pytest.mark.parametrize("content", [b"[]", b" [ \n ] \n", BOM + b"[]"])
def test_an_empty_array_has_no_elements(content: bytes):
    assert list(elements(io.BytesIO(content))) == []
