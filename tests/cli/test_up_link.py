"""The link that `lorad up` prints where keys are needed: it opens the pages once."""

import os
import re
import selectors
import signal
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from tests.cli.test_up import start_up

__all__ = ["start_up"]


@pytest.mark.services
@pytest.mark.timeout(120)
def test_the_printed_link_signs_in_once_and_is_refused_clearly_after(start_up: Any):
    home = start_up.home
    command = [sys.executable, "-m", "app.cli.main", "keys", "create", "--home", str(home)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    up = start_up()
    link = printed_link(up.process)

    with httpx2.Client() as browser, httpx2.Client() as other:
        first = browser.get(link)
        second = other.get(link)
        pages = browser.get(f"{up.url}/ui/jobs").status_code
        refused = other.get(f"{up.url}/ui/jobs").status_code
        settings = browser.get(f"{up.url}/ui/settings").text
        browser.post(f"{up.url}/ui/sign-out", headers={"origin": up.url})
        after = browser.get(f"{up.url}/ui/jobs").status_code

    assert link.startswith(f"{up.url}/ui/sign-in?once=")
    assert first.status_code == 303
    assert (pages, refused, after) == (200, 401, 401)
    assert second.status_code == 401
    assert "this link was used already" in second.text
    assert "by a link of <code>lorad up</code>" in settings
    os.kill(up.process.pid, signal.SIGINT)
    assert up.process.wait(timeout=60) == 0


def printed_link(process: subprocess.Popen[str]) -> str:
    """Return the address of the dashboard among what `up` says once it is ready."""
    assert process.stderr is not None
    said = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        wanted = r"the dashboard +(\S+)\n +signs one browser in, within 15 min, for 14 days\n"
        while not (found := re.search(wanted, said)):
            assert selector.select(timeout=30), said
            said += os.read(process.stderr.fileno(), 10_000).decode()
    return found[1]
