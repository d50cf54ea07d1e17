"""Lines: every line is yielded once with its number, in bounded memory."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.lines import numbered
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

    try:
        found = list(numbered(file, max_line_bytes=cap))
    except BadRow:
        assert max(map(len, lines)) > cap
    else:
        assert max(map(len, lines), default=0) <= cap
        assert all(len(line) <= cap for _, line in found)
    assert file.most <= cap + 1


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"[1:]])
def test_a_line_as_long_as_the_cap_is_fine(end: bytes):
    assert list(numbered(io.BytesIO(b"abcd" + end), max_line_bytes=4)) == [(1, b"abcd")]


def test_a_line_over_the_cap_is_named_after_the_good_ones_were_given():
    lines = numbered(io.BytesIO(b"ab\n\nabcde\nab\n"), max_line_bytes=4)

    assert next(lines) == (1, b"ab")
    with pytest.raises(BadRow, match="line 3 is longer than 4 bytes") as caught:
        next(lines)
    assert caught.value.reason == "line_too_long"


def test_blank_lines_keep_their_number():
    assert list(numbered(io.BytesIO(b"\n  \n\t\na\n\nb"))) == [(4, b"a"), (6, b"b")]


def test_only_the_first_byte_order_mark_is_skipped():
    file = io.BytesIO(BOM + b"a\n" + BOM + b"b\n")

    assert list(numbered(file)) == [(1, b"a"), (2, BOM + b"b")]


@pytest.mark.parametrize("content", [b"", BOM, b"\n\n", b" \r\n"])
def test_a_file_without_content_has_no_lines(content: bytes):
    assert list(numbered(io.BytesIO(content))) == []
