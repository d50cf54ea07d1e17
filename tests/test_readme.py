"""What the README tells to paste works when it is pasted."""

import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.stack import SLOW_STEPS, Stack

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "curl", "grep", "head", "cut", "tr", "tail")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]


def walk() -> str:
    """Return the script of the walk with curl."""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("## A walk with curl\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\w*\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    return blocks[0]


def replaced(script: str, old: str, new: str) -> str:
    assert script.count(old) == 1, old
    return script.replace(old, new)


@pytest.mark.services
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_the_walk_with_curl_trains_pauses_resumes_and_downloads(
    make_stack: Callable[..., Stack], tiny_llama: Path, tmp_path: Path
):
    stack = make_stack(**SLOW_STEPS)
    script = replaced(walk(), "http://127.0.0.1:8000", f"http://127.0.0.1:{stack.port}")
    script = replaced(script, "smollm2-135m-instruct", tiny_llama.name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    try:
        done = subprocess.run(
            ["bash", "-eu", "-c", script],
            cwd=tmp_path,
            env={**stack.environment, "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{late.stdout!r} {late.stderr!r} {stack.http.get('/jobs').text}")

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    [job] = stack.http.get("/jobs").json()["data"]
    assert (job["state"], job["step"], job["attempt"]) == ("succeeded", 40, 2)
    asked, resumed = [line for line in done.stdout.splitlines() if not line.startswith("{")][:2]
    assert asked == "pause"
    # The answer tells the state as it is read, and a free slot may have taken the job by then.
    assert resumed in ("queued", "starting")
    assert "event: complete" in (tmp_path / "stream.txt").read_text()
    assert "adapter_config.json" in zipfile.ZipFile(tmp_path / "adapter.zip").namelist()
