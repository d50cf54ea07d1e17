"""What pages load: files of others as published, few bytes, and nothing from elsewhere."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from app.web import render

ROOT = Path(__file__).resolve().parents[2]
LOCKS = [render.STATIC / "vendor" / "vendor.lock.json", ROOT / "tests/web/axe/axe.lock.json"]
TEMPLATES = sorted((render.FOLDER / "templates").rglob("*.html"))
SCRIPTS = sorted(render.STATIC.glob("*.js"))
MOST_BYTES = 130_000


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.parent.name)
def test_every_file_of_others_is_the_one_in_the_lock(lock: Path):
    files = json.loads(lock.read_text("utf-8"))["files"]

    for each in files:
        content = (ROOT / each["file"]).read_bytes()
        digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
        assert (each["integrity"], each["bytes"]) == (f"sha384-{digest}", len(content))
        assert each["version"] in each["file"] or each["name"] == "axe-core"
        assert each["licence"]
    there = {path.relative_to(ROOT).as_posix() for path in lock.parent.iterdir()}
    assert there - {lock.relative_to(ROOT).as_posix()} == {each["file"] for each in files}


def test_all_that_pages_load_is_small():
    files = [path for path in render.STATIC.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files if path.suffix != ".json") < MOST_BYTES


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_anything_inline_or_unescaped(path: Path):
    text = path.read_text("utf-8")

    assert not re.search(r"\|\s*safe\b|autoescape", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"\sstyle=", text)
    assert not re.search(r"\son[a-z]+\s*=", text)
    assert "javascript:" not in text
    if path.name != "sign_in.html":  # its style is there by its hash
        assert "<style" not in text


@pytest.mark.parametrize("path", [*TEMPLATES, *SCRIPTS], ids=lambda path: path.name)
def test_nothing_names_another_host(path: Path):
    text = path.read_text("utf-8").replace("http://www.w3.org/", "")

    assert not re.search(r"(src|href|action)\s*=\s*[\"']?(https?:)?//", text)
    assert not re.search(
        r"(fetch|import|open|WebSocket|EventSource)\(\s*[\"'`](https?:|wss?:)?//", text
    )
