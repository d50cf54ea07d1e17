"""Records: the same rows in every container, in bounded memory, and a clear word where one ends."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from app.domain import records
from app.domain.errors import TooLarge
from app.domain.records import BrokenFile
from app.domain.row_types import MAX_LINE_BYTES, BadRow
from tests.row_files import COMPRESSIONS, WRITERS, write_csv, write_parquet, zstd

ROWS = [{"prompt": 'a,"b"\n]', "completion": "é 漢"}, {"prompt": "", "completion": "{\\"}]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[tuple[int, Any]]]:
    def read(content: bytes, filename: str = "", **options: Any) -> list[tuple[int, Any]]:
        path = tmp_path / "upload"
        path.write_bytes(content)
        container, compression = records.recognise(path, filename)
        found = records.read(path, container=container, compression=compression, **options)
        return [
            (number, record.reason if isinstance(record, BadRow) else record)
            for number, record in found
        ]

    return read


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", WRITERS)
def test_a_file_is_recognised_by_its_content(
    tmp_path: Path, container: str, compression: str | None
):
    path = tmp_path / "upload"
    path.write_bytes(COMPRESSIONS[compression](WRITERS[container](ROWS)))

    kind = records.recognise(path, "misleading.pdf")

    assert kind == (container, compression)
    found = list(records.read(path, container=kind[0], compression=kind[1]))
    # The first cell of the first record of the CSV file goes on in the next line.
    assert found == list(zip((2, 4) if container == "csv" else (1, 2), ROWS, strict=True))


@pytest.mark.parametrize(
    ("content", "filename", "container"),
    [
        (b"text\nhello\n", "rows.csv", "csv"),
        (b"text\nhello\n", "rows.CSV.gz", "csv"),
        (b"oops, no JSON\n", "rows.jsonl", "jsonl"),
        (b"prompt,completion\na,b\n", "", "csv"),
        (b'"messages"\r\n"[]"\r\n', "", "csv"),
        (b"oops\n", "", "jsonl"),
        (b'\xef\xbb\xbf [{"text": "a"}]', "rows.csv", "json"),
    ],
)
def test_the_name_decides_where_the_content_says_nothing(
    tmp_path: Path, content: bytes, filename: str, container: str
):
    (tmp_path / "upload").write_bytes(content)

    assert records.recognise(tmp_path / "upload", filename) == (container, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04....", "save the sheet as CSV"),
        (b"BZh91AY", "compress it with gzip"),
        (b"\x80\x04\x95...", "a pickle, which is never read"),
        (gzip.compress(gzip.compress(b'{"text": "a"}', mtime=0), mtime=0), "compressed twice"),
        (gzip.compress(b"PK\x03\x04....", mtime=0), "zip archive"),
        (b"\x1f\x8b" + b"x" * 50, "cut off or damaged"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 50, "cut off or damaged"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(read: Any, content: bytes, message: str):
    with pytest.raises(BrokenFile, match=message):
        read(content)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_compressed_file_that_is_cut_off_is_broken(read: Any, compress: Callable[[bytes], bytes]):
    content = compress(WRITERS["jsonl"](ROWS * 5))

    with pytest.raises(BrokenFile, match="cut off or damaged"):
        read(content[:-6])


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
def test_a_decompression_bomb_ends_at_the_cap(
    read: Any, container: str, compress: Callable[[bytes], bytes]
):
    rows = [{"text": "x" * 500_000}] * 40
    content = compress(
        WRITERS[container](rows) if container != "parquet" else b"PAR1" + bytes(10**7)
    )
    assert len(content) < 100_000

    with pytest.raises(TooLarge, match=r"more than 1000000 bytes once decompressed"):
        read(content, max_bytes=1_000_000)


def test_a_parquet_bomb_ends_before_it_is_read(read: Any):
    # 64 references to one long text, and a column of one run of a million equal numbers.
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 64), pa.array(["x" * 5_000_000]))
    texts, runs = io.BytesIO(), io.BytesIO()
    parquet.write_table(pa.table({"text": repeated}), texts, compression="zstd")
    numbers = pa.table({"text": pa.array([7] * 2_000_000)})
    parquet.write_table(numbers, runs, compression="zstd")

    assert len(texts.getvalue()) < 100_000
    assert read(texts.getvalue(), max_bytes=50_000_000) == [
        (number, "line_too_long") for number in range(1, 65)
    ]
    with pytest.raises(TooLarge):
        read(runs.getvalue(), max_bytes=1_000_000)


def test_a_bad_record_does_not_spoil_the_ones_after_it(read: Any):
    good = b'{"text": "a"}'
    long = b'{"text": "' + b"x" * MAX_LINE_BYTES + b'"}'

    lines = read(b"\n".join([good, b"{oops", long, b'{"text": "\xff"}', b"[]", good]))
    array = read(b"[" + b",".join([good, b"{oops}", long, b'{"text": "\xff"}', b"3", good]) + b"]")

    reasons = ["bad_json", "line_too_long", "not_utf8", "not_an_object"]
    expected = [(1, {"text": "a"}), *enumerate(reasons, start=2), (6, {"text": "a"})]
    assert lines == array == expected


def test_a_bad_row_of_a_table_does_not_spoil_the_ones_after_it(read: Any):
    long = b"x" * (MAX_LINE_BYTES + 1)
    rows = [b"a,b", b"1,2,3", b"1", b'"a"b,c', b"\xff,b", long + b",b", b"", b'"a\nb",c']

    found = read(b"prompt,completion\n" + b"\n".join(rows) + b"\n", "rows.csv")

    assert [record for _, record in found] == [
        {"prompt": "a", "completion": "b"},
        "bad_csv",
        "bad_csv",
        "bad_csv",
        "not_utf8",
        "line_too_long",
        {"prompt": "a\nb", "completion": "c"},
    ]
    assert [number for number, _ in found] == [2, 3, 4, 5, 6, 7, 9]


GOOD = [b"q%d,a%d" % (number, number) for number in range(1, 121)]
OPEN = b'bad,"open quote'


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        ([*GOOD[:100], OPEN, *GOOD[100:]], {102: "opened at line 102 is never closed"}),
        ([OPEN, *GOOD[:5], b'x,"a,b"'], {2: "opened at line 2 is never closed"}),
        ([OPEN, *GOOD[:2], OPEN], dict.fromkeys([2, 5], "is never closed")),
        ([b'"a\nb","open', *GOOD[:2]], {2: "lines 2 to 3: the quote opened at line 3 is never"}),
        (
            [OPEN, *GOOD[:3], b'odd","too', *GOOD[3:6]],
            {2: "opened at line 2 is never closed", 6: "opened at line 6 is never closed"},
        ),
        (
            [OPEN, *GOOD[:5], b'5",10', *GOOD[5:]],
            {2: "opened at line 2 is closed at line 8 only"},
        ),
        ([OPEN, *GOOD, b'x,b"'], {2: "opened at line 2 is closed at line 123 only"}),
        ([OPEN, b"\xff,b", *GOOD[:2]], {2: "opened at line 2", 3: "not UTF-8"}),
        (
            [OPEN, b"x" * (MAX_LINE_BYTES + 1), *GOOD[:2]],
            {2: "opened at line 2", 3: "longer than"},
        ),
    ],
)
def test_an_open_quote_spoils_no_other_row(tmp_path: Path, lines: list[bytes], bad: Any):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\n".join([b"prompt,completion", *lines, b""]))

    found = dict(records.read(path, container="csv", compression=None))

    problems = {number: row for number, row in found.items() if isinstance(row, BadRow)}
    assert problems.keys() == bad.keys()
    assert all(bad[number] in problem.message for number, problem in problems.items())
    kept = [row for row in found.values() if not isinstance(row, BadRow)]
    intact = [
        dict(zip(["prompt", "completion"], row.decode().split(","), strict=True))
        for row in lines
        if row in GOOD
    ]
    assert [row for row in kept if row in intact] == intact


def test_text_of_many_lines_in_quotes_is_one_cell(read: Any):
    text = "\n".join(["Dear all,", "", "one, two", 'he said "no"', *["no comma"] * 500, "a,b,c"])
    table = "\n".join(["a,1"] * 20)
    rows = [{"prompt": text, "completion": table}, {"prompt": "p", "completion": text}] * 3

    found = read(write_csv(rows), "rows.csv")

    assert [row for _, row in found] == rows
    lines = (text.count("\n") + table.count("\n") + 1, text.count("\n") + 1)
    assert [number for number, _ in found[:3]] == [2, 2 + lines[0], 2 + sum(lines)]


def test_a_bad_record_of_several_lines_names_them(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,completion\n"a\nb",c,d\n"a\n\xff",b\ne,f\n')

    found = list(records.read(path, container="csv", compression=None))

    assert [number for number, _ in found] == [2, 4, 6]
    assert str(found[0][1]).startswith("lines 2 to 3: 3 cells")
    assert str(found[1][1]).startswith("lines 4 to 5: not UTF-8")


def test_quotes_that_stay_open_are_read_in_time_that_grows_with_the_file(read: Any):
    stays_open = b'a""","\n'

    found = read(b"prompt,completion\n" + stays_open * 20_000, "rows.csv")

    # Each line closes the quote of the one before and opens another: it is one record, to the cap.
    assert found == [(2, "bad_csv")]


def test_a_quote_that_is_never_closed_ends_at_the_cap(read: Any):
    found = read(b'text\n"' + b"a" * 999 + b"\n" + (b"a" * 999 + b"\n") * 1100, "rows.csv")

    assert found[0] == (2, "bad_csv")
    assert found[1:] == [(number, {"text": "a" * 999}) for number in range(3, 1103)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_shows_the_delimiter(read: Any, delimiter: str):
    assert [row for _, row in read(write_csv(ROWS, delimiter), "rows.csv")] == ROWS


def test_messages_in_cells_are_decoded_and_other_json_is_text(read: Any):
    turns = [[{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]]
    cells = [json.dumps(turn) for turn in turns]

    found = read(
        write_csv(
            [
                {"prompt": cells[0], "completion": cells[1]},
                {"prompt": "[1]", "completion": "[1, 2]"},
            ]
        )
    )

    assert found == [
        (2, {"prompt": turns[0], "completion": turns[1]}),
        (3, {"prompt": "[1]", "completion": "[1, 2]"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,\na,b\n", "a column without a name"),
        (b"text,text\na,b\n", "names text twice"),
        (b"te\xffxt,b\na,b\n", "the header: not UTF-8"),
        (b'"te\nx\xfft",b\na,b\n', "the header: not UTF-8"),
        (b"prompt,completion\ra,b\rc,d\r", "end in CR alone"),
    ],
)
def test_a_csv_file_needs_a_header(read: Any, content: bytes, message: str):
    with pytest.raises(BrokenFile, match=message):
        read(content, "rows.csv")


def test_nulls_of_a_parquet_file_are_no_values(read: Any):
    turn = {"role": "user", "content": "a", "name": None}
    answer = {"role": "assistant", "content": "b", "name": "bot"}

    found = read(write_parquet([{"messages": [turn, answer], "id": None}, {"id": 1}]))

    assert found == [
        (1, {"messages": [{"role": "user", "content": "a"}, answer]}),
        (2, {"id": 1}),
    ]


def test_a_damaged_parquet_file_is_broken_at_a_row(read: Any):
    content = bytearray(write_parquet(ROWS, compression="zstd"))
    content[20:60] = b"\xff" * 40

    with pytest.raises(BrokenFile, match="row 1: the Parquet file is damaged"):
        read(bytes(content))
    with pytest.raises(BrokenFile, match="row 1: the Parquet file is damaged"):
        read(b"PAR1" + b"x" * 50 + b"PAR1")


def test_a_parquet_text_that_is_no_utf8_is_one_bad_row(read: Any):
    texts = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    file = io.BytesIO()
    parquet.write_table(pa.table({"text": texts}), file)

    assert read(file.getvalue()) == [(1, {"text": "a"}), (2, "not_utf8"), (3, {"text": "b"})]


def test_large_parquet_files_are_read_a_few_rows_at_a_time(read: Any):
    rows = [{"text": str(number), "ids": [number]} for number in range(1000)]

    assert read(write_parquet(rows, row_group_size=300)) == list(enumerate(rows, start=1))


def test_pyarrow_is_loaded_by_the_first_file_that_needs_it():
    done = subprocess.run(
        [sys.executable, "-c", "import app.domain.records, sys; print('pyarrow' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "False\n"
