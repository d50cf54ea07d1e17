"""The token cache: hits are equal to misses, damage is noticed, and jobs do not collide."""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import DataFile
from app.domain.errors import UnusableData
from app.domain.options import DatasetSpec
from tests.training_runs import DATASET_ID, Workplace
from worker.training import data, reading, token_cache
from worker.training.encode import EncodedRow
from worker.training.reading import Fate, Line, Source
from worker.training.token_cache import Found
from worker.training.tokens import Writer, open_folder

ROWS = [{"prompt": "a", "completion": " b" * n} for n in (1, 7, 20, 3)] + [{"prompt": "c"}]


class Place:
    """A folder with one data set and a cache."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.cache = folder / "cache"
        content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        path = folder / "rows.jsonl"
        if not path.is_file():
            path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.file = DataFile(path=path, sha256=sha256, format="prompt-completion")

    def tokens(self, **options: Any) -> Found:
        spec = DatasetSpec(id=DATASET_ID, **{"max_length": 8, **options})
        return token_cache.tokens_of(
            Source(self.file, spec),
            self.tokenizer,
            cache_folder=self.cache,
            tokenizer_sha256=token_cache.fingerprint_of(self.tokenizer),
        )

    def folders(self) -> set[str]:
        return {path.name for path in (self.cache / token_cache.FOLDER).iterdir()}

    def only(self) -> Path:
        [name] = self.folders()
        return self.cache / token_cache.FOLDER / name


@pytest.fixture
def place(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Place:
    return Place(tmp_path, tokenizer)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Data sets that were read, one entry each time."""
    read: list[Source] = []
    real = reading.examine

    def remember(source: Source, tokenizer: PreTrainedTokenizerBase) -> Iterator[Line]:
        read.append(source)
        return real(source, tokenizer)

    monkeypatch.setattr(reading, "examine", remember)
    return read


def plain(found: Found) -> list[tuple[int, list[int], list[bool]]]:
    return [(r.line, r.ids.tolist(), r.is_target.tolist()) for r in found.tokens.rows]


def direct(place: Place, **options: Any) -> list[tuple[int, list[int], list[bool]]]:
    """Encode the rows without any cache."""
    source = Source(place.file, DatasetSpec(id=DATASET_ID, **{"max_length": 8, **options}))
    lines = reading.examine(source, place.tokenizer)
    rows = [reading.fate_of(line, source.options).row for line in lines]
    return [(r.line, r.ids.tolist(), r.is_target.tolist()) for r in rows if r is not None]


def test_a_hit_gives_the_rows_and_the_tally_of_the_miss_and_reads_no_data(
    place: Place, examined: list[Source]
):
    missed = place.tokens()
    place.file.path.unlink()
    hit = place.tokens()

    assert len(examined) == 1
    assert plain(hit) == plain(missed)
    assert hit.tokens.tally == missed.tokens.tally
    assert hit.tokens.sha256 == missed.tokens.sha256
    assert [p.line for p in hit.tokens.problems()] == [2, 3, 5]


def test_what_is_stored_is_what_was_encoded(place: Place):
    found = plain(place.tokens())

    assert found == direct(place)
    assert any(not all(is_target) for _, _, is_target in found)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 9},
        {"on_too_long": "drop"},
        {"train_on_inputs": True},
        {"format": "text"},
        {"field_mapping": {"completion": "prompt"}},
        {"chat_template": "{{ messages }}"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_option_that_may_change_tokens_makes_another_cache(
    place: Place, examined: list[Source], change: dict[str, Any]
):
    place.tokens()
    place.tokens(**change)

    assert len(examined) == len(place.folders()) == 2


@pytest.mark.parametrize("change", [{"max_dropped_fraction": 0.9}, {"val_size": 0.5}])
def test_an_option_that_changes_no_token_uses_the_same_cache(
    place: Place, examined: list[Source], change: dict[str, Any]
):
    place.tokens()
    place.tokens(**change)

    assert len(examined) == 1


def test_other_data_another_tokenizer_or_other_code_makes_another_cache(
    place: Place, examined: list[Source], monkeypatch: pytest.MonkeyPatch
):
    place.tokens()
    own_template = place.tokenizer.chat_template
    monkeypatch.setattr(place.tokenizer, "chat_template", f"{own_template} ")
    place.tokens()
    monkeypatch.undo()
    changed = place.file.path.with_name("more.jsonl")
    changed.write_bytes(place.file.path.read_bytes() + b'{"prompt": "x", "completion": "y"}\n')
    sha256 = hashlib.sha256(changed.read_bytes()).hexdigest()
    place.file = place.file.model_copy(update={"path": changed, "sha256": sha256})
    place.tokens()
    monkeypatch.setattr(token_cache, "_code_sha256", lambda: "0" * 64)
    place.tokens()

    assert len(place.folders()) == 4


def test_the_code_that_a_cache_depends_on_is_found_by_following_its_imports():
    found = token_cache._reached_from(reading)

    assert {
        "app.domain.rows",
        "app.domain.records",
        "app.domain.strict_json",
        "worker.training.encode",
        "worker.training.reading",
        "worker.training.render",
    } <= found.keys()


@pytest.mark.parametrize("name", ["ids.bin", "targets.bin", "rows.bin", "receipt.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_cache_is_noticed_and_built_anew(place: Place, name: str, damage: str):
    before = plain(place.tokens())
    path = place.only() / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "bit":
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-1])
        case _:
            path.unlink()

    rebuilt = place.tokens()

    assert rebuilt.was_damaged
    assert plain(rebuilt) == before
    assert not place.tokens().was_damaged
    assert place.folders() == {place.only().name}


def test_a_run_says_that_its_cache_was_rebuilt(
    workplace: Workplace, tokenizer: PreTrainedTokenizerBase
):
    clean = data.load(workplace.run_file(), tokenizer)
    [ids] = (workplace.folder / "cache").rglob("ids.bin")
    ids.write_bytes(b"")

    again = data.load(workplace.run_file(), tokenizer)

    assert [notice.code for notice in clean.notices] == []
    assert [notice.code for notice in again.notices] == ["token_cache_rebuilt"]
    assert again.fingerprint() == clean.fingerprint()
    assert again.receipt == clean.receipt


def test_two_jobs_at_once_encode_once(place: Place, examined: list[Source]):
    results: list[Found] = []
    threads = [threading.Thread(target=lambda: results.append(place.tokens())) for _ in range(3)]
    with _held(place):
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert examined == []  # all of them wait for the lock
    for thread in threads:
        thread.join(30)

    assert len(examined) == 1
    assert plain(results[0]) == plain(results[1]) == plain(results[2])
    assert len(place.folders()) == 1


class _held:  # noqa: N801 - reads as a verb
    """Holds the lock that the builders of a place's cache take."""

    def __init__(self, place: Place) -> None:
        spec = DatasetSpec(id=DATASET_ID, max_length=8)
        made_of = token_cache._made_of(
            Source(place.file, spec), token_cache.fingerprint_of(place.tokenizer)
        )
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        folder = place.cache / token_cache.FOLDER
        folder.mkdir(parents=True)
        self._file = (folder / f"{key}.lock").open("ab")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_a_builder_whose_lock_does_not_hold_uses_what_another_put_in_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    """A lock that another machine does not see is one that does not hold."""
    real, visits, others = token_cache._sync, list[Path](), list[Found]()

    def let_another_finish_first(folder: Path) -> None:
        visits.append(folder)
        if len(visits) == 1:
            others.append(place.tokens())
        real(folder)

    monkeypatch.setattr(token_cache, "_sync", let_another_finish_first)
    monkeypatch.setattr(token_cache.fcntl, "flock", lambda *_: None)

    ours = place.tokens()

    [other] = others
    assert plain(ours) == plain(other)
    assert place.folders() == {place.only().name}


def test_a_build_that_dies_leaves_nothing_that_is_taken_for_a_cache(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORAD_FAILPOINTS", "tokens.rename=raise:ENOSPC@1")
    with pytest.raises(OSError, match="No space left"):
        place.tokens()
    left = place.folders()
    monkeypatch.delenv("LORAD_FAILPOINTS")

    assert left == set()
    assert plain(place.tokens()) == direct(place)


def test_a_file_that_is_not_the_uploaded_one_is_refused_and_not_kept(place: Place):
    place.file.path.write_text('{"prompt": "x", "completion": "y"}\n')

    with pytest.raises(UnusableData, match="SHA-256 differs"):
        place.tokens()

    assert place.folders() == set()


def test_using_a_cache_makes_it_young_again(place: Place):
    place.tokens()
    manifest = place.only() / "MANIFEST.json"
    os.utime(manifest, (1e9, 1e9))

    place.tokens()

    assert manifest.stat().st_mtime > 1e9


@pytest.mark.parametrize("num_ids", [1 << 16, (1 << 16) + 1])
def test_every_token_id_of_a_vocabulary_comes_back(tmp_path: Path, num_ids: int):
    ids = np.array([0, 1, num_ids - 1] * 3, dtype=np.int32)
    row = EncodedRow(4, ids, np.arange(9) % 2 == 1)
    with Writer(tmp_path, num_ids=num_ids) as writer:
        writer.add(Line(4, row=row), Fate(4, row))
        writer.commit({})

    [read] = open_folder(tmp_path).rows

    assert (read.line, read.ids.tolist()) == (4, ids.tolist())
    assert read.ids.dtype == np.int32
    assert read.is_target.tolist() == row.is_target.tolist()
